"""Non-maximum suppression with static output shapes, for TensorFlow, XLA and TFLite.

Shape legend: B images, N boxes of each image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import tensorflow as tf

_DEVICE: ContextVar[str] = ContextVar("mrcnn_tf_nms_device", default="")

EXCLUDED_SCORE = -1e9
"""A box with this score or a lower one is never selected."""


@contextmanager
def nms_on(device: str) -> Iterator[None]:
    """Pin the suppression of whatever is traced here to a device ("/device:CPU:0"); "" leaves it to TensorFlow."""
    token = _DEVICE.set(device)
    try:
        yield
    finally:
        _DEVICE.reset(token)


def nms_device() -> AbstractContextManager[object]:
    """Where what is traced here goes: the device of `nms_on`, or wherever TensorFlow puts it."""
    return tf.device(_DEVICE.get()) if _DEVICE.get() else nullcontext()


def nms_indices(
    boxes: tf.Tensor, scores: tf.Tensor, *, max_output_size: int, iou_threshold: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Greedy non-maximum suppression in each image.

    A box is dropped when its IoU with a selected box of a higher score is above the threshold. Boxes without area neither
    suppress nor are suppressed.

    Args:
        boxes: [B, N, 4], yxyx in pixels. A dynamic B is possible outside `static_graph()` only; N may be dynamic or 0 as well.
        scores: [B, N]; entries of `EXCLUDED_SCORE` or below are never selected.
        max_output_size: most boxes selected in an image; may exceed N.
        iou_threshold: 0..1.

    Returns:
        indices: [B, max_output_size] int32 into the N boxes, by falling score; 0 after the last valid one.
        num_valid: [B] int32.
    """
    boxes = _move_empty_boxes_apart(tf.cast(boxes, tf.float32))
    scores = tf.cast(scores, tf.float32)

    def of_image(image: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        return _nms_of_image(*image, max_output_size, iou_threshold)

    if boxes.shape[0] is None:
        signature = (tf.TensorSpec([max_output_size], tf.int32), tf.TensorSpec([], tf.int32))
        return tf.map_fn(of_image, (boxes, scores), fn_output_signature=signature)
    selected = [of_image(image) for image in zip(tf.unstack(boxes), tf.unstack(scores), strict=True)]
    return tf.stack([indices for indices, _ in selected]), tf.stack([count for _, count in selected])


def offset_boxes_by_group(boxes: tf.Tensor, groups: tf.Tensor, num_groups: int, *, extent: float | None = None) -> tf.Tensor:
    """Shift boxes so that those of different groups cannot overlap: one NMS over all is then one NMS per group.

    The groups are laid out on a square grid of tiles. The largest coordinate is then sqrt(num_groups) tiles and not
    num_groups, which leaves float32 more digits for the boxes.

    Args:
        boxes: [..., N, 4] float32, yxyx in pixels.
        groups: [..., N] int32 in 0..num_groups - 1, a class or a pyramid level.
        num_groups: how many groups there are.
        extent: side of a square that holds all boxes, pixels; None measures the boxes.

    Returns:
        The shifted boxes, [..., N, 4] float32.
    """
    boxes = tf.cast(boxes, tf.float32)
    span = tf.reduce_max(boxes) - tf.reduce_min(boxes) if extent is None else tf.constant(extent, tf.float32)
    side = tf.math.ceil(span) + 1.0
    tiles = math.ceil(math.sqrt(num_groups))
    groups = tf.cast(groups, tf.float32)
    rows = tf.floor((groups + 0.5) / tiles)  # float arithmetic: delegates of TFLite lack integer division
    columns = groups - rows * tiles
    return boxes + tf.stack([rows, columns, rows, columns], axis=-1) * side


def _nms_of_image(boxes: tf.Tensor, scores: tf.Tensor, max_output_size: int, iou_threshold: float) -> tuple[tf.Tensor, tf.Tensor]:
    num_boxes = boxes.shape[0]
    if num_boxes == 0:
        return tf.zeros([max_output_size], tf.int32), tf.zeros([], tf.int32)
    kernel_size = max_output_size if num_boxes is None else min(num_boxes, max_output_size)
    with nms_device():
        indices, num_valid = tf.raw_ops.NonMaxSuppressionV4(
            boxes=boxes,
            scores=scores,
            max_output_size=kernel_size,
            iou_threshold=iou_threshold,
            score_threshold=EXCLUDED_SCORE,
            pad_to_max_output_size=True,
        )
    valid = tf.range(kernel_size) < num_valid
    indices = tf.pad(tf.where(valid, indices, 0), [[0, max_output_size - kernel_size]])
    return tf.ensure_shape(indices, [max_output_size]), num_valid


def _move_empty_boxes_apart(boxes: tf.Tensor) -> tf.Tensor:
    """Replace each box without area by a unit square of its own, away from all others.

    TFLite's kernel removes a selected box by its IoU with itself. That is 0 for a box without area, which it therefore
    selects again and again. The squares overlap nothing, so the result is that of the boxes as they were.
    """
    heights = tf.abs(boxes[..., 2] - boxes[..., 0])  # the kernel takes corners in any order
    widths = tf.abs(boxes[..., 3] - boxes[..., 1])
    empty = heights * widths <= 0.0
    corner = tf.floor(tf.reduce_min(boxes)) - 2.0 * tf.cast(tf.range(1, tf.shape(boxes)[1] + 1), tf.float32)
    squares = tf.stack([corner, corner, corner + 1.0, corner + 1.0], axis=-1)  # [N, 4], down the diagonal
    return tf.where(tf.expand_dims(empty, -1), squares, boxes)
