"""COCO JSON files, read into typed records and written back.

Here, and only here, COCO's `[x, y, w, h]` becomes `[y1, x1, y2, x2]` and its category ids become classes 1..K. A fault stops
with the file and the record named, or is reported and its record left out (`parse_annotations`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

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
from mrcnn_tf.data.images import ImageFile

Section: TypeAlias = Literal["images", "annotations", "categories"]
"""A list of records in a COCO file."""
_SINGULAR: dict[Section, str] = {"images": "image", "annotations": "annotation", "categories": "category"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is in its file.

    Attributes:
        section: the list that it is in.
        position: in that list, from 0.
        entry: the record as it is in the file.
    """

    section: Section
    position: int
    entry: Any = field(compare=False, repr=False)

    @property
    def label(self) -> str:
        """How messages call the record: by its id ("annotation 17"), or by its position where it has none."""
        has_id = isinstance(self.entry, dict) and "id" in self.entry
        return f"{_SINGULAR[self.section]} {self.entry['id'] if has_id else f'at position {self.position}'}"


Report: TypeAlias = Callable[[DataError, Place], None]
"""Is told of a fault and of the record that has it."""


def read_categories(path: str | Path) -> tuple[dict[str, Any], ...]:
    """Categories of a COCO JSON file, sorted by id.

    Args:
        path: of the file.

    Returns:
        `{"id": int, "name": str}`; position i is class i + 1.

    Raises:
        DataError: the file is missing or broken, or its categories are.
    """
    return parse_categories(load_coco(path), path)


def parse_categories(content: Mapping[str, Any], path: str | Path, report: Report | None = None) -> tuple[dict[str, Any], ...]:
    """The categories of a COCO file that is already loaded, as `read_categories` gives them; arguments of `parse_annotations`.

    Raises:
        DataError: with `report`, only where categories is no list or none is left. Without, as `read_categories`.
    """
    report = report or _stop
    found: dict[int, dict[str, Any]] = {}
    seen: set[int] = set()
    for place in places_of(content, "categories", path):
        where = f"{path}: {place.label}"
        parts = (partial(field_of, place.entry, "id", int, where), partial(field_of, place.entry, "name", str, where))
        values = all_parts(parts, partial(_tell, report, place))
        if values is not None and _is_new(values[0], seen, path, place, report):
            found[values[0]] = {"id": values[0], "name": values[1]}
    if not found:
        raise DataError(f"{path}: categories is empty", "broken file")
    return tuple(found[category_id] for category_id in sorted(found))


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
    chosen = parse_categories(content, path, report) if categories is None else tuple(dict(c) for c in categories)
    classes = {category["id"]: index for index, category in enumerate(chosen, 1)}
    images = _images(content, path, report)
    objects: dict[int, list[CocoObject]] = {image_id: [] for image_id in images}
    seen: set[int] = set()
    for place in places_of(content, "annotations", path):
        found = object_of(place.entry, classes, images, f"{path}: {place.label}", partial(_tell, report, place))
        if found is not None and _is_new(found[1].annotation_id, seen, path, place, report):
            objects[found[0]].append(found[1])
    records = (Record(i, r.file_name, r.height, r.width, tuple(objects[i])) for i, r in images.items() if r is not None)
    return CocoAnnotations(path, chosen, tuple(records))


def places_of(content: Mapping[str, Any], section: Section, path: str | Path) -> Iterator[Place]:
    """The records of a list of a COCO file, unchecked, with their positions.

    Raises:
        DataError: it is missing or no list.
    """
    try:
        entries = field_of(content, section, list, str(path))
    except DataError as error:
        raise DataError(str(error), "broken file") from error
    return (Place(section, position, entry) for position, entry in enumerate(entries))


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


def load_coco(path: str | ImageFile) -> dict[str, Any]:
    """The JSON of a COCO file, unchecked but for being an object; images of LVIS get a `file_name` (`with_file_names`).

    Args:
        path: of the file; it may be a member of an archive (`mrcnn_tf.data.archives`).

    Raises:
        DataError: the file is missing, not readable, or broken or truncated JSON (with line and column).
    """
    path = Path(path) if isinstance(path, str) else path
    try:
        with path.open("rb") as file:
            content = json.loads(file.read())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such annotation file", "broken file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable: {error}", "broken file") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: broken or truncated JSON: {error}", "broken file") from error
    if not isinstance(content, dict):
        expected = "expected a COCO object with images, annotations and categories"
        raise DataError(f"{path}: {expected}, got a {type_name(content)}", "broken file")
    return with_file_names(content)


def with_file_names(content: dict[str, Any]) -> dict[str, Any]:
    """A COCO file whose images have the `file_name` that LVIS leaves out: the folder and the name at the end of `coco_url`."""
    images = content.get("images")
    if not isinstance(images, list):
        return content
    return {**content, "images": [_with_file_name(entry) for entry in images]}


def _with_file_name(entry: Any) -> Any:
    url = entry.get("coco_url") if isinstance(entry, dict) else None
    if not isinstance(url, str) or "file_name" in entry:
        return entry
    return {**entry, "file_name": "/".join(url.split("/")[-2:])}


def _images(content: Mapping[str, Any], path: Path, report: Report) -> dict[int, Record | None]:
    """By id; None where the image is faulty, so that its annotations are not taken for those of an unknown image."""
    found: dict[int, Record | None] = {}
    seen: set[int] = set()
    for place in places_of(content, "images", path):
        image = image_record(place.entry, f"{path}: {place.label}", partial(_tell, report, place))
        if image is None:
            image_id = place.entry.get("id") if isinstance(place.entry, dict) else None
            if isinstance(image_id, int):
                found.setdefault(image_id, None)
        elif _is_new(image.image_id, seen, path, place, report):
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


def _is_new(record_id: int, seen: set[int], path: str | Path, place: Place, report: Report) -> bool:
    """Whether no earlier record of this list has the id; otherwise that is reported."""
    if record_id in seen:
        message = f"{_SINGULAR[place.section]} ids must be unique, got {record_id} more than once"
        report(DataError(f"{path}: {place.label}: {message}", "duplicate id"), place)
        return False
    seen.add(record_id)
    return True


def _tell(report: Report, place: Place, error: DataError) -> None:
    report(error, place)


def _stop(error: DataError, place: Place) -> NoReturn:
    raise error
