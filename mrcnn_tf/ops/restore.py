"""From boxes in the network's input to boxes in the picture that was resized and padded into it.

Shape legend: B images, D rows of detections.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf


def restore_detections(
    detections: Mapping[str, tf.Tensor], windows: tf.Tensor, picture_sizes: tf.Tensor, *, inclusive: bool, clip: bool
) -> dict[str, tf.Tensor]:
    """Move and scale what was found back into the pictures, by the true ratio of each axis; drop what has no area there.

    Args:
        detections: those of docs/contracts.md, B first; a row of any further value belongs to the box of that row.
        windows: [B, 4] float32 `y1, x1, y2, x2` of the resized pictures in the network's input, pixels.
        picture_sizes: [B, 2] int32 (height, width) of the pictures.
        inclusive: scale from first pixel to last pixel, as matterport does, and not from edge to edge.
        clip: cut the boxes at the picture. Masks are in the frames of the boxes, so where the network does not cut its boxes
            before it looks for masks (Model Garden) they must stay whole.

    Returns:
        The same names and shapes: the rows with area first, in their order, then zeros.
    """
    boxes = scale_back(detections["detection_boxes"], windows, picture_sizes, last=int(inclusive))
    sides = tf.cast(picture_sizes, tf.float32)[:, None, :]
    inside = tf.clip_by_value(boxes, 0.0, tf.concat([sides, sides], axis=-1))
    num_rows = tf.shape(boxes)[1]
    is_found = tf.range(num_rows)[None] < detections["num_detections"][:, None]
    is_kept = is_found & (inside[..., 2] > inside[..., 0]) & (inside[..., 3] > inside[..., 1])
    # Kept rows before others, and each in its old order.
    _, order = tf.math.top_k(tf.where(is_kept, num_rows, 0) - tf.range(num_rows)[None], k=num_rows)
    num_kept = tf.reduce_sum(tf.cast(is_kept, tf.int32), axis=1)
    is_row = tf.range(num_rows)[None] < num_kept[:, None]
    rows = {name: value for name, value in detections.items() if name != "num_detections"}
    rows["detection_boxes"] = inside if clip else boxes
    ordered = {name: _keep(tf.gather(value, order, batch_dims=1), is_row) for name, value in rows.items()}
    return {**ordered, "num_detections": num_kept}


def scale_back(boxes: tf.Tensor, windows: tf.Tensor, picture_sizes: tf.Tensor, *, last: int) -> tf.Tensor:
    """Boxes of the network's input in pixels of the pictures.

    Args:
        boxes: [B, D, 4] float32.
        windows: [B, 4] float32.
        picture_sizes: [B, 2] int32.
        last: 1 where a box ends at its last pixel, else 0.

    Returns:
        [B, D, 4] float32.
    """
    ends = tf.constant([0, 0, last, last], tf.float32)
    old, new = _sides(windows, picture_sizes, last)
    corner = windows[:, None, :2]
    # Multiplied before divided: a box that ends at the edge of the input then still does.
    return (boxes - ends - _twice(corner)) * _twice(new) / _twice(old) + ends


def scale_into(boxes: tf.Tensor, windows: tf.Tensor, picture_sizes: tf.Tensor, *, last: int) -> tf.Tensor:
    """The inverse of `scale_back`: boxes of the pictures in pixels of the network's input."""
    ends = tf.constant([0, 0, last, last], tf.float32)
    old, new = _sides(windows, picture_sizes, last)
    return (boxes - ends) * _twice(old) / _twice(new) + ends + _twice(windows[:, None, :2])


def _sides(windows: tf.Tensor, picture_sizes: tf.Tensor, last: int) -> tuple[tf.Tensor, tf.Tensor]:
    """(height, width), [B, 1, 2], of the resized pictures and of the pictures."""
    # A side of one pixel has its first pixel for its last one.
    new = tf.maximum(tf.cast(picture_sizes, tf.float32) - last, 1.0)[:, None]
    return tf.maximum(windows[:, 2:] - windows[:, :2] - last, 1.0)[:, None], new


def _twice(sides: tf.Tensor) -> tf.Tensor:
    return tf.concat([sides, sides], axis=-1)


def _keep(values: tf.Tensor, is_row: tf.Tensor) -> tf.Tensor:
    """Zeros in all other rows of [B, D, ...]."""
    mask = tf.reshape(is_row, tf.concat([tf.shape(is_row), tf.ones([len(values.shape) - 2], tf.int32)], axis=0))
    return tf.where(mask, values, tf.zeros_like(values))
