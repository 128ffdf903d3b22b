"""Time of all non-maximum suppression of one picture on a CPU: five levels of proposals, then the detections.

    python benchmarks/suppression.py [--rounds 30]

Random boxes of a picture of 512 x 512: up to 1000 on each level, threshold 0.7, and 4000 in four classes, threshold 0.5, 100
kept. Prints the median in milliseconds. It is compared with what a picture takes in `serving_load.py`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mrcnn_tf.ops.nms import nms_indices, offset_boxes_by_group

LEVELS, PAIRS, CLASSES, SIDE = (1000, 1000, 1000, 768, 192), 4000, 4, 512


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    random = np.random.default_rng(0)
    runs = [_suppression(random, count, limit=min(count, 1000), threshold=0.7, classes=1) for count in LEVELS]
    runs.append(_suppression(random, PAIRS, limit=100, threshold=0.5, classes=CLASSES))
    for run in runs:
        run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        for run in runs:
            run()
        seconds.append(time.perf_counter() - started)
    print(f"{1000 * statistics.median(seconds):.1f} ms")


def _suppression(random: np.random.Generator, count: int, *, limit: int, threshold: float, classes: int) -> Callable:
    centres, halves = random.uniform(0, SIDE, (count, 2)), (random.exponential(40, (count, 2)) + 4) / 2
    boxes = tf.constant(np.concatenate([centres - halves, centres + halves], axis=1)[None], tf.float32)
    scores = tf.constant(np.sort(random.random((1, count)))[:, ::-1].copy(), tf.float32)
    groups = tf.constant(random.integers(0, classes, (1, count)), tf.int32)

    @tf.function
    def run() -> tuple[tf.Tensor, tf.Tensor]:
        shifted = offset_boxes_by_group(boxes, groups, classes)
        return nms_indices(shifted, scores, max_output_size=limit, iou_threshold=threshold)

    return run


if __name__ == "__main__":
    main()
