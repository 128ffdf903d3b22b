"""COCO JSON files, read into typed records and written back.

Here, and only here, COCO's `[x, y, w, h]` becomes `[y1, x1, y2, x2]` and its category ids become classes 1..K. Every fault
stops with the file and the record named.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_tf.data.masks import Segmentation, segmentation_to_rle


class DataError(ValueError):
    """Annotations that cannot be used; the message names the file and the record, what was expected and what came."""


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


def read_categories(path: str | Path) -> tuple[dict[str, Any], ...]:
    """Categories of a COCO JSON file, sorted by id.

    Args:
        path: of the file.

    Returns:
        `{"id": int, "name": str}`; position i is class i + 1.

    Raises:
        DataError: the file is missing or broken, or its categories are.
    """
    return _categories(_load(Path(path)), str(path))


def read_annotations(path: str | Path, categories: Iterable[Mapping[str, Any]] | None = None) -> CocoAnnotations:
    """Read a COCO JSON file.

    Args:
        path: of the file.
        categories: `{"id", "name"}` in class order; None takes the file's, sorted by id.

    Returns:
        All images with their objects, those without any included.

    Raises:
        DataError: the file is missing, truncated or not COCO; a key is missing or of the wrong type; an annotation names an
            unknown image or category, has an impossible box or a malformed segmentation.
    """
    path = Path(path)
    content = _load(path)
    chosen = _categories(content, str(path)) if categories is None else tuple(dict(c) for c in categories)
    classes = {category["id"]: index for index, category in enumerate(chosen, 1)}
    images = _images(content, str(path))
    objects: dict[int, list[CocoObject]] = {image_id: [] for image_id in images}
    for position, entry in enumerate(_field(content, "annotations", list, str(path))):
        where = f"{path}: annotation {_name(entry, position)}"
        image_id = _field(entry, "image_id", int, where)
        if image_id not in images:
            raise DataError(f"{where}: image_id {image_id} is not among the images of the file")
        objects[image_id].append(_object(entry, classes, images[image_id], where))
    records = (Record(i, image.file_name, image.height, image.width, tuple(objects[i])) for i, image in images.items())
    return CocoAnnotations(path, chosen, tuple(records))


def write_coco(path: str | Path, records: Iterable[Record], categories: Sequence[Mapping[str, Any]]) -> Path:
    """Write records as a COCO JSON file that `read_annotations` and pycocotools read.

    Args:
        path: of the file; it appears complete or not at all.
        records: with classes that index `categories`.
        categories: `{"id", "name"}` in class order.

    Returns:
        The path.
    """
    path = Path(path)
    images, annotations = [], []
    for record in records:
        size = {"height": record.height, "width": record.width}
        images.append({"id": record.image_id, "file_name": record.file_name, **size})
        annotations += [_annotation(item, record.image_id, categories) for item in record.objects]
    content = {"images": images, "annotations": annotations, "categories": [dict(c) for c in categories]}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, path)
    return path


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such annotation file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable: {error}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: broken or truncated JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a COCO object with images, annotations and categories, got a {_kind(content)}")
    return content


def _categories(content: Mapping[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    found = []
    for position, entry in enumerate(_field(content, "categories", list, where)):
        label = f"{where}: category {_name(entry, position)}"
        found.append({"id": _field(entry, "id", int, label), "name": _field(entry, "name", str, label)})
    if not found:
        raise DataError(f"{where}: categories is empty")
    _unique([category["id"] for category in found], f"{where}: category")
    return tuple(sorted(found, key=lambda category: category["id"]))


def _images(content: Mapping[str, Any], where: str) -> dict[int, Record]:
    found = []
    for position, entry in enumerate(_field(content, "images", list, where)):
        label = f"{where}: image {_name(entry, position)}"
        height, width = (_field(entry, side, int, label) for side in ("height", "width"))
        if height < 1 or width < 1:
            raise DataError(f"{label}: height and width must be at least 1, got {height} and {width}")
        found.append(Record(_field(entry, "id", int, label), _field(entry, "file_name", str, label), height, width))
    _unique([image.image_id for image in found], f"{where}: image")
    return {image.image_id: image for image in found}


def _object(entry: Mapping[str, Any], classes: Mapping[int, int], image: Record, where: str) -> CocoObject:
    category = _field(entry, "category_id", int, where)
    if category not in classes:
        raise DataError(f"{where}: unknown category_id {category}; known are {sorted(classes)}")
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(f"{where}: iscrowd must be 0 or 1, got {crowd!r}")
    box = _box(_field(entry, "bbox", list, where), image, where)
    area = _field(entry, "area", (int, float), where) if "area" in entry else (box[2] - box[0]) * (box[3] - box[1])
    annotation_id = _field(entry, "id", int, where)
    return CocoObject(annotation_id, classes[category], box, area, bool(crowd), _segmentation(entry, image, where))


def _box(bbox: list[Any], image: Record, where: str) -> tuple[float, float, float, float]:
    if len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        raise DataError(f"{where}: bbox must be four finite numbers x, y, w, h, got {bbox!r}")
    x, y, width, height = bbox
    if width < 0 or height < 0:
        raise DataError(f"{where}: bbox must not have a negative width or height, got {bbox!r}")
    top, left, bottom, right = max(y, 0.0), max(x, 0.0), min(y + height, image.height), min(x + width, image.width)
    is_flat = width == 0 or height == 0  # COCO 2017 itself has two; they are left out of training and counted
    if not is_flat and (bottom <= top or right <= left):
        raise DataError(f"{where}: bbox {bbox!r} lies outside image {image.image_id} of {image.height} x {image.width} pixels")
    return float(top), float(left), float(bottom), float(right)


def _segmentation(entry: Mapping[str, Any], image: Record, where: str) -> Segmentation | None:
    value = entry.get("segmentation")
    if not value:
        return None
    if isinstance(value, dict):
        try:
            return segmentation_to_rle(value, (image.height, image.width))
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: segmentation: {error}") from error
    if not isinstance(value, list):
        raise DataError(f"{where}: segmentation must be a list of polygons or an RLE object, got a {_kind(value)}")
    return tuple(_polygon(polygon, where) for polygon in value)


def _polygon(value: Any, where: str) -> np.ndarray:
    try:
        polygon = np.array(value, np.float64)
    except (TypeError, ValueError):
        polygon = np.empty(0)
    if polygon.ndim != 1 or polygon.size < 6 or polygon.size % 2 or not np.isfinite(polygon).all():
        raise DataError(
            f"{where}: a polygon must be x, y of at least 3 points as one flat list of numbers, got {str(value)[:80]}"
        )
    return polygon


def _annotation(item: CocoObject, image_id: int, categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    top, left, bottom, right = item.box
    entry = {
        "id": item.annotation_id,
        "image_id": image_id,
        "category_id": categories[item.class_id - 1]["id"],
        "bbox": [left, top, right - left, bottom - top],
        "area": item.area,
        "iscrowd": int(item.crowd),
    }
    if isinstance(item.segmentation, Mapping):
        entry["segmentation"] = dict(item.segmentation)
    elif item.segmentation is not None:
        entry["segmentation"] = [np.asarray(polygon).tolist() for polygon in item.segmentation]
    return entry


def _field(entry: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object with {key!r}, got a {_kind(entry)}")
    if key not in entry:
        raise DataError(f"{where}: {key!r} is missing; there are {sorted(entry)}")
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise DataError(f"{where}: {key!r} must be {expected}, got {str(value)[:80]} ({_kind(value)})")
    return value


def _name(entry: Any, position: int) -> str:
    """How a message calls a record: by its id, or by its place in the list where it has none."""
    return str(entry["id"]) if isinstance(entry, dict) and "id" in entry else f"at position {position}"


def _unique(ids: list[int], where: str) -> None:
    twice = [key for key, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{where} ids must be unique, got {twice[:5]} more than once")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _kind(value: Any) -> str:
    return type(value).__name__
