"""Which detection of an image overlaps which of its objects, and by how much."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

ShapeType = Literal["bbox", "segm"]


class ImageOverlaps(NamedTuple):
    """The detections of an image, best first, and its objects.

    Attributes:
        found: D results; of equal scores the one that is named first comes first.
        truth: G annotations.
        ious: [D, G] float64.
        covered: [D, G] float64, the part of the detection that the object covers: what counts where the object is a crowd region.
    """

    found: list[Mapping[str, Any]]
    truth: list[Mapping[str, Any]]
    ious: NDArray[np.float64]
    covered: NDArray[np.float64]

    def same_class(self) -> NDArray[np.bool_]:
        """[D, G], whether the classes agree."""
        ours, theirs = ([record["category_id"] for record in records] for records in (self.found, self.truth))
        return np.array(ours, int)[:, None] == np.array(theirs, int)[None, :]


def overlaps(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: ShapeType) -> Iterator[ImageOverlaps]:
    """Overlaps of boxes or masks, image by image.

    Args:
        truth: of `read_ground_truth`.
        results: COCO results of its images.
        iou_type: what is compared.

    Yields:
        The overlaps of each image, those without detections or objects included, in the order of the file.
    """
    objects, found = _by_image(truth["annotations"]), _by_image(results)
    for image in truth["images"]:
        of_truth = objects[image["id"]]
        best_first = sorted(found[image["id"]], key=lambda result: -result["score"])
        shapes = [_shape(record, image, iou_type) for record in best_first], [_shape(r, image, iou_type) for r in of_truth]
        yield ImageOverlaps(best_first, of_truth, *(_ious(*shapes, crowd) for crowd in (0, 1)))


def _by_image(records: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    grouped: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        grouped[record["image_id"]].append(record)
    return grouped


def _shape(record: Mapping[str, Any], image: Mapping[str, Any], iou_type: ShapeType) -> Any:
    if iou_type == "bbox":
        return record["bbox"]
    what = record["segmentation"]
    if isinstance(what, list):
        return coco_mask.merge(coco_mask.frPyObjects(what, image["height"], image["width"]))
    is_plain = isinstance(what["counts"], list)
    return coco_mask.frPyObjects(what, image["height"], image["width"]) if is_plain else what


def _ious(found: list[Any], truth: list[Any], crowd: int) -> NDArray[np.float64]:
    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    return np.array(coco_mask.iou(found, truth, [crowd] * len(truth)))
