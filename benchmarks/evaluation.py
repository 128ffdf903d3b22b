"""Time of COCO's figures in each program, on drawn ground truth and detections of as many images as COCO's validation set.

    python benchmarks/evaluation.py [--images 5000] [--objects 7] [--detections 20] [--classes 80] [--kinds bbox segm]
        [--backends pycocotools faster-coco-eval hotcoco] [--rounds 1]

Prints one line of JSON: seconds of each program (the least of the rounds), their ratio to those of the first one, and the largest
difference of any entry of the tables of precision and recall. All are measured in turns in one process; the time is that of all
that `mrcnn_tf.evaluate.coco_metrics` does. Masks are ellipses on 480 x 640 pixels.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_tf.metrics.backends import Backend
from mrcnn_tf.metrics.coco_tables import CocoTables, coco_tables
from mrcnn_tf.metrics.ground_truth import read_ground_truth

HEIGHT, WIDTH = 480, 640
_CORNERS = 2 * np.pi * np.arange(16) / 16


def main() -> None:
    """Draw, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("images", 5000), ("objects", 7), ("detections", 20), ("classes", 80), ("rounds", 1), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kinds", nargs="+", default=["bbox", "segm"])
    parser.add_argument("--backends", nargs="+", default=["pycocotools", "faster-coco-eval", "hotcoco"])
    arguments = parser.parse_args()
    truth, results = draw(
        np.random.default_rng(arguments.seed), arguments.images, arguments.objects, arguments.detections, arguments.classes
    )
    found = {kind: _compare(truth, results, kind, arguments.backends, arguments.rounds) for kind in arguments.kinds}
    print(json.dumps({"images": arguments.images, "detections": len(results), **found}))


def draw(rng: np.random.Generator, num_images: int, objects: int, detections: int, num_classes: int) -> tuple[dict, list]:
    """Ground truth and results: of each image on average so many, a tenth of the objects crowds, the detections near objects."""
    images = [{"id": n, "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH} for n in range(1, num_images + 1)]
    annotations, results = [], []
    for image in images:
        boxes = rng.uniform([0, 0, 8, 8], [500, 360, 140, 120], (1 + rng.poisson(objects - 1), 4))
        classes = rng.integers(1, num_classes + 1, len(boxes))
        for box, number in zip(boxes, classes, strict=True):
            record = {"image_id": image["id"], "category_id": int(number), "iscrowd": int(rng.random() < 0.1)}
            annotations.append(record | _shapes(box))
        for row in rng.integers(0, len(boxes), rng.poisson(detections)):
            box = np.maximum(boxes[row] + rng.normal(0, 0.1, 4) * boxes[row, [2, 3, 2, 3]], [0, 0, 4, 4])
            number = classes[row] if rng.random() < 0.8 else rng.integers(1, num_classes + 1)
            results.append({"image_id": image["id"], "category_id": int(number), "score": float(rng.random()), **_shapes(box)})
    categories = [{"id": n, "name": str(n)} for n in range(1, num_classes + 1)]
    return read_ground_truth({"images": images, "categories": categories, "annotations": annotations}), results


def _shapes(box: np.ndarray) -> dict:
    x, y, width, height = box
    corners = np.stack([x + width * (1 + np.cos(_CORNERS)) / 2, y + height * (1 + np.sin(_CORNERS)) / 2], axis=1)
    (rle,) = coco_mask.frPyObjects([corners.ravel().tolist()], HEIGHT, WIDTH)
    return {"bbox": box.tolist(), "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}}


def _compare(truth: dict, results: list, kind: str, backends: list[Backend], rounds: int) -> dict:
    seconds: dict[str, list[float]] = {backend: [] for backend in backends}
    tables: dict[str, CocoTables] = {}
    for _ in range(rounds):
        for backend in backends:
            began = time.perf_counter()
            tables[backend] = coco_tables(truth, results, kind, backend=backend)
            seconds[backend].append(time.perf_counter() - began)
    first = backends[0]
    return {
        "AP": tables[first].metrics()["AP"],
        "seconds": {backend: round(min(times), 2) for backend, times in seconds.items()},
        "ratio": {backend: round(min(times) / min(seconds[first]), 3) for backend, times in seconds.items()},
        "difference": {backend: _difference(tables[first], table) for backend, table in tables.items()},
    }


def _difference(one: CocoTables, other: CocoTables) -> float:
    return float(max(np.abs(one.precision - other.precision).max(), np.abs(one.recall - other.recall).max()))


if __name__ == "__main__":
    main()
