"""How far what an export finds is from what the model finds."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.detections import Detections

SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True)
class Agreement:
    """The worst of the objects that both have found.

    Attributes:
        matched: part of all objects that have a partner: of the same class, with an IoU above 0.5.
        boxes: largest difference of a side, pixels of the picture.
        scores: largest difference.
        masks: largest difference of a probability.
    """

    matched: float = 1.0
    boxes: float = 0.0
    scores: float = 0.0
    masks: float = 0.0

    def worst(self, other: Agreement) -> Agreement:
        """Of two pictures."""
        largest = {field.name: max(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return Agreement(**{**largest, "matched": min(self.matched, other.matched)})

    def __str__(self) -> str:
        found = "all objects found" if self.matched == 1 else f"{100 * self.matched:.1f} % of the objects found"
        return f"{found}, boxes within {self.boxes:.2g} px, scores within {self.scores:.2g}, masks within {self.masks:.2g}"


def agreement(expected: Detections, found: Detections) -> Agreement:
    """Pair the objects, the best of `expected` first, each with the one of its class that overlaps it most.

    Two orders of objects with almost the same score are so no difference.

    Args:
        expected: of the model.
        found: of the export, for the same picture.
    """
    overlaps = _overlaps(expected.boxes, found.boxes) * (expected.classes[:, None] == found.classes[None])
    pairs = []
    for row in range(len(expected)):
        partner = int(overlaps[row].argmax()) if len(found) else 0
        if len(found) and overlaps[row, partner] > SAME_OBJECT_IOU:
            pairs.append((row, partner))
            overlaps[:, partner] = 0
    rows, partners = np.array(pairs, int).reshape(-1, 2).T
    ours, theirs = expected.select(rows), found.select(partners)
    masks = 0.0
    if ours.mask_probs is not None and theirs.mask_probs is not None:
        masks = _largest(ours.mask_probs - theirs.mask_probs)
    most = max(len(expected), len(found))
    return Agreement(
        matched=len(pairs) / most if most else 1.0,
        boxes=_largest(ours.boxes - theirs.boxes),
        scores=_largest(ours.scores - theirs.scores),
        masks=masks,
    )


def _largest(differences: NDArray[np.float32]) -> float:
    return float(np.abs(differences).max(initial=0.0))


def _overlaps(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """IoU [N, M], 0 for boxes without area."""
    start = np.maximum(boxes[:, None, :2], others[None, :, :2])
    end = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.maximum(end - start, 0).prod(axis=-1)
    areas, other_areas = ((sides[:, 2:] - sides[:, :2]).prod(axis=-1) for sides in (boxes, others))
    union = areas[:, None] + other_areas[None] - shared
    return np.where(union > 0, shared / np.maximum(union, 1e-12), 0)
