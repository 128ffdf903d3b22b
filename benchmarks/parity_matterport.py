"""Measured differences between imported matterport models and the published arithmetic, stage by stage.

    python benchmarks/parity_matterport.py

The reference is `tests/weights/matterport_reference.py`, with seeded weights. Each stage gets the reference's result of
the one before; proposals and what follows are of the whole way from the picture. Prints rows of the table that
`benchmarks/parity.py` prints.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
import tensorflow as tf

from mrcnn_tf.predict import Predictor
from tests.parity import stages
from tests.weights import matterport_reference as original
from tests.weights.matterport_case import SEEDS, SIDE, SIZE, Case, inside


def main() -> None:
    """Print the rows."""
    for backbone in SEEDS:
        print(f"| matterport {backbone} | " + " | ".join(measure(Case(backbone))) + " |", flush=True)


def measure(case: Case) -> list[str]:
    """Pyramid, pooled, class logits, box deltas, proposals, detections, scores, mask probabilities, mask IoU."""
    windows = case.layer("image_windows")(case.inputs["images"], case.inputs["image_sizes"])
    found = case.model.fpn(case.model.backbone(case.layer("normalize")(case.inputs["images"], windows)))
    maps = max(_error(found[f"p{level}"], expected) for level, expected in zip(range(2, 7), case.levels, strict=True))
    regions = original.pooled(case.levels, case.proposals, 7)
    logits, deltas = case.model.box_head(tf.constant(regions))
    boxes, is_valid = keras.Model(case.model.inputs, case.layer("proposals").output)(case.inputs)
    proposals = boxes[0][is_valid[0]].numpy()
    distance = np.abs(inside(case.proposals).numpy()[:, None] - proposals[None]).max(axis=-1).min(axis=1)
    return [
        f"{maps:.1e}",
        f"{_error(case.pooled('box_pool', case.proposals), regions):.1e}",
        f"{_error(logits, case.heads[0]):.1e}",
        f"{_error(deltas, case.heads[1][:, 1:]):.1e}",
        f"{(distance <= 0.05).mean():.1%}",
        *_detections(case),
    ]


def _detections(case: Case) -> list[str]:
    boxes, classes, scores = case.detections
    boxes = original.in_picture(boxes, case.window, SIDE, SIZE)
    found = Predictor(case.model)(case.picture)
    overlaps = stages.iou(boxes, np.round(found.boxes)) * (classes[:, None] == found.classes[None])
    rows, good = overlaps.argmax(axis=1), overlaps.max(axis=1) > 0.99
    full = np.array([original.pasted(mask, box, SIZE) for mask, box in zip(case.masks, boxes, strict=True)])
    return [
        f"{good.mean():.1%}",
        f"{np.abs(found.scores[rows] - scores)[good].max():.1e}",
        f"{np.abs(found.mask_probs[rows] - case.masks)[good].max():.1e}",
        f"{stages.mask_iou(found.masks()[rows][good], full[good]):.5f}",
    ]


def _error(found: tf.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / expected.std())


if __name__ == "__main__":
    main()
