"""What `mrcnn-tf check-data` prints and writes about a data set that was checked."""

from __future__ import annotations

import io
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mrcnn_tf.data.check import SIZES, DataCheck, Fault
from mrcnn_tf.data.coco import Place
from mrcnn_tf.data.coco_records import DataError, read_segmentation
from mrcnn_tf.data.images import ImageError, load_image
from mrcnn_tf.files import write_json
from mrcnn_tf.pages import data_url, write_page
from mrcnn_tf.visualize import draw_ground_truth

NUM_LINES = 50
"""Faults that are printed; the files have all."""
NUM_PICTURES = 12

_LONGEST_EDGE = 800
"""Pixels of a picture in the page."""
_DRAWN_CLASS = 1


def summary_lines(check: DataCheck, num_lines: int = NUM_LINES) -> list[str]:
    """The faults, errors first, and what is in the data set, as lines of text.

    Args:
        check: of the data set.
        num_lines: faults shown at most; the others are counted.
    """
    lines = fault_lines(check.errors, check.warnings, num_lines)
    sizes = ", ".join(f"{sum(row[size] for row in check.counts.values())} {size}" for size in SIZES)
    empty = f", {len(check.empty_images)} of them without objects" if check.empty_images else ""
    lines.append(
        f"{check.num_images} images{empty}; {check.num_objects} objects ({sizes}), {check.num_crowd} of them crowd regions"
    )
    return lines


def fault_lines(errors: Sequence[Fault], warnings: Sequence[Fault], num_lines: int = NUM_LINES) -> list[str]:
    """Faults as lines of text, errors first, and how many there are of each kind.

    Args:
        errors: to show.
        warnings: to show.
        num_lines: faults shown at most; the others are counted.
    """
    marked = [("error", fault) for fault in errors] + [("warning", fault) for fault in warnings]
    lines = [f"{mark}: {fault.kind}: {_place(fault)}: {fault.message}" for mark, fault in marked[:num_lines]]
    if len(marked) > num_lines:
        lines.append(f"... and {len(marked) - num_lines} more")
    for name, faults in (("errors", errors), ("warnings", warnings)):
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(fault.kind for fault in faults).items())
        lines.append(f"{name}: {len(faults)}" + (f" ({kinds})" if kinds else ""))
    return lines


def write_check(check: DataCheck, images: str | Path, output: str | Path, *, title: str) -> None:
    """Write `faults.json`, which has everything, and `index.html`, with pictures of faulty records.

    Args:
        check: of the data set.
        images: folder of the images.
        output: folder, made if it is not there.
        title: of the page.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(
        {
            "num_images": check.num_images,
            "num_objects": check.num_objects,
            "num_crowd": check.num_crowd,
            "counts": {name: dict(row) for name, row in check.counts.items()},
            "empty_images": list(check.empty_images),
            "errors": [_as_dict(fault) for fault in check.errors],
            "warnings": [_as_dict(fault) for fault in check.warnings],
        },
        output / "faults.json",
    )
    write_page(
        output / "index.html",
        "data_check.html.j2",
        title=title,
        headline=[
            ("errors", len(check.errors)),
            ("warnings", len(check.warnings)),
            ("images", check.num_images),
            ("without objects", len(check.empty_images)),
            ("objects", check.num_objects),
            ("crowd regions", check.num_crowd),
        ],
        sizes=list(SIZES),
        counts=[(name, [row[size] for size in SIZES], sum(row.values())) for name, row in check.counts.items()],
        lists=[
            (name, [(fault.kind, _place(fault), fault.message) for fault in faults])
            for name, faults in (("Errors", check.errors), ("Warnings", check.warnings))
            if faults
        ],
        pictures=_pictures(check, Path(images)),
    )


def _place(fault: Fault) -> str:
    """The record, and for an annotation its picture."""
    is_named = fault.file_name is None or fault.record.startswith("image")
    return fault.record if is_named else f"{fault.record} of {fault.file_name}"


def _as_dict(fault: Fault) -> dict[str, Any]:
    return {"kind": fault.kind, "record": fault.record, "message": fault.message, "file_name": fault.file_name}


def _pictures(check: DataCheck, folder: Path) -> list[tuple[str, str]]:
    """(caption, image) of faulty records, each once, all kinds in turn so that a frequent one does not crowd out the others."""
    by_kind: dict[str, dict[str, Fault]] = defaultdict(dict)
    seen: set[str] = set()
    for fault in (*check.errors, *check.warnings):
        if fault.file_name is not None and fault.record not in seen:
            seen.add(fault.record)
            by_kind[fault.kind][fault.record] = fault
    turns = itertools.zip_longest(*(faults.values() for faults in by_kind.values()))
    drawn = (_picture(fault, folder) for turn in turns for fault in turn if fault is not None)
    return list(itertools.islice((picture for picture in drawn if picture is not None), NUM_PICTURES))


def _picture(fault: Fault, folder: Path) -> tuple[str, str] | None:
    """None where the image cannot be read."""
    assert fault.file_name is not None
    try:
        image = load_image(folder / fault.file_name)
    except ImageError:
        return None
    drawing = draw_ground_truth(image, _drawable(fault.place, image.shape[:2]), {_DRAWN_CLASS: fault.kind})
    picture = Image.fromarray(drawing)
    picture.thumbnail((_LONGEST_EDGE, _LONGEST_EDGE))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return f"{fault.kind}: {_place(fault)}: {fault.message}", data_url(buffer.getvalue(), ".jpg")


def _drawable(place: Place | None, image_size: tuple[int, ...]) -> list[dict[str, Any]]:
    """What can be drawn of a record with whatever fault: its box and its mask, cut at the image; nothing without a box."""
    entry = None if place is None else place.entry
    if not isinstance(entry, Mapping):
        return []
    box = _box(entry.get("bbox"), image_size)
    if box is None:
        return []
    return [{"category_id": _DRAWN_CLASS, "bbox": box, "segmentation": _mask(entry, image_size)}]


def _box(bbox: Any, image_size: tuple[int, ...]) -> list[float] | None:
    try:
        x, y, width, height = np.array(bbox, np.float64).tolist()
    except (TypeError, ValueError, OverflowError):
        return None
    if not np.isfinite([x, y, width, height]).all():
        return None
    x1, x2 = np.clip(sorted((x, x + width)), 0, image_size[1]).tolist()
    y1, y2 = np.clip(sorted((y, y + height)), 0, image_size[0]).tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def _mask(entry: Mapping[str, Any], image_size: tuple[int, ...]) -> Any:
    """Polygons or RLE; None where there is none that fits the image."""
    height, width = image_size
    try:
        segmentation = read_segmentation(entry, (height, width), "")
    except DataError:
        return None
    if isinstance(segmentation, Sequence):
        # Rasterising takes memory by the length of the outline, wherever it lies.
        return [np.clip(p.reshape(-1, 2), 0, [width, height]).ravel().tolist() for p in segmentation]
    return segmentation
