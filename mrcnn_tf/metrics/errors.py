"""What kinds of errors cost how much AP (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", 2020).

Detections are matched as the authors' program does: of each image, best first, each to the object of its class that it overlaps
most and that is still free, from an IoU of 0.5. Every other one is one kind of error, the first that fits (IoU with an object of
its own class, and with one of another):

* localisation: of its class, from 0.1 to 0.5
* classification: of another class, from 0.5
* duplicate: of its class, from 0.5, but the object has been found by a better one
* background: with no object above 0.1
* both: the rest, neither the class nor the place is right

What an error costs is by how much AP at IoU 0.5 rises where all errors of that kind, and they alone, are put right: the best of
the wrong detections of an object that was not found becomes right, all others go; missed objects, which no wrong detection
points to, are no longer asked for. Beside these stand the gains of no false positives (all behind the right ones) and of no
false negatives. A detection in a crowd region of its class does not count as wrong, but does where it can be put right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.metrics.overlaps import ImageOverlaps, ShapeType, overlaps
from mrcnn_tf.metrics.precision import COCO_RECALLS, interpolated_precision

ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1

_RIGHT = "right"


@dataclass(frozen=True)
class _Findings:
    """All detections (D) and objects (G) of a data set, images one after the other.

    Attributes:
        scores: [D] float.
        classes: [D] category ids.
        kinds: [D] str, "right" or the kind of error.
        counts: [D] bool, False for what is not right but lies in a crowd region.
        can_be_right: [D] bool, the best of the wrong detections of an object that was not found.
        target_classes: [D] category ids of those objects; of no meaning for other detections.
        object_classes: [G] category ids.
        is_found: [G] bool.
        is_pointed_to: [G] bool, whether a wrong detection can be put right for it.
    """

    scores: NDArray[np.float64]
    classes: NDArray[np.int64]
    kinds: NDArray[np.str_]
    counts: NDArray[np.bool_]
    can_be_right: NDArray[np.bool_]
    target_classes: NDArray[np.int64]
    object_classes: NDArray[np.int64]
    is_found: NDArray[np.bool_]
    is_pointed_to: NDArray[np.bool_]


def error_breakdown(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: ShapeType) -> dict[str, Any]:
    """How many errors of each kind there are, and what they cost.

    Args:
        truth: of `read_ground_truth`.
        results: COCO results of its images.
        iou_type: what is compared.

    Returns:
        A section of `errors` of `metrics.json` (see docs/contracts.md): figures in 0..1, None where there are no objects.
    """
    per_image = [_of_image(image) for image in overlaps(truth, results, iou_type)]
    found = _Findings(*(np.concatenate(parts) for parts in zip(*per_image, strict=True)))
    count = {kind: int(np.sum(found.kinds == kind)) for kind in ERRORS[:-1]}
    count["missed"] = int(np.sum(~found.is_found & ~found.is_pointed_to))
    if not found.object_classes.size:
        return {"AP50": None, "cost": dict.fromkeys((*ERRORS, "false_positive", "false_negative")), "count": count}
    before = _precision(found)
    # A fix can lower AP a little, because precision is read at 101 recalls only: it costs nothing then.
    fixed = {kind: _precision(_put_right(found, kind)) for kind in ERRORS[:-1]}
    fixed["missed"] = _precision(found, found.is_found | found.is_pointed_to)
    cost = {kind: max(0.0, figure - before) for kind, figure in fixed.items()}
    cost["false_positive"] = _precision(replace(found, scores=(found.kinds == _RIGHT).astype(float))) - before
    cost["false_negative"] = _precision(found, found.is_found) - before
    return {"AP50": before, "cost": cost, "count": count}


def _of_image(image: ImageOverlaps) -> tuple[NDArray[Any], ...]:
    """The fields of `_Findings` of one image."""
    is_object = np.array([not record["iscrowd"] for record in image.truth], bool)
    same = image.same_class()
    in_crowd = (same & ~is_object & (image.covered > FOREGROUND_IOU)).any(axis=1)
    classes, truth_classes = ([record["category_id"] for record in records] for records in (image.found, image.truth))
    object_classes = np.array(truth_classes, int)[is_object]
    kinds, targets, is_found = _sort_out(image.ious[:, is_object], same[:, is_object])
    can_be_right = np.zeros(len(kinds), bool)
    is_pointed_to = np.zeros(len(object_classes), bool)
    for row, target in enumerate(targets):
        if target >= 0 and not is_found[target] and not is_pointed_to[target]:
            can_be_right[row] = is_pointed_to[target] = True
    return (
        np.array([result["score"] for result in image.found], float),
        np.array(classes, int),
        kinds,
        (kinds == _RIGHT) | ~in_crowd,
        can_be_right,
        np.append(object_classes, 0)[targets],
        object_classes,
        is_found,
        is_pointed_to,
    )


def _sort_out(ious: NDArray[np.float64], same: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Kind of each detection, the object that it would be right for (-1 for none), and which objects were found."""
    num_found, num_objects = ious.shape
    is_found = np.zeros(num_objects, bool)
    if not num_objects:
        return np.full(num_found, "background", "U14"), np.full(num_found, -1), is_found
    free = ious * same
    is_right = np.zeros(num_found, bool)
    for row in range(num_found):
        best = free[row].argmax()
        is_right[row] = free[row, best] >= FOREGROUND_IOU
        if is_right[row]:
            is_found[best] = True
            free[:, best] = 0
    own, other = ious * same, ious * ~same
    kinds = np.select(
        [
            is_right,
            (own.max(axis=1) >= BACKGROUND_IOU) & (own.max(axis=1) <= FOREGROUND_IOU),
            other.max(axis=1) >= FOREGROUND_IOU,
            (own * is_found).max(axis=1) >= FOREGROUND_IOU,
            ious.max(axis=1) <= BACKGROUND_IOU,
        ],
        [_RIGHT, "localisation", "classification", "duplicate", "background"],
        "both",
    )
    targets = np.select([kinds == "localisation", kinds == "classification"], [own.argmax(axis=1), other.argmax(axis=1)], -1)
    return kinds, targets, is_found


def _put_right(found: _Findings, kind: str) -> _Findings:
    is_kind = found.kinds == kind
    is_fixed = is_kind & found.can_be_right
    return replace(
        found,
        kinds=np.where(is_fixed, _RIGHT, found.kinds),
        counts=np.where(is_kind, is_fixed, found.counts),
        classes=np.where(is_fixed, found.target_classes, found.classes),
    )


def _precision(found: _Findings, is_asked: NDArray[np.bool_] | None = None) -> float:
    """AP at IoU 0.5, the mean over the classes, of all objects or of those that are asked for.

    A class of which nothing is asked and nothing was found is left out; where all are, nothing is wrong.
    """
    all_classes, num_objects = np.unique(found.object_classes, return_counts=True)
    if is_asked is not None:
        num_objects = np.array([np.sum(is_asked[found.object_classes == number]) for number in all_classes], int)
    order = np.lexsort((-found.scores, found.classes))
    order = order[found.counts[order]]
    classes, is_right = found.classes[order], found.kinds[order] == _RIGHT
    figures = []
    for number, asked in zip(all_classes, num_objects, strict=True):
        first, past = np.searchsorted(classes, [number, number + 1])
        if asked:
            figures.append(interpolated_precision(is_right[first:past], int(asked), COCO_RECALLS))
        elif past > first:
            figures.append(0.0)
    return float(np.mean(figures)) if figures else 1.0
