"""Average precision of one class: precision over recall, and the ways of taking its mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COCO_RECALLS = np.linspace(0, 1, 101)


def precision_over_recall(is_correct: NDArray[np.bool_], num_objects: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall after each detection.

    Args:
        is_correct: [D], best detection first.
        num_objects: how many there are to find, at least 1.

    Returns:
        [D] precision, made falling (the best that is reached at this recall or beyond), and [D] recall.
    """
    correct = np.cumsum(is_correct)
    precision = correct / np.arange(1, len(is_correct) + 1)
    return np.maximum.accumulate(precision[::-1])[::-1], correct / num_objects


def interpolated_precision(is_correct: NDArray[np.bool_], num_objects: int, recalls: NDArray[np.float64]) -> float:
    """The mean precision at given recalls, 0 where one is not reached: 0, 0.01 .. 1 are COCO's, 0, 0.1 .. 1 those of VOC 2007."""
    precision, recall = precision_over_recall(is_correct, num_objects)
    first = np.searchsorted(recall, recalls, side="left")
    return float(np.append(precision, 0.0)[first].mean())


def area_under_curve(is_correct: NDArray[np.bool_], num_objects: int) -> float:
    """The area under precision over recall, which VOC takes since 2010."""
    precision, recall = precision_over_recall(is_correct, num_objects)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))
