"""What a training step tells besides its losses: how well the proposals cover the objects, and how many regions are positive."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.ops import boxes as box_ops
from mrcnn_tf.ops import losses

RECALL_IOU = 0.5
OBSERVED = ("proposal_recall", "rpn_positives", "roi_positives")
"""Objects covered by a proposal of IoU 0.5 over all objects; sampled positive anchors, and regions, over the images."""


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class ProposalRecall(keras.layers.Layer):
    """Objects that some proposal covers, over all objects, as a term (`mrcnn_tf.ops.losses.term`).

    Call with proposals [B, P, 4], is_valid [B, P], gt_boxes [B, G, 4], gt_classes [B, G], gt_crowd [B, G].
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)

    def call(
        self, proposals: tf.Tensor, is_valid: tf.Tensor, gt_boxes: tf.Tensor, gt_classes: tf.Tensor, gt_crowd: tf.Tensor
    ) -> tf.Tensor:
        """Compare."""
        best = tf.reduce_max(tf.where(is_valid[..., None], box_ops.iou_matrix(proposals, gt_boxes), 0.0), axis=1)
        is_object = (gt_classes > 0) & ~gt_crowd
        covered = tf.cast(is_object & (best >= RECALL_IOU), tf.float32)
        return losses.term(tf.reduce_sum(covered), tf.reduce_sum(tf.cast(is_object, tf.float32)))


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class PositivesPerImage(keras.layers.Layer):
    """Sampled regions of an object, over the images: class_targets [B, R] int32, 0 and below for others, to a term."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)

    def call(self, class_targets: tf.Tensor) -> tf.Tensor:
        """Count."""
        positives = tf.reduce_sum(tf.cast(class_targets > 0, tf.float32))
        return losses.term(positives, tf.cast(tf.shape(class_targets)[0], tf.float32))
