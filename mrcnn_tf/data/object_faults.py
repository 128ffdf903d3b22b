"""What only shows with the box and the mask of an object side by side, and beside its image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_tf.data.coco import CocoObject, Record
from mrcnn_tf.data.masks import Segmentation, polygon_coverage

MIN_BOX_MASK_IOU = 0.5
MAX_SIDE_OFFSET = (3.0, 0.1)
"""Pixels and share of the box's height or width: a side of the mask's box may be further off by one of them, not by both."""
MAX_BEYOND = 1.0
"""Pixels by which a box may reach beyond its image: annotation tools round outwards."""

_CELLS = (56, 56)
Box = tuple[float, float, float, float]


def object_faults(item: CocoObject, record: Record, entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with an object that was read.

    Args:
        item: the object.
        record: its image.
        entry: the object as it is in the file.

    Returns:
        Kinds and messages.
    """
    image_size = (record.height, record.width)
    size = f"{record.height} x {record.width} pixels (height x width)"
    x, y, width, height = entry["bbox"]
    flat = item.box[2] <= item.box[0] or item.box[3] <= item.box[1]
    if flat:
        yield "empty box", f"bbox {entry['bbox']} has no width or no height; training leaves it out"
    elif max(-x, -y, x + width - record.width, y + height - record.height) > MAX_BEYOND:
        yield "box beyond image", f"bbox {entry['bbox']} reaches beyond its image of {size}; it is cut there"
    if item.segmentation is None:
        return
    box = mask_box(item.segmentation, image_size)
    if box is None:
        yield "empty mask", f"the segmentation covers nothing of its image of {size}"
    elif not flat and _disagree(item.box, box):
        yield "box and mask", f"the box is {corners(item.box)}, the mask fills {corners(box)} (IoU {iou(item.box, box):.2f})"


def mask_box(segmentation: Segmentation, image_size: tuple[int, int]) -> Box | None:
    """The box that a mask fills, within its image.

    Args:
        segmentation: polygons or a compressed RLE.
        image_size: (height, width), pixels.

    Returns:
        (y1, x1, y2, x2) in pixels, the polygons' own corners (not rounded to pixels), or None for an empty mask.
    """
    if isinstance(segmentation, Mapping):
        if not coco_mask.area(segmentation):
            return None
        x, y, width, height = coco_mask.toBbox(segmentation).tolist()
        return y, x, y + height, x + width
    points = np.concatenate([np.asarray(polygon).reshape(-1, 2) for polygon in segmentation])[:, ::-1]
    top, left, bottom, right = np.clip([*points.min(axis=0), *points.max(axis=0)], 0, [*image_size, *image_size]).tolist()
    box = (top, left, bottom, right)
    if bottom <= top or right <= left or not polygon_coverage(segmentation, box, _CELLS).any():
        return None
    return box


def _disagree(box: Box, other: Box) -> bool:
    pixels, share = MAX_SIDE_OFFSET
    sides = (box[2] - box[0], box[3] - box[1]) * 2
    far = any(abs(a - b) >= pixels and abs(a - b) > share * side for a, b, side in zip(box, other, sides, strict=True))
    return far or iou(box, other) < MIN_BOX_MASK_IOU


def iou(box: Box, other: Box) -> float:
    """Overlap of two boxes as a share of what both cover."""
    height, width = (max(0.0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in (0, 1))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return height * width / (sum(areas) - height * width)


def corners(box: Sequence[float]) -> str:
    """How messages say where a box is."""
    y1, x1, y2, x2 = (f"{side:g}" for side in np.round(box, 1))
    return f"x {x1} to {x2}, y {y1} to {y2}"
