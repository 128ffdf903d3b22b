"""A whole data set read once, with every fault in it.

Errors are what training refuses, or could learn nothing right from; warnings are what it takes but may not be meant. The rules
of the records are those of `mrcnn_tf.data.coco`; what can be said only with the picture or the mask at hand is added here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from mrcnn_tf.data.coco import CocoAnnotations, DataError, Place, Record, load_coco, parse_annotations, places_of
from mrcnn_tf.data.images import ImageFolder
from mrcnn_tf.data.object_faults import object_faults
from mrcnn_tf.data.samples import MISSING_MASK, missing_masks, read_image, require_image

SIZES = {"small": 32.0**2, "medium": 96.0**2, "large": float("inf")}
"""COCO's sizes: the first whose limit (square pixels) is above the `area` of an object."""
WARNINGS = ("box and mask", "box beyond image")
"""Kinds of fault that do not make a data set unusable."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong.

    `kind` is a short name ("unknown category"), `record` what it is wrong with ("annotation 17", "image 3 (a.jpg)", "file"),
    `message` what was expected and what came. `file_name` is the picture's, if there is one to look at. `place` is where the
    record is in the file; None where the file as a whole is wrong.
    """

    kind: str
    record: str
    message: str
    file_name: str | None = None
    place: Place | None = field(default=None, compare=False, repr=False)

    @property
    def is_error(self) -> bool:
        """Whether training refuses it; otherwise it is a warning."""
        return self.kind not in WARNINGS


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
    require_folder(folder)
    faults: list[Fault] = []
    try:
        found = check_content(load_coco(path), path, folder, faults, num_workers=num_workers, progress=progress)
    except DataError as error:
        faults.append(_fault(error, path))
        found = None
    return _result(faults, found)


def check_content(
    content: Mapping[str, Any],
    path: Path,
    folder: ImageFolder,
    faults: list[Fault],
    *,
    categories: Iterable[Mapping[str, Any]] | None = None,
    num_workers: int | None = None,
    progress: bool = False,
) -> CocoAnnotations:
    """As `check_data`, of a file that is already loaded.

    Args:
        content: of the file (`load_coco`).
        path: of the file, for messages.
        folder: of the images.
        faults: gets every fault, those found before an error is raised too.
        categories: `{"id", "name"}` that annotations may name; None: those of the file.
        num_workers: as of `check_data`.
        progress: as of `check_data`.

    Returns:
        The records that were read.

    Raises:
        DataError: images, annotations or categories is no list, or no category is left.
    """
    found, images, objects = check_entries(content, path, faults, categories=categories)
    work = partial(_check_record, folder=folder, path=path, images=images, objects=objects)
    for more in _in_parallel(work, found.records, num_workers or os.cpu_count() or 1, progress):
        faults += more
    return found


def check_entries(
    content: Mapping[str, Any],
    path: Path,
    faults: list[Fault],
    *,
    categories: Iterable[Mapping[str, Any]] | None = None,
) -> tuple[CocoAnnotations, dict[int, Place], dict[int, Place]]:
    """The part of `check_content` that needs neither pictures nor masks; its arguments and errors.

    Returns:
        The records that were read, and the places of their images and objects by ids.
    """
    told: list[Fault] = []
    try:
        found = parse_annotations(content, path, categories, report=partial(_collect, told, path))
    except DataError:
        faults += told
        raise
    names = {record.image_id: record.file_name for record in found.records}
    told = [_with_file_name(fault, names) for fault in told]
    faulty = {fault.place for fault in told}
    images = {place.entry["id"]: place for place in places_of(content, "images", path) if place not in faulty}
    # Those of a faulty image were not looked at, and may lack anything.
    sound = (place for place in places_of(content, "annotations", path) if place not in faulty)
    objects = {place.entry["id"]: place for place in sound if place.entry["image_id"] in names}
    for item in missing_masks(found):
        place = objects[item.annotation_id]
        told.append(Fault("missing mask", place.label, MISSING_MASK, names[place.entry["image_id"]], place))
    faults += told
    return found, images, objects


def require_folder(folder: ImageFolder) -> None:
    """See that a folder of images is one.

    Raises:
        NotADirectoryError: it is not.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder of images")


def _check_record(
    record: Record, folder: ImageFolder, path: Path, images: Mapping[int, Place], objects: Mapping[int, Place]
) -> list[Fault]:
    """What is wrong with the picture and the objects of an image; the records' places by their ids."""
    faults = []
    try:
        require_image(folder, record, path)
        read_image(folder, record, path)
    except DataError as error:
        faults.append(_fault(error, path, images[record.image_id], record.file_name))
    for item in record.objects:
        place = objects[item.annotation_id]
        found = object_faults(item, record, place.entry)
        faults += [Fault(kind, place.label, message, record.file_name, place) for kind, message in found]
    return faults


def _in_parallel(work: Any, records: Sequence[Record], num_workers: int, progress: bool) -> Iterator[list[Fault]]:
    with (
        ThreadPoolExecutor(num_workers) as pool,
        Progress(console=Console(file=sys.stderr), disable=not progress) as bar,
    ):
        yield from bar.track(pool.map(work, records), total=len(records), description="reading images")


def _collect(faults: list[Fault], path: Path, error: DataError, place: Place) -> None:
    faults.append(_fault(error, path, place))


def _fault(error: DataError, path: Path, place: Place | None = None, file_name: str | None = None) -> Fault:
    label = "file" if place is None else place.label
    message = str(error).removeprefix(f"{path}: ").removeprefix(f"{label}: ")
    record = f"{label} ({file_name})" if file_name is not None else label
    return Fault(error.kind, record, message, file_name, place)


def _with_file_name(fault: Fault, names: Mapping[int, str]) -> Fault:
    """The fault with the picture that it is about, if that is known."""
    assert fault.place is not None
    entry = fault.place.entry if isinstance(fault.place.entry, dict) else {}
    if isinstance(entry.get("image_id"), int):
        return replace(fault, file_name=names.get(entry["image_id"]))
    if fault.place.section == "images" and isinstance(entry.get("file_name"), str):
        return replace(fault, file_name=entry["file_name"], record=f"{fault.record} ({entry['file_name']})")
    return fault


def _result(faults: Iterable[Fault], found: CocoAnnotations | None) -> DataCheck:
    faults = list(faults)
    records = found.records if found else ()
    names = [category["name"] for category in found.categories] if found else []
    counts = {name: dict.fromkeys(SIZES, 0) for name in names}
    items = [item for record in records for item in record.objects]
    for item in items:
        counts[names[item.class_id - 1]][next(size for size, limit in SIZES.items() if item.area < limit)] += 1
    return DataCheck(
        errors=tuple(fault for fault in faults if fault.is_error),
        warnings=tuple(fault for fault in faults if not fault.is_error),
        counts=counts,
        num_images=len(records),
        num_objects=len(items),
        num_crowd=sum(item.crowd for item in items),
        empty_images=tuple(record.file_name for record in records if not record.objects),
    )
