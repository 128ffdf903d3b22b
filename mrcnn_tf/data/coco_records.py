"""The records of COCO JSON files as types, and the rules that a record must keep to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_tf.data.masks import Segmentation, segmentation_to_rle


class DataError(ValueError):
    """Annotations that cannot be used; the message names the file and the record, what was expected and what came.

    `kind` is a short name of the fault, for lists and counts of many.
    """

    def __init__(self, message: str, kind: str = "malformed record"):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True, eq=False)
class CocoObject:
    """One annotated object.

    `box` is (y1, x1, y2, x2) in pixels, clipped to the image; `class_id` is 1..K; `area` is in square pixels; `segmentation` is
    a tuple of polygons (flat float64 arrays x1, y1, ...), a compressed RLE, or None where only a box is known.
    """

    annotation_id: int
    class_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool = False
    segmentation: Segmentation | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One image and its objects, in the order of the file."""

    image_id: int
    file_name: str
    height: int
    width: int
    objects: tuple[CocoObject, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class CocoAnnotations:
    """A whole file. `categories` are `{"id", "name"}` in class order; `records` keep the order of the file's images."""

    path: Path
    categories: tuple[dict[str, Any], ...]
    records: tuple[Record, ...]


def image_record(entry: Any, where: str, tell: Callable[[DataError], None]) -> Record | None:
    """An image of the file, without its objects.

    Args:
        entry: as in the file.
        where: names the file and the record in messages.
        tell: gets every fault.

    Returns:
        None where it is faulty.
    """
    parts = (
        partial(field_of, entry, "id", int, where),
        partial(field_of, entry, "file_name", str, where),
        partial(_image_size, entry, where),
    )
    values = all_parts(parts, tell)
    return None if values is None else Record(values[0], values[1], *values[2])


def object_of(
    entry: Any,
    classes: Mapping[int, int],
    images: Mapping[int, Record | None],
    where: str,
    tell: Callable[[DataError], None],
) -> tuple[int, CocoObject] | None:
    """An annotation of the file.

    Args:
        entry: as in the file.
        classes: class of each category id.
        images: by id, None where faulty.
        where: names the file and the record in messages.
        tell: gets every fault.

    Returns:
        The id of its image, and the object; None where it, or its image, is faulty.
    """
    known = all_parts((partial(_known_image, entry, images, where),), tell)
    image = None if known is None else images[known[0]]
    if known is None or image is None:
        return None
    parts = (
        partial(_class_id, entry, classes, where),
        partial(_crowd, entry, where),
        partial(_box, entry, image, where),
        partial(_area, entry, where),
        partial(field_of, entry, "id", int, where),
        partial(read_segmentation, entry, (image.height, image.width), where),
    )
    values = all_parts(parts, tell)
    if values is None:
        return None
    class_id, crowd, box, area, annotation_id, segmentation = values
    if area is None:
        area = (box[2] - box[0]) * (box[3] - box[1])
    return known[0], CocoObject(annotation_id, class_id, box, area, crowd, segmentation)


def read_segmentation(entry: Mapping[str, Any], image_size: tuple[int, int], where: str) -> Segmentation | None:
    """The mask of a COCO annotation.

    Args:
        entry: the annotation as in the file.
        image_size: (height, width) of its image.
        where: names the file and the record in messages.

    Returns:
        Polygons (flat float64 arrays x1, y1, ...), a compressed RLE, or None where `segmentation` is missing or empty.

    Raises:
        DataError: it is malformed.
    """
    value = entry.get("segmentation")
    if not value:
        return None
    if isinstance(value, dict):
        try:
            return segmentation_to_rle(value, image_size)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{where}: segmentation: {error}", "malformed mask") from error
    if not isinstance(value, list):
        expected = "a list of polygons or an RLE object"
        raise DataError(f"{where}: segmentation must be {expected}, got a {type_name(value)}", "malformed mask")
    return tuple(_polygon(polygon, where) for polygon in value)


def _image_size(entry: Any, where: str) -> tuple[int, int]:
    height, width = (field_of(entry, side, int, where) for side in ("height", "width"))
    if height < 1 or width < 1:
        raise DataError(f"{where}: height and width must be at least 1, got {height} and {width}", "image size")
    return height, width


def _known_image(entry: Any, images: Mapping[int, Record | None], where: str) -> int:
    image_id = field_of(entry, "image_id", int, where)
    if image_id not in images:
        raise DataError(f"{where}: image_id {image_id} is not among the images of the file", "unknown image")
    return image_id


def _class_id(entry: Any, classes: Mapping[int, int], where: str) -> int:
    category = field_of(entry, "category_id", int, where)
    if category not in classes:
        raise DataError(f"{where}: unknown category_id {category}; known are {str(sorted(classes))[:80]}", "unknown category")
    return classes[category]


def _crowd(entry: Mapping[str, Any], where: str) -> bool:
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(f"{where}: iscrowd must be 0 or 1, got {crowd!r}")
    return bool(crowd)


def _area(entry: Mapping[str, Any], where: str) -> float | None:
    if "area" not in entry:
        return None
    area = field_of(entry, "area", (int, float), where)
    if not _is_number(area) or area < 0:
        raise DataError(f"{where}: 'area' must be finite and not negative, got {area!r}")
    return area


def _box(entry: Any, image: Record, where: str) -> tuple[float, float, float, float]:
    bbox = field_of(entry, "bbox", list, where)
    if len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        raise DataError(f"{where}: bbox must be four finite numbers x, y, w, h, got {str(bbox)[:80]}", "malformed box")
    x, y, width, height = bbox
    if width < 0 or height < 0:
        raise DataError(f"{where}: bbox must not have a negative width or height, got {bbox!r}", "negative box")
    top, left, bottom, right = max(y, 0.0), max(x, 0.0), min(y + height, image.height), min(x + width, image.width)
    is_flat = width == 0 or height == 0  # COCO 2017 itself has two; they are left out of training and counted
    if not is_flat and (bottom <= top or right <= left):
        size = f"{image.height} x {image.width} pixels (height x width)"
        raise DataError(f"{where}: bbox {bbox!r} lies outside image {image.image_id} of {size}", "box outside")
    return float(top), float(left), float(bottom), float(right)


def _polygon(value: Any, where: str) -> np.ndarray:
    try:
        polygon = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        polygon = np.empty(0)
    if polygon.ndim != 1 or polygon.size < 6 or polygon.size % 2 or not np.isfinite(polygon).all():
        expected = "x, y of at least 3 points as one flat list of numbers"
        raise DataError(f"{where}: a polygon must be {expected}, got {str(value)[:80]}", "malformed mask")
    return polygon


def field_of(entry: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The value of a key, which must be there and of this type (true and false are no numbers).

    Raises:
        DataError: it is not; `where` names the file and the record.
    """
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object with {key!r}, got a {type_name(entry)}")
    if key not in entry:
        raise DataError(f"{where}: {key!r} is missing; there are {sorted(entry)}")
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise DataError(f"{where}: {key!r} must be {expected}, got {str(value)[:80]} ({type_name(value)})")
    return value


def all_parts(parts: Iterable[Callable[[], Any]], tell: Callable[[DataError], None]) -> list[Any] | None:
    """The values of all parts, or None where one is faulty; each faulty one is told of."""
    values, faulty = [], False
    for part in parts:
        try:
            values.append(part())
        except DataError as error:
            tell(error)
            faulty = True
    return None if faulty else values


def _is_number(value: Any) -> bool:
    # False for NaN, infinity, and whole numbers that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def type_name(value: Any) -> str:
    """What messages call the type of a value."""
    return type(value).__name__
