"""PASCAL VOC's average precision (Everingham et al., IJCV 2010 and 2015), of boxes and, as AP^r, of masks.

As the development kit has it: of each class, best detection first, each is compared with the object of its class that it overlaps
most. It is right if the IoU is at least 0.5 and no better detection was right for that object, and wrong otherwise. An object
that is marked `difficult` is not asked for, and what is compared with it is neither right nor wrong; so it is with crowd regions,
which VOC does not have. AP is the area under precision over recall (VOC 2010 and later), or the mean precision at the recalls 0,
0.1 .. 1 (VOC 2007). AP^r is the same with the IoU of masks, and AP^r_vol its mean over the IoUs 0.1, 0.2 .. 0.9 (Hariharan et
al., "Simultaneous Detection and Segmentation", ECCV 2014).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.metrics.ground_truth import class_names
from mrcnn_tf.metrics.overlaps import ImageOverlaps, ShapeType, overlaps
from mrcnn_tf.metrics.precision import area_under_curve, interpolated_precision

BOX_IOU = 0.5
MASK_IOUS = (0.5, 0.7)
VOLUME_IOUS = tuple(number / 10 for number in range(1, 10))
RECALLS_2007 = np.arange(11) / 10


class _Matches(NamedTuple):
    """Detections of all images: score, category id, IoU with the object they are compared with, and its number (-1: none)."""

    scores: NDArray[np.float64]
    classes: NDArray[np.int64]
    ious: NDArray[np.float64]
    objects: NDArray[np.int64]

    def of(self, rows: NDArray[np.int64]) -> _Matches:
        return _Matches(self.scores[rows], self.classes[rows], self.ious[rows], self.objects[rows])


def voc_metrics(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: ShapeType) -> dict[str, Any]:
    """VOC's figures.

    Args:
        truth: of `read_ground_truth`; `"difficult": 1` of an annotation marks what VOC does not count.
        results: COCO results of its images. All of them count.
        iou_type: what is compared.

    Returns:
        A section of `voc` of `metrics.json` (see docs/contracts.md): figures in 0..1, None where nothing is asked for.
    """
    matches, classes, is_counted = _match(truth, results, iou_type)
    figures = _box_figures if iou_type == "bbox" else _mask_figures
    per_class = {}
    for number, name in class_names(truth).items():
        num_objects = int(np.sum(is_counted[classes == number]))
        rows = np.flatnonzero(matches.classes == number)
        rows = rows[np.argsort(-matches.scores[rows], kind="stable")]
        per_class[name] = {"objects": num_objects, **figures(matches.of(rows), is_counted, num_objects)}
    names = [name for name in next(iter(per_class.values()), {}) if name != "objects"]
    return {**{name: _mean([row[name] for row in per_class.values()]) for name in names}, "per_class": per_class}


def _box_figures(matches: _Matches, is_counted: NDArray[np.bool_], num_objects: int) -> dict[str, float | None]:
    if not num_objects:
        return {"AP50": None, "AP50_2007": None}
    is_right = _right(matches, is_counted, BOX_IOU)
    return {
        "AP50": area_under_curve(is_right, num_objects),
        "AP50_2007": interpolated_precision(is_right, num_objects, RECALLS_2007),
    }


def _mask_figures(matches: _Matches, is_counted: NDArray[np.bool_], num_objects: int) -> dict[str, float | None]:
    def figure(iou: float) -> float | None:
        return area_under_curve(_right(matches, is_counted, iou), num_objects) if num_objects else None

    at = {f"AP{round(100 * iou)}": figure(iou) for iou in MASK_IOUS}
    return {**at, "AP_vol": _mean([figure(iou) for iou in VOLUME_IOUS])}


def _right(matches: _Matches, is_counted: NDArray[np.bool_], iou_threshold: float) -> NDArray[np.bool_]:
    """Which of a class's detections are right, best first, without those that do not count."""
    reaches = (matches.objects >= 0) & (matches.ious >= iou_threshold)
    is_right = np.zeros(len(reaches), bool)
    rows = np.flatnonzero(reaches)
    _, first = np.unique(matches.objects[rows], return_index=True)
    is_right[rows[first]] = True
    counts = ~reaches
    counts[rows] = is_counted[matches.objects[rows]]
    return is_right[counts]


def _match(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: ShapeType
) -> tuple[_Matches, NDArray[np.int64], NDArray[np.bool_]]:
    """The detections, the category id of each object, and whether it is asked for."""
    records: list[Mapping[str, Any]] = []
    parts = []
    for image in overlaps(truth, results, iou_type):
        parts.append(_of_image(image, len(records)))
        records += image.truth
    classes = np.array([record["category_id"] for record in records], int)
    is_counted = np.array([not (record.get("difficult") or record["iscrowd"]) for record in records], bool)
    return _Matches(*(np.concatenate(values) for values in zip(*parts, strict=True))), classes, is_counted


def _of_image(image: ImageOverlaps, num_before: int) -> _Matches:
    ious = np.where(image.same_class(), image.ious, -1.0)
    best = ious.argmax(axis=1) if image.truth else np.zeros(len(image.found), int)
    best_ious = ious[np.arange(len(best)), best] if image.truth else np.full(len(best), -1.0)
    return _Matches(
        np.array([result["score"] for result in image.found], float),
        np.array([result["category_id"] for result in image.found], int),
        best_ious,
        np.where(best_ious >= 0, best + num_before, -1),
    )


def _mean(figures: Sequence[float | None]) -> float | None:
    measured = [figure for figure in figures if figure is not None]
    return float(np.mean(measured)) if measured else None
