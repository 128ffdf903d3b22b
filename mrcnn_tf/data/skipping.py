"""Data without its faulty records: which are left out, and what then remains.

A faulty image goes with its annotations, and a faulty category likewise; a faulty annotation goes alone, and its image stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrcnn_tf.data.check import Fault, check_content, require_folder
from mrcnn_tf.data.coco import DataError, Section, parse_annotations, places_of
from mrcnn_tf.data.samples import few, require_image

NOT_SKIPPABLE = ("broken file", "too few images")
"""Kinds of `DataError` that are about a whole file, not about a record of it."""
_OF_MASKS = ("missing mask", "empty mask")
"""Kinds of fault that do not matter where boxes only are learned."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that is left out, and one of its faults: an entry of `skipped.json`.

    Attributes:
        kind: of the fault, and likewise `record`, `message` and `file_name`, as `mrcnn_tf.data.check.Fault` has them.
        section: the list of the file that the record is in.
        position: in that list, from 0.
        id: of the record, which finds it whatever becomes of the others; None where it has none of its own, and is found by its
            position.
    """

    kind: str
    record: str
    message: str
    file_name: str | None
    section: Section
    position: int
    id: int | None


def find_skipped(
    content: Mapping[str, Any],
    path: Path,
    folder: Path,
    *,
    categories: Iterable[Mapping[str, Any]] | None = None,
    masks: bool = True,
    progress: bool = False,
) -> tuple[Skipped, ...]:
    """Read all of a data set for the records that cannot be used.

    Args:
        content: of the annotation file (`load_coco`).
        path: of the annotation file.
        folder: of the images.
        categories: `{"id", "name"}` that annotations may name; None: those of the file.
        masks: whether masks are learned; otherwise an object may have none.
        progress: show a bar on stderr.

    Returns:
        Every error that `mrcnn_tf.data.check` finds; a record with several faults comes several times.

    Raises:
        DataError: the file cannot be used whatever is left out of it.
        NotADirectoryError: `folder` is none.
    """
    require_folder(folder)
    faults: list[Fault] = []
    check_content(content, path, folder, faults, categories=categories, progress=progress)
    return skipped_records((f for f in faults if f.is_error and (masks or f.kind not in _OF_MASKS)), content)


def skipped_records(faults: Iterable[Fault], content: Mapping[str, Any]) -> tuple[Skipped, ...]:
    """The records that have these faults.

    Args:
        faults: with their places.
        content: of the annotation file that they are in.

    Returns:
        One for each fault.
    """
    places = [(fault, fault.place) for fault in faults if fault.place is not None]
    times = {section: Counter(map(_id, content[section])) for section in {place.section for _, place in places}}
    return tuple(
        Skipped(
            kind=fault.kind,
            record=fault.record,
            message=fault.message,
            file_name=fault.file_name,
            section=place.section,
            position=place.position,
            id=_id(place.entry) if times[place.section][_id(place.entry)] == 1 else None,
        )
        for fault, place in places
    )


def unknown_categories(content: Mapping[str, Any], path: Path, known: Collection[int]) -> list[Fault]:
    """The categories of a file that a model does not have, as faults.

    Args:
        content: of the annotation file.
        path: of the annotation file, for messages.
        known: ids of the model's categories.

    Raises:
        DataError: the file has no list of categories.
    """
    message = f"the model does not know it; it knows {str(sorted(known))[:80]}"
    unknown = (p for p in places_of(content, "categories", path) if _id(p.entry) is not None and _id(p.entry) not in known)
    return [Fault("unknown category", place.label, message, place=place) for place in unknown]


def without(content: Mapping[str, Any], skipped: Sequence[Skipped]) -> Mapping[str, Any]:
    """A COCO file without some records.

    Args:
        content: of the file; left as it is.
        skipped: to leave out. What the file does not have (any more) is passed over.

    Returns:
        The content that remains: without the records, and without the annotations of images and categories that are gone.
    """
    left, gone = dict(content), {}
    for section in {item.section for item in skipped}:
        of_section = [item for item in skipped if item.section == section]
        ids = {item.id for item in of_section if item.id is not None}
        positions = {item.position for item in of_section if item.id is None}
        left[section] = [e for i, e in enumerate(content[section]) if i not in positions and _id(e) not in ids]
        gone[section] = set(map(_id, content[section])) - set(map(_id, left[section])) - {None}
    images, categories = gone.get("images", set()), gone.get("categories", set())
    if images or categories:
        entries = left["annotations"]
        left["annotations"] = [e for e in entries if _id(e, "image_id") not in images and _id(e, "category_id") not in categories]
    return left


def require_rest(content: Mapping[str, Any], rest: Mapping[str, Any], skipped: Sequence[Skipped], path: Path) -> None:
    """See that something can be used.

    Args:
        content: of the annotation file.
        rest: of it that remains (`without`).
        skipped: what was left out.
        path: of the annotation file.

    Raises:
        DataError: no image is left, or no object of those that there were.
    """
    for section, what in (("images", "images"), ("annotations", "objects")):
        if content[section] and not rest[section]:
            first = f"; the first fault: {skipped[0].kind}: {skipped[0].record}: {skipped[0].message}" if skipped else ""
            message = f"nothing usable is left: all {len(content[section])} {what} are faulty or go with what is"
            raise DataError(f"{path}: {message}{first}", "broken file")


def require_sound(content: Mapping[str, Any], path: Path, folder: Path, known: Collection[int]) -> None:
    """See that a data set can be evaluated on, as far as can be told without reading its images.

    Args:
        content: of the annotation file.
        path: of the annotation file.
        folder: of the images.
        known: ids of the model's categories.

    Raises:
        DataError: a record is faulty, an image file is missing, the model does not know a category, or there are no images.
    """
    found = parse_annotations(content, path)
    for fault in unknown_categories(content, path, known):
        raise DataError(f"{path}: {fault.record}: {fault.message}", fault.kind)
    if not found.records:
        raise DataError(f"{path}: there are no images to evaluate on", "broken file")
    for record in found.records:
        require_image(folder, record, path)


def summary_lines(content: Mapping[str, Any], rest: Mapping[str, Any], skipped: Sequence[Skipped]) -> list[str]:
    """What was left out of a file, counted by kind of fault, the first named.

    Args:
        content: of the annotation file.
        rest: of it that remains (`without`).
        skipped: what was left out; a record with several faults counts as of the first.
    """
    first = {(item.section, item.position): item for item in reversed(skipped)}
    lines = []
    for section, what in (("images", "images"), ("categories", "categories"), ("annotations", "objects")):
        faulty = sorted((item for item in first.values() if item.section == section), key=lambda item: item.position)
        lost = len(content[section]) - len(rest[section]) if section in content else 0
        kinds = [f"{count} {kind}" for kind, count in Counter(item.kind for item in faulty).items()]
        kinds += [f"{lost - len(faulty)} with their image or category"] if lost > len(faulty) else []
        if kinds:
            named = f": {few([item.record for item in faulty])}" if faulty else ""
            lines.append(f"left out {lost} of {len(content[section])} {what} ({', '.join(kinds)}){named}")
    return lines


def _id(entry: Any, key: str = "id") -> int | None:
    value = entry.get(key) if isinstance(entry, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
