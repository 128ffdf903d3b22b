"""A whole data set read once, with every fault in it.

Errors are what training refuses, or could learn nothing right from; warnings are what it takes but may not be meant. The rules
of the records are those of `mrcnn_tf.data.coco`; what can be said only with the picture or the mask at hand is added here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.progress import Progress

from mrcnn_tf.data.coco import CocoAnnotations, CocoObject, DataError, Record, load_coco, parse_annotations
from mrcnn_tf.data.masks import Segmentation, polygon_coverage
from mrcnn_tf.data.samples import MISSING_MASK, missing_masks, read_image, require_image

SIZES = {"small": 32.0**2, "medium": 96.0**2, "large": float("inf")}
"""COCO's sizes: the first whose limit (square pixels) is above the `area` of an object."""
WARNINGS = ("box and mask", "box beyond image")
"""Kinds of fault that do not make a data set unusable."""

MIN_BOX_MASK_IOU = 0.5
MAX_SIDE_OFFSET = (3.0, 0.1)
"""Pixels and share of the box's height or width: a side of the mask's box may be further off by one of them, not by both."""
MAX_BEYOND = 1.0
"""Pixels by which a box may reach beyond its image: annotation tools round outwards."""

_CELLS = (56, 56)
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong.

    `kind` is a short name ("unknown category"), `record` what it is wrong with ("annotation 17", "image 3 (a.jpg)", "file"),
    `message` what was expected and what came. `file_name` is the picture's, if there is one to look at, `entry` the record as it
    is in the file.
    """

    kind: str
    record: str
    message: str
    file_name: str | None = None
    entry: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class DataCheck:
    """What is in a data set, and what is wrong with it.

    `counts` is the number of objects per class name and COCO size ("small", "medium", "large"), crowd regions included, and
    `num_crowd` how many of all are crowd regions; faulty records are not counted. `empty_images` are the file names of images
    without a usable object.
    """

    errors: tuple[Fault, ...]
    warnings: tuple[Fault, ...]
    counts: Mapping[str, Mapping[str, int]]
    num_images: int
    num_objects: int
    num_crowd: int
    empty_images: tuple[str, ...]


def check_data(
    images: str | Path, annotations: str | Path, *, num_workers: int | None = None, progress: bool = False
) -> DataCheck:
    """Read all of a COCO data set and list every fault.

    Args:
        images: folder of the images.
        annotations: COCO JSON file.
        num_workers: threads that read pictures; None: as many as there are processors.
        progress: show a bar on stderr.

    Returns:
        The faults in the order of the file, those of the records before those of pictures and masks. A file that is no COCO JSON
        at all, truncated for instance, is one fault and nothing is counted. The objects of a faulty image are not looked at.

    Raises:
        NotADirectoryError: `images` is no folder.
    """
    folder, path = Path(images), Path(annotations)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder of images")
    faults: list[Fault] = []
    try:
        content = load_coco(path)
        found = parse_annotations(content, path, report=partial(_collect, faults, path))
    except DataError as error:
        faults.append(_fault(error, "file", path))
        return _result(faults, None)
    names = {record.image_id: record.file_name for record in found.records}
    faults = [_with_file_name(fault, names) for fault in faults]
    entries = _sound_entries(content["annotations"], names, {id(fault.entry) for fault in faults})
    for item in missing_masks(found):
        entry = entries[item.annotation_id]
        faults.append(Fault("missing mask", f"annotation {item.annotation_id}", MISSING_MASK, names[entry["image_id"]], entry))
    work = partial(_check_record, folder=folder, path=path, entries=entries)
    for more in _in_parallel(work, found.records, num_workers or os.cpu_count() or 1, progress):
        faults += more
    return _result(faults, found)


def mask_box(segmentation: Segmentation, image_size: tuple[int, int]) -> Box | None:
    """The box that a mask fills, within its image.

    Args:
        segmentation: polygons or a compressed RLE.
        image_size: (height, width), pixels.

    Returns:
        (y1, x1, y2, x2) in pixels, the polygons' own corners (not rounded to pixels), or None for an empty mask.
    """
    if isinstance(segmentation, Mapping):
        if not coco_mask.area(segmentation):
            return None
        x, y, width, height = coco_mask.toBbox(segmentation).tolist()
        return y, x, y + height, x + width
    points = np.concatenate([np.asarray(polygon).reshape(-1, 2) for polygon in segmentation])[:, ::-1]
    top, left, bottom, right = np.clip([*points.min(axis=0), *points.max(axis=0)], 0, [*image_size, *image_size]).tolist()
    box = (top, left, bottom, right)
    if bottom <= top or right <= left or not polygon_coverage(segmentation, box, _CELLS).any():
        return None
    return box


def _check_record(record: Record, folder: Path, path: Path, entries: Mapping[int, Any]) -> list[Fault]:
    """What is wrong with the picture and the objects of an image."""
    label = f"image {record.image_id}"
    faults = []
    try:
        require_image(folder, record, path)
        read_image(folder, record, path)
    except DataError as error:
        faults.append(_fault(error, label, path, record.file_name))
    for item in record.objects:
        entry = entries[item.annotation_id]
        label = f"annotation {item.annotation_id}"
        faults += [Fault(kind, label, message, record.file_name, entry) for kind, message in _object_faults(item, record, entry)]
    return faults


def _object_faults(item: CocoObject, record: Record, entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Kind and message of what is wrong with an object that was read."""
    image_size = (record.height, record.width)
    size = f"{record.height} x {record.width} pixels (height x width)"
    x, y, width, height = entry["bbox"]
    flat = item.box[2] <= item.box[0] or item.box[3] <= item.box[1]
    if flat:
        yield "empty box", f"bbox {entry['bbox']} has no width or no height; training leaves it out"
    elif max(-x, -y, x + width - record.width, y + height - record.height) > MAX_BEYOND:
        yield "box beyond image", f"bbox {entry['bbox']} reaches beyond its image of {size}; it is cut there"
    if item.segmentation is None:
        return
    box = mask_box(item.segmentation, image_size)
    if box is None:
        yield "empty mask", f"the segmentation covers nothing of its image of {size}"
    elif not flat and _disagree(item.box, box):
        yield "box and mask", f"the box is {_corners(item.box)}, the mask fills {_corners(box)} (IoU {_iou(item.box, box):.2f})"


def _disagree(box: Box, other: Box) -> bool:
    pixels, share = MAX_SIDE_OFFSET
    sides = (box[2] - box[0], box[3] - box[1]) * 2
    far = any(abs(a - b) >= pixels and abs(a - b) > share * side for a, b, side in zip(box, other, sides, strict=True))
    return far or _iou(box, other) < MIN_BOX_MASK_IOU


def _iou(box: Box, other: Box) -> float:
    height, width = (max(0.0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in (0, 1))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return height * width / (sum(areas) - height * width)


def _corners(box: Sequence[float]) -> str:
    y1, x1, y2, x2 = (f"{side:g}" for side in np.round(box, 1))
    return f"x {x1} to {x2}, y {y1} to {y2}"


def _in_parallel(work: Any, records: Sequence[Record], num_workers: int, progress: bool) -> Iterator[list[Fault]]:
    with (
        ThreadPoolExecutor(num_workers) as pool,
        Progress(console=Console(file=sys.stderr), disable=not progress) as bar,
    ):
        yield from bar.track(pool.map(work, records), total=len(records), description="reading images")


def _collect(faults: list[Fault], path: Path, error: DataError, label: str, entry: Any) -> None:
    faults.append(_fault(error, label, path, entry=entry))


def _fault(error: DataError, label: str, path: Path, file_name: str | None = None, entry: Any = None) -> Fault:
    message = str(error).removeprefix(f"{path}: ").removeprefix(f"{label}: ")
    record = f"{label} ({file_name})" if file_name is not None else label
    return Fault(error.kind, record, message, file_name, entry)


def _with_file_name(fault: Fault, names: Mapping[int, str]) -> Fault:
    """The fault with the picture that it is about, if that is known."""
    entry = fault.entry if isinstance(fault.entry, dict) else {}
    if isinstance(entry.get("image_id"), int):
        return replace(fault, file_name=names.get(entry["image_id"]))
    if fault.record.startswith("image") and isinstance(entry.get("file_name"), str):
        return replace(fault, file_name=entry["file_name"], record=f"{fault.record} ({entry['file_name']})")
    return fault


def _sound_entries(entries: Iterable[Any], image_ids: Container[int], faulty: set[int]) -> dict[int, Any]:
    """The annotations that were read, as they are in the file, by id; `faulty` has the `id()` of those that were not."""
    return {entry["id"]: entry for entry in entries if id(entry) not in faulty and entry["image_id"] in image_ids}


def _result(faults: Iterable[Fault], found: CocoAnnotations | None) -> DataCheck:
    faults = list(faults)
    records = found.records if found else ()
    names = [category["name"] for category in found.categories] if found else []
    counts = {name: dict.fromkeys(SIZES, 0) for name in names}
    items = [item for record in records for item in record.objects]
    for item in items:
        counts[names[item.class_id - 1]][next(size for size, limit in SIZES.items() if item.area < limit)] += 1
    return DataCheck(
        errors=tuple(fault for fault in faults if fault.kind not in WARNINGS),
        warnings=tuple(fault for fault in faults if fault.kind in WARNINGS),
        counts=counts,
        num_images=len(records),
        num_objects=len(items),
        num_crowd=sum(item.crowd for item in items),
        empty_images=tuple(record.file_name for record in records if not record.objects),
    )
