"""What `mrcnn-tf predict` leaves of pictures: a drawing of each, and one `detections.json`. TensorFlow is not needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from mrcnn_tf.data.images import ImageError
from mrcnn_tf.detections import Detections
from mrcnn_tf.files import write_json, write_png
from mrcnn_tf.visualize import draw_detections

FindInFile = Callable[[Path], tuple[NDArray[np.uint8], Detections]]
"""A picture's file -> the picture, uint8 RGB [h, w, 3], and what is found in it; raises `ImageError` for what is no picture."""


def write_predictions(
    find: FindInFile, paths: Sequence[str | Path], output_dir: str | Path, *, score_threshold: float = 0.5, progress: bool = True
) -> dict[str, Any]:
    """Draw what is found in pictures, and write it down.

    `output_dir` gets `<stem>.png` for each picture and one `detections.json` (see docs/contracts.md). Of pictures with the same
    stem the first keeps it and the others become `<stem>-2.png`, `<stem>-3.png` and so on, in the order of `paths`. `file_name`
    is the path from the folder that all pictures have in common. A picture that cannot be read is reported, the rest go on.

    Args:
        find: reads a picture and finds its objects.
        paths: the pictures.
        output_dir: made if it is not there.
        score_threshold: detections with a lower score are neither drawn nor written.
        progress: show a progress bar on stderr.

    Returns:
        `{"images": number of pictures done, "detections": number of objects, "drawings": [Path], "errors": {path: message}}`.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    sources = [Path(path) for path in paths]
    records: list[dict[str, Any]] = []
    drawings: list[Path] = []
    errors: dict[str, str] = {}
    names = zip(sources, _relative_names(sources), _drawing_names(sources), strict=True)
    with Progress(console=Console(file=sys.stderr), disable=not progress) as bar:
        for source, file_name, drawing in bar.track(list(names), description="predicting"):
            try:
                image, found = find(source)
            except ImageError as error:
                errors[str(source)] = str(error)
                print(f"warning: left out: {error}", file=sys.stderr)
                continue
            found = found.above(score_threshold)
            records += found.to_records(file_name)
            drawings.append(output_dir / drawing)
            write_png(draw_detections(image, found, score_threshold=score_threshold), drawings[-1])
    write_json(records, output_dir / "detections.json")
    return {"images": len(drawings), "detections": len(records), "drawings": drawings, "errors": errors}


def _relative_names(paths: Sequence[Path]) -> list[str]:
    folders = [os.path.abspath(path.parent) for path in paths]
    common = os.path.commonpath(folders) if folders else ""
    return [
        Path(os.path.relpath(Path(folder, path.name), common)).as_posix() for folder, path in zip(folders, paths, strict=True)
    ]


def _drawing_names(paths: Iterable[Path]) -> list[str]:
    stems = [path.stem for path in paths]
    # Compared without case, for file systems that do not tell `A.png` from `a.png`.
    taken: set[str] = set()
    reserved = {stem.lower() for stem in stems}
    names = []
    for stem in stems:
        name, number = stem, 1
        while name.lower() in taken or (number > 1 and name.lower() in reserved):
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(f"{name}.png")
    return names
