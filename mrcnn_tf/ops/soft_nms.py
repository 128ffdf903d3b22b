"""Soft-NMS (Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", ICCV 2017) with static output shapes.

Instead of dropping the boxes that overlap the best one, it lowers their scores. One loop of plain operations serves TensorFlow,
XLA and TFLite: TensorFlow's own kernel knows the Gaussian only, and XLA lacks it.

Shape legend: B images, N boxes of each image.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from mrcnn_tf.ops import boxes as box_ops
from mrcnn_tf.ops.nms import EXCLUDED_SCORE, nms_device

Decay = Callable[[tf.Tensor], tf.Tensor]
"""From IoUs with the box that was selected to what scores are multiplied by."""


def linear_decay(iou_threshold: float) -> Decay:
    """1 - IoU from the threshold on, 1 below it."""
    return lambda ious: tf.where(ious >= iou_threshold, 1.0 - ious, 1.0)


def gaussian_decay(sigma: float) -> Decay:
    """exp(-IoU^2 / sigma)."""
    return lambda ious: tf.exp(-tf.square(ious) / sigma)


def soft_nms(
    boxes: tf.Tensor, scores: tf.Tensor, groups: tf.Tensor, *, max_output_size: int, decay: Decay, min_score: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Select the best box, lower the scores of the rest of its group by how much they overlap it, and so on.

    Args:
        boxes: [B, N, 4], yxyx in pixels. B and N may be dynamic, N may be 0.
        scores: [B, N], above 0; entries of `EXCLUDED_SCORE` or below are never selected.
        groups: [B, N] int32. Boxes of different groups (classes) do not touch each other.
        max_output_size: most boxes selected in an image; may exceed N.
        decay: what scores are multiplied by; `linear_decay` or `gaussian_decay`.
        min_score: boxes whose score falls below it are dropped.

    Returns:
        indices: [B, max_output_size] int32 into the N boxes, in the order of selection; 0 after the last valid one.
        scores: [B, max_output_size] float32, the lowered ones, falling; 0 after the last valid one.
        num_valid: [B] int32.
    """
    boxes, scores = tf.cast(boxes, tf.float32), tf.cast(scores, tf.float32)
    num_images, num_boxes = tf.unstack(tf.shape(scores))
    # A last box that is never selected keeps argmax away from an empty list.
    boxes = tf.pad(boxes, [[0, 0], [0, 1], [0, 0]])
    scores = tf.pad(scores, [[0, 0], [0, 1]], constant_values=EXCLUDED_SCORE)
    groups = tf.pad(groups, [[0, 0], [0, 1]], constant_values=-1)
    positions, slots = tf.range(num_boxes + 1)[None], tf.range(max_output_size)[None]

    def is_going_on(step: tf.Tensor, left: tf.Tensor, *selected: tf.Tensor) -> tf.Tensor:
        del selected
        return (step < max_output_size) & (tf.reduce_max(left) > EXCLUDED_SCORE)

    def select(
        step: tf.Tensor, left: tf.Tensor, indices: tf.Tensor, values: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        best = tf.argmax(left, axis=1, output_type=tf.int32)[:, None]
        value = tf.gather(left, best, batch_dims=1)
        chosen, group = (tf.gather(of, best, batch_dims=1) for of in (boxes, groups))
        ious = tf.where(groups == group, box_ops.iou_matrix(chosen, boxes)[:, 0], 0.0)
        lowered = left * decay(ious)
        stays = (left > EXCLUDED_SCORE) & (lowered >= min_score) & (positions != best)
        is_slot = (slots == step) & (value > EXCLUDED_SCORE)
        left = tf.where(stays, lowered, EXCLUDED_SCORE)
        return step + 1, left, tf.where(is_slot, best, indices), tf.where(is_slot, value, values)

    empty = tf.fill([num_images, max_output_size], 0)
    with nms_device():
        _, _, indices, values = tf.while_loop(is_going_on, select, (0, scores, empty, tf.cast(empty, tf.float32)))
    shape = [boxes.shape[0], max_output_size]
    indices, values = tf.ensure_shape(indices, shape), tf.ensure_shape(values, shape)
    return indices, values, tf.reduce_sum(tf.cast(values > 0.0, tf.int32), axis=1)
