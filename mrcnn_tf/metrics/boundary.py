"""Boundary IoU of masks (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021).

The boundary of a mask is what of it lies within a distance of its outline: the mask less its erosion by a square. The distance is
2 % of the image's diagonal. Boundary AP is COCO's AP with the smaller of mask IoU and boundary IoU in the place of the IoU; crowd
regions are compared by their masks, as the authors' program does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from mrcnn_tf.paste import Rle, encode_region

DILATION_RATIO = 0.02
"""Part of the image's diagonal that a boundary is wide, as published."""


def boundary(rle: Mapping[str, Any], dilation_ratio: float = DILATION_RATIO) -> Rle:
    """The boundary of a mask.

    Args:
        rle: compressed run lengths of the mask.
        dilation_ratio: part of the image's diagonal that the boundary is wide, rounded to whole pixels, at least one.

    Returns:
        Run lengths of the pixels of the mask that have a pixel outside of it, or the image's edge, within that distance
        (the larger of the vertical and the horizontal one).
    """
    height, width = (int(side) for side in rle["size"])
    distance = max(1, round(dilation_ratio * math.hypot(height, width)))
    x, y, w, h = (int(side) for side in coco_mask.toBbox(rle))
    # Outside of its box the mask is empty, so the box is all that has to be eroded.
    region = coco_mask.decode(rle)[y : y + h, x : x + w].astype(bool)
    return encode_region(y, x, region & ~_erode(_erode(region, distance, 0), distance, 1), (height, width))


def boundary_ious(
    detections: Sequence[Mapping[str, Any]], truth: Sequence[Mapping[str, Any]], is_crowd: Sequence[int]
) -> NDArray[np.float64]:
    """The smaller of mask IoU and boundary IoU.

    Args:
        detections: D run lengths.
        truth: G run lengths.
        is_crowd: G times 1 for a crowd region, else 0.

    Returns:
        [D, G]; for a crowd region the part of the detection that it covers, by masks alone.
    """
    if not detections or not truth:
        return np.zeros((len(detections), len(truth)))
    ious = np.array(coco_mask.iou(list(detections), list(truth), list(is_crowd)))
    edges = [[boundary(rle) for rle in rles] for rles in (detections, truth)]
    of_edges = np.array(coco_mask.iou(*edges, list(is_crowd)))
    return np.where(np.array(is_crowd, bool), ious, np.minimum(ious, of_edges))


class BoundaryEval(COCOeval):
    """COCOeval of masks (`iouType` "segm") by `boundary_ious`."""

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803
        """[D, G] of an image and a class, the detections best first and at most as many as count."""
        truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
        order = np.argsort([-record["score"] for record in found], kind="mergesort")[: self.params.maxDets[-1]]
        return boundary_ious(
            [found[number]["segmentation"] for number in order],
            [record["segmentation"] for record in truth],
            [int(record["iscrowd"]) for record in truth],
        )


def _erode(region: NDArray[np.bool_], distance: int, axis: int) -> NDArray[np.bool_]:
    """Pixels all of whose neighbours along an axis, up to the distance, are set; outside of the region none is."""
    padding = [(distance + 1, distance) if number == axis else (0, 0) for number in range(2)]
    counts = np.cumsum(np.pad(region, padding), axis=axis, dtype=np.int32)
    size, window = region.shape[axis], 2 * distance + 1
    return counts.take(range(window, window + size), axis) - counts.take(range(size), axis) == window
