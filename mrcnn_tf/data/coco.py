"""COCO JSON files, read into typed records and written back.

Here, and only here, COCO's `[x, y, w, h]` becomes `[y1, x1, y2, x2]` and its category ids become classes 1..K. A fault stops
with the file and the record named, or is reported and its record left out (`parse_annotations`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np

from mrcnn_tf.data.coco_records import (
    CocoAnnotations,
    CocoObject,
    DataError,
    Record,
    all_parts,
    field_of,
    image_record,
    object_of,
    type_name,
)

Report: TypeAlias = Callable[[DataError, str, Any], None]
"""Is told of a fault, how its record is called ("annotation 17") and the record as it is in the file."""


def read_categories(path: str | Path) -> tuple[dict[str, Any], ...]:
    """Categories of a COCO JSON file, sorted by id.

    Args:
        path: of the file.

    Returns:
        `{"id": int, "name": str}`; position i is class i + 1.

    Raises:
        DataError: the file is missing or broken, or its categories are.
    """
    return _categories(load_coco(path), str(path), _stop)


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
    return parse_annotations(load_coco(path), path, categories)


def parse_annotations(
    content: Mapping[str, Any],
    path: str | Path,
    categories: Iterable[Mapping[str, Any]] | None = None,
    report: Report | None = None,
) -> CocoAnnotations:
    """The records of a COCO file that is already loaded.

    Args:
        content: of the file (`load_coco`).
        path: of the file, for messages.
        categories: as for `read_annotations`.
        report: is told of every fault, and the faulty record is left out; of an image with its objects, which are then not
            looked at. None stops at the first.

    Returns:
        All images with their objects, those without any included.

    Raises:
        DataError: with `report`, only where images, annotations or categories are no list, or no category is left. Without,
            as `read_annotations`.
    """
    path, report = Path(path), report or _stop
    chosen = _categories(content, str(path), report) if categories is None else tuple(dict(c) for c in categories)
    classes = {category["id"]: index for index, category in enumerate(chosen, 1)}
    images = _images(content, str(path), report)
    objects: dict[int, list[CocoObject]] = {image_id: [] for image_id in images}
    seen: set[int] = set()
    for position, entry in enumerate(field_of(content, "annotations", list, str(path))):
        label = f"annotation {_name(entry, position)}"
        found = object_of(entry, classes, images, f"{path}: {label}", partial(_tell, report, label, entry))
        if found is not None and _is_new(found[1].annotation_id, seen, path, label, entry, report):
            objects[found[0]].append(found[1])
    records = (Record(i, r.file_name, r.height, r.width, tuple(objects[i])) for i, r in images.items() if r is not None)
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


def load_coco(path: str | Path) -> dict[str, Any]:
    """The JSON of a COCO file, unchecked but for being an object.

    Raises:
        DataError: the file is missing, not readable, or broken or truncated JSON (with line and column).
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such annotation file", "broken file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable: {error}", "broken file") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: broken or truncated JSON: {error}", "broken file") from error
    if not isinstance(content, dict):
        expected = "expected a COCO object with images, annotations and categories"
        raise DataError(f"{path}: {expected}, got a {type_name(content)}", "broken file")
    return content


def _categories(content: Mapping[str, Any], path: str, report: Report) -> tuple[dict[str, Any], ...]:
    found: dict[int, dict[str, Any]] = {}
    seen: set[int] = set()
    for position, entry in enumerate(field_of(content, "categories", list, path)):
        label = f"category {_name(entry, position)}"
        where = f"{path}: {label}"
        parts = (partial(field_of, entry, "id", int, where), partial(field_of, entry, "name", str, where))
        values = all_parts(parts, partial(_tell, report, label, entry))
        if values is not None and _is_new(values[0], seen, path, label, entry, report):
            found[values[0]] = {"id": values[0], "name": values[1]}
    if not found:
        raise DataError(f"{path}: categories is empty")
    return tuple(found[category_id] for category_id in sorted(found))


def _images(content: Mapping[str, Any], path: str, report: Report) -> dict[int, Record | None]:
    """By id; None where the image is faulty, so that its annotations are not taken for those of an unknown image."""
    found: dict[int, Record | None] = {}
    seen: set[int] = set()
    for position, entry in enumerate(field_of(content, "images", list, path)):
        label = f"image {_name(entry, position)}"
        image = image_record(entry, f"{path}: {label}", partial(_tell, report, label, entry))
        if image is None:
            image_id = entry.get("id") if isinstance(entry, dict) else None
            if isinstance(image_id, int):
                found.setdefault(image_id, None)
        elif _is_new(image.image_id, seen, path, label, entry, report):
            found[image.image_id] = image
    return found


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


def _name(entry: Any, position: int) -> str:
    """How a message calls a record: by its id, or by its place in the list where it has none."""
    return str(entry["id"]) if isinstance(entry, dict) and "id" in entry else f"at position {position}"


def _is_new(record_id: int, seen: set[int], path: str | Path, label: str, entry: Any, report: Report) -> bool:
    """Whether no earlier record of this list has the id; otherwise that is reported."""
    if record_id in seen:
        kind = label.split()[0]
        report(
            DataError(f"{path}: {label}: {kind} ids must be unique, got {record_id} more than once", "duplicate id"), label, entry
        )
        return False
    seen.add(record_id)
    return True


def _tell(report: Report, label: str, entry: Any, error: DataError) -> None:
    report(error, label, entry)


def _stop(error: DataError, label: str, entry: Any) -> NoReturn:
    raise error
