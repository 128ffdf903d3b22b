"""Time of all non-maximum suppression of one picture on a CPU: five levels of proposals, then the detections.

    python benchmarks/suppression.py [--rounds 30]

Random boxes of a picture of 512 x 512: up to 1000 on each level, threshold 0.7, and 4000 in four classes, threshold 0.5, 100
kept. Prints the median in milliseconds. It is compared with what a picture takes in `serving_load.py`. Then the detections
alone: by NMS, and by both kinds of Soft-NMS.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mrcnn_tf.ops.nms import nms_indices, offset_boxes_by_group
from mrcnn_tf.ops.suppression import Suppression, SuppressionKind

LEVELS, PAIRS, CLASSES, SIDE = (1000, 1000, 1000, 768, 192), 4000, 4, 512


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    random = np.random.default_rng(0)
    runs = [_suppression(random, count, limit=min(count, 1000), threshold=0.7, classes=1) for count in LEVELS]
    runs.append(_suppression(random, PAIRS, limit=100, threshold=0.5, classes=CLASSES))
    print(f"{_median(runs, rounds):.1f} ms")
    kinds: tuple[SuppressionKind, ...] = ("hard", "soft_linear", "soft_gaussian")
    for kind in kinds:
        print(f"{kind}: {_median([_detections(np.random.default_rng(0), Suppression(kind))], rounds):.1f} ms")


def _median(runs: list[Callable], rounds: int) -> float:
    """Milliseconds of one after the other, after one that is not counted."""
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        for run in runs:
            run()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:])


def _boxes(random: np.random.Generator, count: int, classes: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    centres, halves = random.uniform(0, SIDE, (count, 2)), (random.exponential(40, (count, 2)) + 4) / 2
    boxes = tf.constant(np.concatenate([centres - halves, centres + halves], axis=1)[None], tf.float32)
    scores = tf.constant(np.sort(random.random((1, count)))[:, ::-1].copy(), tf.float32)
    return boxes, scores, tf.constant(random.integers(0, classes, (1, count)), tf.int32)


def _detections(random: np.random.Generator, suppression: Suppression) -> Callable:
    boxes, scores, groups = _boxes(random, PAIRS, CLASSES)
    return tf.function(lambda: suppression(boxes, groups, scores, num_classes=CLASSES, max_output_size=100))


def _suppression(random: np.random.Generator, count: int, *, limit: int, threshold: float, classes: int) -> Callable:
    boxes, scores, groups = _boxes(random, count, classes)

    @tf.function
    def run() -> tuple[tf.Tensor, tf.Tensor]:
        shifted = offset_boxes_by_group(boxes, groups, classes)
        return nms_indices(shifted, scores, max_output_size=limit, iou_threshold=threshold)

    return run


if __name__ == "__main__":
    main()
