"""COCO's average precision and recall: the tables of COCOeval, and the figures that are read from them.

COCOeval's own summary (Lin et al. 2014, "Microsoft COCO"; cocodataset.org/#detection-eval) knows no other number of detections
than 100, so the figures are taken from its tables of precision and recall.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.metrics.backends import Backend, measure
from mrcnn_tf.metrics.ground_truth import IouType, as_annotations, class_names

AREAS = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class CocoTables:
    """What COCOeval measured.

    Attributes:
        precision: [T, R, K, A, M] for T IoU thresholds (0.5..0.95), R recalls (0..1), K classes, A areas (all, small, medium,
            large) and M bounds of the detections per image; -1 where there was no ground truth.
        recall: [T, K, A, M], likewise.
        class_names: K names.
        max_detections: the largest bound, the last of M.
        category_ids: K ids of the data set.
        num_objects: K counts of the ground truth, without crowd regions.
        num_detections: K counts of the results.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    class_names: tuple[str, ...]
    max_detections: int
    category_ids: tuple[int, ...]
    num_objects: tuple[int, ...]
    num_detections: tuple[int, ...]

    def metrics(self) -> dict[str, Any]:
        """The section of `metrics.json` (see docs/contracts.md); the last AR is named after `max_detections`."""
        recall = self.recall
        average_recall = {
            "AR1": _mean(recall[:, :, 0, 0]),
            "AR10": _mean(recall[:, :, 0, 1]),
            f"AR{self.max_detections}": _mean(recall[:, :, 0, 2]),
            **{f"AR{area[0]}": _mean(recall[:, :, number, 2]) for number, area in enumerate(AREAS[1:], start=1)},
        }
        every = slice(None)
        per_class = {name: _mean(self.precision[:, :, number, 0, -1]) for number, name in enumerate(self.class_names)}
        return {**self._average_precision(every), **average_recall, "per_class": per_class}

    def classes(self) -> list[dict[str, Any]]:
        """A row of `classes` of `metrics.json` (see docs/contracts.md) for each class, by rising category id."""
        rows = []
        for number, name in enumerate(self.class_names):
            of_class = slice(number, number + 1)
            rows.append(
                {
                    "name": name,
                    "id": self.category_ids[number],
                    "objects": self.num_objects[number],
                    "detections": self.num_detections[number],
                    **self._average_precision(of_class),
                    "AR": _mean(self.recall[:, of_class, 0, -1]),
                }
            )
        return rows

    def most_frequent(self, count: int) -> list[int]:
        """Positions of the classes with the most objects, at most `count`, by rising category id."""
        order = sorted(range(len(self.class_names)), key=lambda number: -self.num_objects[number])
        return sorted(order[:count])

    def _average_precision(self, classes: slice) -> dict[str, float | None]:
        precision = self.precision[:, :, classes, :, -1]
        return {
            "AP": _mean(precision[..., 0]),
            "AP50": _mean(precision[0, ..., 0]),
            "AP75": _mean(precision[5, ..., 0]),
            **{f"AP{area[0]}": _mean(precision[..., number]) for number, area in enumerate(AREAS[1:], start=1)},
        }


def coco_tables(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    *,
    max_detections: int = 100,
    backend: Backend = "pycocotools",
) -> CocoTables:
    """COCOeval's tables of precision and recall.

    Args:
        truth: of `read_ground_truth`.
        results: COCO results, with `bbox` (for bbox) or `segmentation` RLE (for segm and boundary).
        iou_type: what is compared.
        max_detections: at most so many results of an image and category count, the best first.
        backend: which program computes them.

    Raises:
        EvaluationError: a result names an image that the ground truth lacks.
    """
    bounds = [min(1, max_detections), min(10, max_detections), max_detections]
    precision, recall = measure(truth, as_annotations(truth, results, iou_type), iou_type, bounds, backend)
    names = class_names(truth)
    objects = Counter(record["category_id"] for record in truth["annotations"] if not record["iscrowd"])
    found = Counter(result["category_id"] for result in results)
    return CocoTables(
        precision=precision,
        recall=recall,
        class_names=tuple(names.values()),
        max_detections=max_detections,
        category_ids=tuple(names),
        num_objects=tuple(objects[number] for number in names),
        num_detections=tuple(found[number] for number in names),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    measured = values[values > -1]
    return float(np.mean(measured)) if measured.size else None
