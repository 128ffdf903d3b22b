"""Measured differences between imported models and their originals, stage by stage.

    python benchmarks/parity.py

The originals' outputs are the fixtures of `tests/parity` (torchvision 0.29.1, detectron2 0.6 at 02b5c4e2, seeded weights). Map
errors are the largest absolute difference over the standard deviation of the original's map. Prints a table in Markdown.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from mrcnn_tf.predict import Predictor
from mrcnn_tf.weights import detectron2, torchvision
from tests.parity import stages
from tests.parity.gains import detectron2_gains, gains

SAMPLES = (8, 4, 2, 1, 1)
CASES = {
    "torchvision_v1": (torchvision, "torchvision_maskrcnn_resnet50_fpn_v1.tsv", 11, gains("v1")),
    "torchvision_v2": (torchvision, "torchvision_maskrcnn_resnet50_fpn_v2.tsv", 12, gains("v2")),
    "detectron2_R_50_FPN": (detectron2, "detectron2_mask_rcnn_R_50_FPN.tsv", 31, detectron2_gains()),
    "detectron2_R_101_FPN": (detectron2, "detectron2_R_101_FPN.tsv", 38, detectron2_gains()),
    "detectron2_X_101_FPN": (detectron2, "detectron2_X_101_FPN.tsv", 32, detectron2_gains()),
}
COLUMNS = ("pyramid", "pooled", "class logits", "box deltas", "proposals", "detections", "scores", "mask probs", "mask IoU")


def main() -> None:
    """Print the table."""
    print("| original | " + " | ".join(COLUMNS) + " |")
    print("| --- " * (len(COLUMNS) + 1) + "|")
    for name, (importer, table, seed, table_gains) in CASES.items():
        checkpoint = stages.seeded_checkpoint(table, seed, table_gains)
        model = stages.imported(importer, checkpoint, norm_epsilon=1e-5)
        fixture = dict(np.load(stages.FOLDER / f"{name}.npz"))
        figures = measure(stages.Stages(model, fixture, samples=SAMPLES), importer is torchvision)
        print(f"| {name} | " + " | ".join(figures) + " |", flush=True)


def measure(case: stages.Stages, is_torchvision: bool) -> list[str]:
    """The figures of one original."""
    fixture = case.fixture
    names = [f"fpn_{k}" for k in ("0", "1", "2", "3", "pool")] if is_torchvision else [f"feature_p{k}" for k in range(2, 7)]
    maps = max(_error(found, fixture[name]) for found, name in zip(case.sampled_features(), names, strict=True))
    proposals = stages.swap_xy(fixture["proposals"])
    logits, deltas = case.heads(proposals[:64])
    expected_deltas = stages.swap_xy(fixture["box_deltas_64"].reshape(64, -1, 4))[:, is_torchvision:]
    pooled = stages.to_torch(case.pooled("box_pool", proposals[:64]))[:, ::8]
    return [
        f"{maps:.1e}",
        f"{_error(pooled, fixture['roi_box_features_64']):.1e}",
        f"{_error(logits if is_torchvision else np.roll(logits, -1, axis=1), fixture['class_logits_64']):.1e}",
        f"{_error(deltas, expected_deltas):.1e}",
        f"{stages.matched_boxes(case.proposals(), proposals, 0.05):.1%}",
        *_detections(case, first_label=is_torchvision),
    ]


def _detections(case: stages.Stages, first_label: int) -> list[str]:
    fixture = case.fixture
    picture = np.asarray(case.images[0, : case.sizes[0, 0], : case.sizes[0, 1]], np.uint8)
    found = Predictor(case.model, min_size=min(picture.shape[:2]), max_size=max(picture.shape[:2]))(picture)
    boxes, classes = stages.swap_xy(fixture["boxes"]), fixture["labels"] + 1 - first_label
    rows, overlaps = stages.match_detections((found.boxes, found.classes), (boxes, classes))
    good = overlaps > 0.99
    scores = np.abs(found.scores[rows] - fixture["scores"])[good].max()
    masks = np.abs(found.mask_probs[rows] - fixture["det_mask_probs"])[good].max()
    iou = stages.mask_iou(found.masks()[rows][good], stages.unpacked_masks(fixture)[good])
    return [f"{good.mean():.1%}", f"{scores:.1e}", f"{masks:.1e}", f"{iou:.5f}"]


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / expected.std())


if __name__ == "__main__":
    main()
