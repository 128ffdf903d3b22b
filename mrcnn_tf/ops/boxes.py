"""Geometry of axis-aligned boxes `[y1, x1, y2, x2]` (float32, pixels, no `+1`)."""

from __future__ import annotations

import math

import tensorflow as tf

MAX_LOG_SCALE = math.log(1000.0 / 16)
"""Upper bound of (dh, dw) before exponentiation, as in Detectron, detectron2 and torchvision."""


def areas(boxes: tf.Tensor) -> tf.Tensor:
    """Areas in square pixels; 0 where a side is negative.

    Args:
        boxes: [..., 4].

    Returns:
        [...] float32.
    """
    sides = tf.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def intersections(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Pairwise intersection areas.

    Args:
        boxes: [..., N, 4].
        others: [..., M, 4].

    Returns:
        [..., N, M] float32, square pixels.
    """
    y1, x1, y2, x2 = tf.split(boxes, 4, axis=-1)
    other_y1, other_x1, other_y2, other_x2 = (tf.linalg.matrix_transpose(c) for c in tf.split(others, 4, axis=-1))
    height = tf.maximum(tf.minimum(y2, other_y2) - tf.maximum(y1, other_y1), 0.0)
    width = tf.maximum(tf.minimum(x2, other_x2) - tf.maximum(x1, other_x1), 0.0)
    return height * width


def iou_matrix(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Pairwise intersection over union; 0 for two empty boxes.

    Args:
        boxes: [..., N, 4].
        others: [..., M, 4].

    Returns:
        [..., N, M] float32 in 0..1.
    """
    shared = intersections(boxes, others)
    union = areas(boxes)[..., :, None] + areas(others)[..., None, :] - shared
    return tf.math.divide_no_nan(shared, union)


def overlap_fractions(boxes: tf.Tensor, regions: tf.Tensor) -> tf.Tensor:
    """Part of each box that each region covers (intersection over the box's own area).

    Args:
        boxes: [..., N, 4].
        regions: [..., M, 4].

    Returns:
        [..., N, M] float32 in 0..1.
    """
    return tf.math.divide_no_nan(intersections(boxes, regions), areas(boxes)[..., :, None])


def encode(boxes: tf.Tensor, anchors: tf.Tensor, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> tf.Tensor:
    """Regression targets that turn `anchors` into `boxes` (R-CNN, appendix C).

    Args:
        boxes: [..., 4] targets. Empty ones give finite, meaningless rows: mask them.
        anchors: [..., 4] reference boxes.
        weights: scale of (dy, dx, dh, dw).

    Returns:
        [..., 4] deltas (dy, dx, dh, dw).
    """
    smallest = 1e-6  # keeps the logarithm finite for the empty rows, which every loss masks out
    anchor_size = tf.maximum(anchors[..., 2:] - anchors[..., :2], smallest)
    box_size = tf.maximum(boxes[..., 2:] - boxes[..., :2], smallest)
    shift = (boxes[..., :2] + 0.5 * box_size - anchors[..., :2] - 0.5 * anchor_size) / anchor_size
    return tf.concat([shift, tf.math.log(box_size / anchor_size)], axis=-1) * tf.constant(weights)


def decode(
    deltas: tf.Tensor,
    anchors: tf.Tensor,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    max_log_scale: float | None = MAX_LOG_SCALE,
) -> tf.Tensor:
    """Boxes that `deltas` make of `anchors`; the inverse of `encode`.

    Args:
        deltas: [..., 4] (dy, dx, dh, dw).
        anchors: [..., 4].
        weights: scale of (dy, dx, dh, dw).
        max_log_scale: (dh, dw) are cut here; None: nowhere.

    Returns:
        [..., 4] boxes.
    """
    deltas = deltas / tf.constant(weights)
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + 0.5 * anchor_size + deltas[..., :2] * anchor_size
    log_scale = deltas[..., 2:] if max_log_scale is None else tf.minimum(deltas[..., 2:], max_log_scale)
    size = anchor_size * tf.exp(log_scale)
    return tf.concat([centre - 0.5 * size, centre + 0.5 * size], axis=-1)


def image_windows(image_sizes: tf.Tensor, input_size: tf.Tensor, centred: bool) -> tf.Tensor:
    """Where each image lies in the padded input.

    Args:
        image_sizes: [B, 2] (height, width), any number type.
        input_size: [2] int32 (height, width) of the padded input.
        centred: with half of the padding, rounded down, above and to the left (matterport); otherwise in the upper left corner.

    Returns:
        [B, 4] float32 boxes, pixels of the padded input.
    """
    sizes = tf.cast(image_sizes, tf.float32)
    # Of floats, because delegates of TFLite lack integer division.
    starts = tf.floor((tf.cast(input_size, tf.float32) - sizes) / 2.0) if centred else tf.zeros_like(sizes)
    return tf.concat([starts, starts + sizes], axis=1)


def clip(boxes: tf.Tensor, windows: tf.Tensor) -> tf.Tensor:
    """Cut boxes at a window for each image.

    Args:
        boxes: [B, ..., 4].
        windows: [B, 4] boxes, float32.

    Returns:
        Boxes of the same shape within the windows; those that lie outside are left without area.
    """
    windows = tf.reshape(windows, [-1] + [1] * (len(boxes.shape) - 2) + [4])
    starts, ends = tf.concat([windows[..., :2]] * 2, axis=-1), tf.concat([windows[..., 2:]] * 2, axis=-1)
    return tf.clip_by_value(boxes, starts, ends)


def move_ends(boxes: tf.Tensor, pixels: float) -> tf.Tensor:
    """Move (y2, x2) by `pixels`; rows of zeros, which stand for no box, stay: [..., 4] -> [..., 4]."""
    moved = boxes + tf.constant([0.0, 0.0, pixels, pixels])
    return tf.where(tf.reduce_any(boxes != 0.0, axis=-1, keepdims=True), moved, 0.0)


def are_larger(boxes: tf.Tensor, min_size: float) -> tf.Tensor:
    """Whether both sides are finite and above `min_size` pixels: [..., 4] -> [...] bool."""
    sides = boxes[..., 2:] - boxes[..., :2]
    finite = tf.reduce_all(tf.math.is_finite(boxes), axis=-1)
    return finite & tf.reduce_all(sides > min_size, axis=-1)
