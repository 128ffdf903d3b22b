"""PASCAL VOC as the content of a COCO file.

Boxes come from `Annotations/*.xml`, masks from the palette indices of `SegmentationObject/*.png`. VOC counts pixels from 1 and
includes the last one: `xmin` = 1 and `xmax` = 2 is a box two pixels wide that begins at the edge. Source: the development kits of
2007 and 2012 (M. Everingham et al., "The PASCAL Visual Object Classes Challenge").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from PIL import Image

from mrcnn_tf.data.check import Fault
from mrcnn_tf.data.coco_records import DataError
from mrcnn_tf.data.images import ImageFile, ImageFolder
from mrcnn_tf.data.masks import bitmap_to_rle
from mrcnn_tf.data.object_faults import Box, corners, iou

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""In the order of the palette: class i + 1 has index i + 1 in `SegmentationClass`."""
VOID = 255
"""Palette index of what belongs to no object: the border between two, and what was too hard to outline."""
MIN_IOU = 0.3
"""Of a mask's box with the box of its object: the void border takes 2 or 3 pixels off each side, which is much of a small one."""

ImageSet: TypeAlias = Literal["Main", "Segmentation"]
"""Which lists of names are used: all images, boxes only, or those that have masks."""


@dataclass(frozen=True, slots=True)
class VocObject:
    """An object of an XML file: `box` is (y1, x1, y2, x2) in pixels from 0, the end excluded; `class_id` is 1..20."""

    class_id: int
    box: Box
    difficult: bool


def voc_content(root: ImageFolder, split: str, image_set: ImageSet = "Segmentation") -> tuple[dict[str, Any], list[Fault]]:
    """A split of VOC as the content of a COCO file.

    `difficult` of an object is kept as a key of its annotation. Such an object is trained on like any other, and only VOC's own
    evaluation leaves it out; where masks are read and it has none, it is a crowd region, too.

    Args:
        root: the folder of a year (`VOCdevkit/VOC2012`), with `Annotations`, `ImageSets`, and for masks `SegmentationObject` and
            `SegmentationClass`.
        split: name of the list: train, val, trainval, test.
        image_set: "Segmentation" has masks, "Main" boxes only.

    Returns:
        The content, with RLE masks, ids from 1 on in the order of the list, and file names below `JPEGImages`; and what is wrong
        with those images that are not in it.

    Raises:
        DataError: there is no such list, or it is empty.
    """
    listed = root / f"ImageSets/{image_set}/{split}.txt"
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    faults = []
    for number, name in enumerate(_names(listed), 1):
        try:
            size, objects = read_xml(root / f"Annotations/{name}.xml")
            masks = _read_masks(root, name, size, objects) if image_set == "Segmentation" else None
        except DataError as error:
            faults.append(Fault(error.kind, f"image {name}", str(error), f"{name}.jpg"))
            continue
        images.append({"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
        annotations += _annotations(number, objects, masks)
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, faults


def read_xml(path: ImageFile) -> tuple[tuple[int, int], list[VocObject]]:
    """The objects of an image.

    Args:
        path: of a file of `Annotations`.

    Returns:
        (height, width) of the image in pixels, and the objects in the order of the file.

    Raises:
        DataError: the file is missing, is no XML, has a DOCTYPE, or lacks a part; or an object is of no class of VOC, or its box
            is no box.
    """
    try:
        with path.open("rb") as file:
            # VOC's files have no DOCTYPE. One that has could expand to any size.
            tree = fromstring(file.read(), forbid_dtd=True)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", "missing file") from error
    except DefusedXmlException as error:
        raise DataError(f"{path}: a DOCTYPE, which no file of VOC has; it could expand to any size", "broken file") from error
    except (OSError, ParseError) as error:
        raise DataError(f"{path}: not readable XML: {error}", "broken file") from error
    height, width = (int(_number(tree, f"size/{side}", str(path))) for side in ("height", "width"))
    if height < 1 or width < 1:
        raise DataError(f"{path}: size must be at least 1 x 1 pixel, got {height} x {width}", "image size")
    return (height, width), [_object(item, f"{path}: object {i}") for i, item in enumerate(tree.iterfind("object"), 1)]


def match_masks(
    instances: np.ndarray, classes: np.ndarray, objects: Sequence[VocObject], where: str
) -> tuple[np.ndarray | None, ...]:
    """Which pixels belong to which object.

    Instance k of the PNG is object k of the XML as a rule. Here that is believed where class and box agree; what is left is
    matched by class and overlap, the largest first.

    Args:
        instances: [height, width] uint8, palette indices of `SegmentationObject`.
        classes: [height, width] uint8, those of `SegmentationClass`.
        objects: of the XML.
        where: names the file in messages.

    Returns:
        For each object its pixels, bool [height, width], or None where none were outlined.

    Raises:
        DataError: an instance that is no object's.
    """
    numbers = [int(number) for number in np.unique(instances) if number not in (0, VOID)]
    overlap = {}
    for number in numbers:
        mask = instances == number
        box, class_id = _box_of(mask), _class_of(classes[mask])
        for index, item in enumerate(objects):
            share = iou(box, item.box) if item.class_id == class_id else 0.0
            if share >= MIN_IOU:
                overlap[number, index] = share
    pairs = {(number, number - 1) for number in numbers if (number, number - 1) in overlap}
    for number, index in sorted(overlap, key=lambda pair: -overlap[pair]):
        if all(number != n and index != i for n, i in pairs):
            pairs.add((number, index))
    lost = sorted(set(numbers) - {number for number, _ in pairs})
    if lost:
        what = f"instance {lost[0]} ({_class_name(classes[instances == lost[0]])}, {corners(_box_of(instances == lost[0]))})"
        message = f"{where}: {what} is no object of the XML: none of its class has a box with an IoU of {MIN_IOU} or more"
        raise DataError(message, "unmatched mask")
    of_object = {index: number for number, index in pairs}
    return tuple(instances == of_object[index] if index in of_object else None for index in range(len(objects)))


def _names(listed: ImageFile) -> list[str]:
    try:
        with listed.open("rb") as file:
            lines = file.read().decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listed}: no readable list of image names: {error}", "broken file") from error
    # The lists of a class have a second column.
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise DataError(f"{listed}: the list of image names is empty", "broken file")
    return names


def _object(item: Element, where: str) -> VocObject:
    name = (item.findtext("name") or "").strip()
    if name not in CLASSES:
        raise DataError(f"{where}: {name!r} is no class of VOC; expected one of {', '.join(CLASSES)}", "unknown category")
    x1, y1, x2, y2 = (_number(item, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    if x2 < x1 or y2 < y1:
        raise DataError(f"{where}: the box ends before it begins: x {x1:g} to {x2:g}, y {y1:g} to {y2:g}", "negative box")
    # Some objects of 2012 do not say.
    difficult = item.find("difficult") is not None and _number(item, "difficult", where) != 0
    return VocObject(CLASSES.index(name) + 1, (y1 - 1, x1 - 1, y2, x2), difficult)


def _number(item: Element, path: str, where: str) -> float:
    text = item.findtext(path)
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(f"{where}: {path} must be a number, got {text!r}")
    return value


def _read_masks(
    root: ImageFolder, name: str, size: tuple[int, int], objects: Sequence[VocObject]
) -> tuple[np.ndarray | None, ...]:
    path = root / f"SegmentationObject/{name}.png"
    instances, classes = (_palette(root / f"Segmentation{kind}/{name}.png", size) for kind in ("Object", "Class"))
    return match_masks(instances, classes, objects, str(path))


def _palette(path: ImageFile, size: tuple[int, int]) -> np.ndarray:
    try:
        with path.open("rb") as file, Image.open(file) as image:
            if image.mode not in ("P", "L"):
                raise DataError(f"{path}: expected palette indices, got a picture of mode {image.mode}", "malformed mask")
            indices = np.array(image)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", "missing file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable PNG: {error}", "malformed mask") from error
    if indices.shape != size:
        came, expected = (f"{height} x {width}" for height, width in (indices.shape, size))
        raise DataError(f"{path}: {came} pixels (height x width), the XML says {expected}", "image size")
    return indices


def _annotations(
    image_id: int, objects: Sequence[VocObject], masks: Sequence[np.ndarray | None] | None
) -> Iterator[dict[str, Any]]:
    for index, item in enumerate(objects):
        top, left, bottom, right = item.box
        mask = None if masks is None else masks[index]
        entry = {
            "id": 0,
            "image_id": image_id,
            "category_id": item.class_id,
            "bbox": [left, top, right - left, bottom - top],
            "area": (bottom - top) * (right - left) if mask is None else float(mask.sum()),
            # What is too hard to outline is neither to be found nor background.
            "iscrowd": int(item.difficult and masks is not None and mask is None),
            "difficult": int(item.difficult),
        }
        yield entry if mask is None else entry | {"segmentation": bitmap_to_rle(mask)}


def _class_of(indices: np.ndarray) -> int:
    """The commonest class of an instance's pixels, void left out; 0 where there is none."""
    counts = np.bincount(indices[indices != VOID], minlength=1)
    return int(counts.argmax())


def _class_name(indices: np.ndarray) -> str:
    class_id = _class_of(indices)
    return CLASSES[class_id - 1] if 1 <= class_id <= len(CLASSES) else "of no class"


def _box_of(mask: np.ndarray) -> Box:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return float(rows[0]), float(columns[0]), float(rows[-1] + 1), float(columns[-1] + 1)
