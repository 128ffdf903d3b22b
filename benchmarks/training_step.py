"""Time of a training step: R50-FPN, 512 x 512 pixels, batch 1, stem and first stage frozen.

    python benchmarks/training_step.py [--rounds 3] [--steps 6] [--variants float32 naive_crop bfloat16 xla]

Every variant runs in a process of its own, the processes alternate, and what is reported are medians over rounds and their ratios
to `float32`. `naive_crop` is the same step with the cheapest possible pooling: one unpadded `tf.image.crop_and_resize` sample per
bin. It is the comparand for what exact ROIAlign costs. Writes `benchmarks/training_step.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

VARIANTS = ("float32", "naive_crop", "bfloat16", "xla")
_OUTPUT = Path(__file__).with_suffix(".json")


def main() -> None:
    """Run the variants in turn and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, arguments.steps)))
        return
    runs: dict[str, list[dict]] = {variant: [] for variant in arguments.variants}
    for _ in range(arguments.rounds):
        for variant in arguments.variants:
            runs[variant].append(_run(variant, arguments.steps))
            print(variant, runs[variant][-1], file=sys.stderr)
    medians = {
        variant: {key: statistics.median(run[key] for run in found) for key in found[0]} for variant, found in runs.items()
    }
    base = medians.get("float32", next(iter(medians.values())))["step_seconds"]
    for figures in medians.values():
        figures["ratio_to_float32"] = round(figures["step_seconds"] / base, 3)
    _OUTPUT.write_text(json.dumps({"medians": medians, "runs": runs}, indent=1) + "\n")
    print(json.dumps(medians, indent=1))


def _run(variant: str, steps: int) -> dict:
    command = [sys.executable, __file__, "--worker", variant, "--steps", str(steps)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def measure(variant: str, steps: int) -> dict:
    """First step, median of the later ones (seconds), peak memory (GiB) and traces, in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from mrcnn_tf.config import Config, parse
    from mrcnn_tf.train import build_model

    if variant == "naive_crop":
        _pool_naively()
    precision = "mixed_bfloat16" if variant == "bfloat16" else "float32"
    config = parse(
        Config,
        {
            "model": {
                "categories": [{"id": i + 1, "name": str(i)} for i in range(80)],
                "backbone": {"weights": None},
            },
            "train": {"batch_size": 1, "precision": precision, "xla": variant == "xla"},
        },
        "benchmark",
    )
    model = build_model(config)
    batch = _batch()
    step = tf.function(model.train_step)
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        float(step(batch)["loss"])
        seconds.append(time.perf_counter() - began)
    return {
        "step_seconds": round(statistics.median(seconds[1:]), 3),
        "first_step_seconds": round(seconds[0], 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "traces": step.experimental_get_tracing_count(),
    }


def _batch() -> dict:
    import numpy as np

    random = np.random.default_rng(0)
    rows, side = 12, 512
    corners = random.uniform(0, side - 160, (1, rows, 2))
    boxes = np.concatenate([corners, corners + random.uniform(24, 160, (1, rows, 2))], axis=-1)
    return {
        "images": random.integers(0, 256, (1, side, side, 3)).astype(np.uint8),
        "image_sizes": np.array([[side, side]], np.int32),
        "gt_boxes": boxes.astype(np.float32),
        "gt_classes": random.integers(1, 81, (1, rows)).astype(np.int32),
        "gt_crowd": np.zeros((1, rows), bool),
        "gt_masks": np.full((1, rows, 56, 56), 255, np.uint8),
    }


def _pool_naively() -> None:
    import tensorflow as tf

    from mrcnn_tf.modeling import rois

    def naive(features, boxes, batch_indices, *, strides, output_size, **_):
        levels = tf.clip_by_value(tf.floor(4 + tf.math.log(tf.sqrt(_area(boxes)) / 224 + 1e-8) / tf.math.log(2.0)), 2, 5)
        pooled, order = [], []
        for number, (feature, stride) in enumerate(zip(features, strides, strict=True), start=2):
            rows = tf.where(levels == number)[:, 0]
            size = tf.cast(tf.shape(feature)[1:3], tf.float32) * stride
            normalised = tf.gather(boxes, rows) / tf.tile(size, [2])
            indices = tf.gather(batch_indices, rows)
            feature = tf.cast(feature, tf.float32)
            pooled.append(tf.image.crop_and_resize(feature, normalised, indices, [output_size, output_size]))
            order.append(rows)
        return tf.gather(tf.concat(pooled, axis=0), tf.argsort(tf.concat(order, axis=0)))

    def _area(boxes):
        return tf.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 0)

    rois.roi_align = naive


if __name__ == "__main__":
    main()
