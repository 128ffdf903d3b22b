"""COCO's figures of drawn detections: pycocotools alone, and ours.

    python -m benchmarks.peers.coco_figures FOLDER

draws truth and detections into FOLDER; with a worker's options (see `worker.py`) it measures a side.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.evaluation import HEIGHT, WIDTH, draw
from benchmarks.peers.worker import Repetition, serve
from mrcnn_tf.detections import Detections

IMAGES, OBJECTS, DETECTIONS, CLASSES, CELLS = 5000, 7, 20, 80, 28
TRUTH, RESULTS, FOUND = "instances.json", "detections.json", "found.npz"
_KINDS = ("bbox", "segm")


def prepare(*, task: str, folder: str) -> Repetition:
    """What is repeated."""
    return {"pycocotools": pycocotools, "tables": tables, "evaluate": evaluate}[task](Path(folder))


def write(folder: Path, num_images: int = IMAGES) -> None:
    """Truth, detections as arrays, and the same as COCO results with the run lengths of ellipses."""
    truth, drawn = draw(np.random.default_rng(0), num_images, OBJECTS, DETECTIONS, CLASSES)
    drawn.sort(key=lambda result: (result["image_id"], -result["score"]))
    boxes = np.array([result["bbox"] for result in drawn], np.float32)
    np.savez(
        folder / FOUND,
        boxes=np.concatenate([boxes[:, 1::-1], boxes[:, 1::-1] + boxes[:, :1:-1]], axis=1),
        classes=np.array([result["category_id"] for result in drawn], np.int32),
        scores=np.array([result["score"] for result in drawn], np.float32),
        ends=np.searchsorted([result["image_id"] for result in drawn], np.arange(num_images) + 1, side="right"),
    )
    (folder / TRUTH).write_text(json.dumps(truth))
    results = [result for number, found in enumerate(detections(folder), start=1) for result in found.to_results(number)]
    (folder / RESULTS).write_text(json.dumps(results))


def detections(folder: Path) -> Iterator[Detections]:
    """What was found in each image."""
    with np.load(folder / FOUND) as arrays:
        boxes, classes, scores, ends = (arrays[name] for name in ("boxes", "classes", "scores", "ends"))
    categories = tuple({"id": number, "name": str(number)} for number in range(1, CLASSES + 1))
    ellipse = _ellipse()
    for first, past in zip([0, *ends[:-1]], ends, strict=True):
        masks = np.broadcast_to(ellipse, (past - first, CELLS, CELLS))
        rows = slice(first, past)
        yield Detections(boxes[rows], classes[rows], scores[rows], masks, (HEIGHT, WIDTH), categories)


def pycocotools(folder: Path) -> Repetition:
    """Both files, read by pycocotools, and its tables."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def repeat() -> dict[str, Any]:
        figures = {}
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(folder / TRUTH))
            results = truth.loadRes(str(folder / RESULTS))
            for kind in _KINDS:
                evaluation = COCOeval(truth, results, kind)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                figures[kind] = float(evaluation.stats[0])
        return figures

    return repeat


def tables(folder: Path) -> Repetition:
    """Both files, read by us, and our figures."""
    from mrcnn_tf.evaluate import coco_metrics

    def repeat() -> dict[str, Any]:
        results = json.loads((folder / RESULTS).read_bytes())
        return {kind: coco_metrics(folder / TRUTH, results, kind)["AP"] for kind in _KINDS}

    return repeat


def evaluate(folder: Path) -> Repetition:
    """`mrcnn-tf evaluate` without pictures and network."""
    from mrcnn_tf.evaluate import evaluate as measure

    def repeat() -> dict[str, Any]:
        replayed = detections(folder)
        with tempfile.TemporaryDirectory() as output:
            found = measure(lambda _: next(replayed), _OnePixel(), folder / TRUTH, output, score_threshold=0, progress=False)
        return {kind: found[kind]["AP"] for kind in _KINDS}

    return repeat


class _OnePixel:
    """A folder whose pictures all have a single pixel, so that reading them costs nothing."""

    def __init__(self) -> None:
        file = io.BytesIO()
        Image.new("RGB", (1, 1)).save(file, "BMP")
        self._content = file.getvalue()

    def is_dir(self) -> bool:
        return True

    def __truediv__(self, name: str) -> _OnePixel:
        return self

    def open(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._content)


def _ellipse() -> NDArray[np.float32]:
    places = (np.arange(CELLS) + 0.5) / CELLS * 2 - 1
    return np.float32(1 / (1 + np.exp(10 * (places[:, None] ** 2 + places**2 - 1))))


if __name__ == "__main__":
    if sys.argv[-1].startswith("{"):
        serve(prepare)
    else:
        write(Path(sys.argv[-1]))
