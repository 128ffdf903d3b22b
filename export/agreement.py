"""How far what an export finds is from what the model finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.detections import Detections

SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True)
class Agreement:
    """Of the objects of some pictures.

    Attributes:
        objects: how many there are, of those who found more.
        matched: part of them that has a partner: of the same class, with an IoU above 0.5.
        boxes: largest difference of a side of partners, pixels.
        scores: largest difference.
        masks: largest difference of a probability.
        mean_boxes: mean difference of a side.
        mean_scores: mean difference.
        mean_masks: mean difference of a probability.
    """

    objects: int = 0
    matched: float = 1.0
    boxes: float = 0.0
    scores: float = 0.0
    masks: float = 0.0
    mean_boxes: float = 0.0
    mean_scores: float = 0.0
    mean_masks: float = 0.0

    def __str__(self) -> str:
        found = "all objects found" if self.matched == 1 else f"{100 * self.matched:.1f} % of the objects found"
        parts = (
            f"{name} {mean:.2g}{unit} apart, at most {most:.2g}"
            for name, mean, most, unit in (
                ("boxes", self.mean_boxes, self.boxes, " px"),
                ("scores", self.mean_scores, self.scores, ""),
                ("masks", self.mean_masks, self.masks, ""),
            )
        )
        return f"{found}, {', '.join(parts)}"


def agreement(pairs: Iterable[tuple[Detections, Detections]]) -> Agreement:
    """Compare what two systems find in the same pictures.

    The objects of a picture are paired, the best of the first system first, each with the one of its class that overlaps it most.
    Two orders of objects with almost the same score are so no difference.

    Args:
        pairs: of each picture what is expected and what is found.
    """
    objects = matched = 0
    differences: dict[str, list[NDArray[np.float32]]] = {"boxes": [], "scores": [], "masks": []}
    for expected, found in pairs:
        rows, partners = _partners(expected, found)
        objects += max(len(expected), len(found))
        matched += len(rows)
        ours, theirs = expected.select(rows), found.select(partners)
        differences["boxes"].append(np.abs(ours.boxes - theirs.boxes).ravel())
        differences["scores"].append(np.abs(ours.scores - theirs.scores))
        if ours.mask_probs is not None and theirs.mask_probs is not None:
            differences["masks"].append(np.abs(ours.mask_probs - theirs.mask_probs).ravel())
    joined = {name: np.concatenate([np.zeros(0, np.float32), *values]) for name, values in differences.items()}
    most = {name: float(values.max(initial=0.0)) for name, values in joined.items()}
    means = {f"mean_{name}": float(values.mean()) if values.size else 0.0 for name, values in joined.items()}
    return Agreement(objects=objects, matched=matched / objects if objects else 1.0, **most, **means)


def _partners(expected: Detections, found: Detections) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Rows of each that belong together."""
    overlaps = _overlaps(expected.boxes, found.boxes) * (expected.classes[:, None] == found.classes[None])
    pairs = []
    for row in range(len(expected) if len(found) else 0):
        partner = int(overlaps[row].argmax())
        if overlaps[row, partner] > SAME_OBJECT_IOU:
            pairs.append((row, partner))
            overlaps[:, partner] = 0
    rows, partners = np.array(pairs, int).reshape(-1, 2).T
    return rows, partners


def _overlaps(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """IoU [N, M], 0 for boxes without area."""
    start = np.maximum(boxes[:, None, :2], others[None, :, :2])
    end = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.maximum(end - start, 0).prod(axis=-1)
    areas, other_areas = ((sides[:, 2:] - sides[:, :2]).prod(axis=-1) for sides in (boxes, others))
    union = areas[:, None] + other_areas[None] - shared
    return np.where(union > 0, shared / np.maximum(union, 1e-12), 0)
