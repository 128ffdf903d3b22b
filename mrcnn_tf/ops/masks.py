"""Mask targets: the ground truth's coverage crops, resampled to the frames of rois."""

from __future__ import annotations

import tensorflow as tf

_MIN_EXTENT = 1e-6
"""Keeps the division by the extent of an empty box or roi finite."""


def crop_mask_targets(
    gt_masks: tf.Tensor, gt_boxes: tf.Tensor, rois: tf.Tensor, matched_indices: tf.Tensor, *, size: int = 28
) -> tf.Tensor:
    """Coverage of each cell of a roi's grid by the object that the roi is matched with.

    The coverage crop is taken as constant within its own cells and integrated over the cells of the roi, which is two small
    matrix products per roi: rows . crop . columns^T. Outside of its box an object covers nothing.

    Args:
        gt_masks: [B, G, M, M] uint8, 255 times the coverage of the cells of each object's own box.
        gt_boxes: [B, G, 4] float32, yxyx in pixels.
        rois: [B, F, 4] float32, yxyx in pixels.
        matched_indices: [B, F] int32 into the G objects.
        size: cells per axis of the result.

    Returns:
        [B, F, size, size] float32 in 0..1; 0 for a roi without area.
    """
    boxes = tf.gather(tf.cast(gt_boxes, tf.float32), matched_indices, batch_dims=1)
    crops = tf.cast(tf.gather(gt_masks, matched_indices, batch_dims=1), tf.float32) / 255.0
    rois = tf.cast(rois, tf.float32)
    rows = _cell_weights(rois[..., 0], rois[..., 2], boxes[..., 0], boxes[..., 2], size, gt_masks.shape[-2])
    columns = _cell_weights(rois[..., 1], rois[..., 3], boxes[..., 1], boxes[..., 3], size, gt_masks.shape[-1])
    return tf.matmul(tf.matmul(rows, crops), columns, transpose_b=True)


def _cell_weights(start: tf.Tensor, end: tf.Tensor, box_start: tf.Tensor, box_end: tf.Tensor, size: int, side: int) -> tf.Tensor:
    """[B, F, size, side]: the part of each of the roi's `size` cells that lies in each of the object's `side` cells."""
    scale = side / tf.maximum(box_end - box_start, _MIN_EXTENT)
    edges = start[..., None] + (end - start)[..., None] * (tf.range(size + 1, dtype=tf.float32) / size)
    edges = (edges - box_start[..., None]) * scale[..., None]  # [B, F, size + 1], in cells of the crop
    below = tf.clip_by_value(edges[..., None] - tf.range(side, dtype=tf.float32), 0.0, 1.0)  # part of a cell below an edge
    # The extents of the rounded edges: with the exact ones the weights of a tiny roi would not sum to 1.
    extents = tf.maximum(edges[..., 1:] - edges[..., :-1], _MIN_EXTENT)
    return (below[..., 1:, :] - below[..., :-1, :]) / extents[..., None]
