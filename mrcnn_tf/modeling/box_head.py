"""The box branch: sampling of proposals, head, losses, detections (Girshick, 2015; He et al., 2017).

Shapes: B images, P proposals, G rows of ground truth, R sampled regions, M flat regions, K foreground classes, D detections.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.ops import boxes as box_ops
from mrcnn_tf.ops import losses, matching, nms
from mrcnn_tf.ops.suppression import Suppression


def build_box_head(
    in_channels: int,
    *,
    pool_size: int,
    kind: str,
    norm: str,
    norm_epsilon: float,
    conv_width: int,
    fc_width: int,
    num_classes: int,
    class_agnostic: bool,
) -> keras.Model:
    """Two fully connected layers, or four convolutions and one.

    Args:
        in_channels: C of the pooled features.
        pool_size: side of the pooled features.
        kind: "2fc" or "4conv1fc".
        norm: of the convolutions.
        norm_epsilon: of the norm.
        conv_width: channels of the convolutions.
        fc_width: units of the fully connected layers.
        num_classes: K.
        class_agnostic: one box per region instead of one per class.

    Returns:
        A model: [M, size, size, C] -> class logits [M, K + 1] (0 is background) and deltas [M, K or 1, 4] of the foreground
        classes. Layers `conv0`..`conv3`, `fc0`, `fc1`, `class_logits`, `box_deltas`. Features are flattened in (row, column,
        channel) order.
    """
    regions = keras.Input((pool_size, pool_size, in_channels), name="regions")
    num_convs, num_fcs = {"2fc": (0, 2), "4conv1fc": (4, 1)}[kind]
    x = regions
    for i in range(num_convs):
        x = ConvNorm(conv_width, 3, norm=norm, norm_epsilon=norm_epsilon, activation="relu", name=f"conv{i}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for i in range(num_fcs):
        x = keras.layers.Dense(fc_width, activation="relu", kernel_initializer=_fc_init(), name=f"fc{i}")(x)
    class_logits = _predictor(num_classes + 1, 0.01, "class_logits")(x)
    boxes = 1 if class_agnostic else num_classes
    deltas = _predictor(4 * boxes, 0.001, "box_deltas")(x)
    return keras.Model(regions, [class_logits, keras.layers.Reshape((boxes, 4), name="reshape")(deltas)], name="box_head")


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class RoiSampler(keras.layers.Layer):
    """Draws the regions that the heads are trained on; the ground truth itself is among the candidates.

    Call with proposals [B, P, 4], is_valid [B, P], gt_boxes [B, G, 4], gt_classes [B, G], gt_crowd [B, G], seeds [B, 2] int32.
    Returns a dict: rois [B, R, 4], class_targets [B, R] int32 (0 background, -1 empty row), matched_indices [B, R] int32;
    foreground rows come first.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        positive_fraction: float,
        foreground_iou_threshold: float,
        crowd_overlap_threshold: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.num_samples = num_samples
        self.positive_fraction = positive_fraction
        self.foreground_iou_threshold = foreground_iou_threshold
        self.crowd_overlap_threshold = crowd_overlap_threshold

    def call(
        self,
        proposals: tf.Tensor,
        is_valid: tf.Tensor,
        gt_boxes: tf.Tensor,
        gt_classes: tf.Tensor,
        gt_crowd: tf.Tensor,
        seeds: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Sample."""
        gt_valid = (gt_classes > 0) & ~gt_crowd
        boxes = tf.concat([proposals, gt_boxes], axis=1)
        labels, matched = matching.match(
            boxes,
            gt_boxes,
            gt_valid,
            foreground_iou_threshold=self.foreground_iou_threshold,
            background_iou_threshold=self.foreground_iou_threshold,
            allow_low_quality=False,
        )
        labels = matching.ignore_crowd(labels, boxes, gt_boxes, gt_crowd, self.crowd_overlap_threshold)
        labels = tf.where(tf.concat([is_valid, gt_valid], axis=1), labels, matching.IGNORED)
        # The RPN draws with the same seed from another number of boxes: its draw and this one are unrelated.
        keys = matching.random_keys(
            seeds + tf.constant([1, 0]), tf.shape(labels)[1] if labels.shape[1] is None else labels.shape[1]
        )
        rows, is_foreground, drawn = matching.sample(
            labels, keys, num_samples=self.num_samples, positive_fraction=self.positive_fraction
        )
        matched = tf.gather(matched, rows, batch_dims=1)
        classes = tf.where(is_foreground, tf.gather(gt_classes, matched, batch_dims=1), 0)
        return {
            "rois": tf.stop_gradient(tf.gather(boxes, rows, batch_dims=1)),
            "class_targets": tf.where(drawn, classes, -1),
            "matched_indices": matched,
        }


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class BoxLosses(keras.layers.Layer):
    """Loss terms of the box branch, both normalised by the number of sampled regions (Fast R-CNN, detectron2).

    Call with class_logits [M, K + 1], deltas [M, K or 1, 4], rois [M, 4], class_targets [M] and matched_boxes [M, 4].
    """

    def __init__(
        self, *, box_weights: tuple[float, float, float, float], box_loss: str, smooth_l1_beta: float, **kwargs: Any
    ) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.box_weights = box_weights
        self.box_loss = box_loss
        self.smooth_l1_beta = smooth_l1_beta

    def call(
        self, class_logits: tf.Tensor, deltas: tf.Tensor, rois: tf.Tensor, class_targets: tf.Tensor, matched_boxes: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Class term and box term."""
        is_drawn = class_targets >= 0
        normaliser = tf.reduce_sum(tf.cast(is_drawn, tf.float32))
        class_losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(class_targets, 0), logits=class_logits)
        class_total = tf.reduce_sum(tf.where(is_drawn, class_losses, 0.0))
        predicted = tf.gather(deltas, box_rows(class_targets, deltas.shape[1]), batch_dims=1)
        residual = predicted - box_ops.encode(matched_boxes, rois, self.box_weights)
        residual = tf.where((class_targets > 0)[..., None], residual, 0.0)
        box_total = tf.reduce_sum(losses.box_regression(residual, self.box_loss, self.smooth_l1_beta))
        return losses.term(class_total, normaliser), losses.term(box_total, normaliser)


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class DetectBoxes(keras.layers.Layer):
    """Decode, clip, class-wise NMS, the best D. With `best_class_only` a proposal stands for its best class alone, or for none.

    Call with class_logits [B, P, K + 1], deltas [B, P, K or 1, 4], proposals [B, P, 4], is_valid [B, P], windows [B, 4].
    Returns boxes [B, D, 4], classes [B, D] int32, scores [B, D], num_detections [B] int32 (`docs/contracts.md`).
    """

    def __init__(
        self,
        *,
        box_weights: tuple[float, float, float, float],
        score_threshold: float,
        suppression: Suppression,
        max_detections: int,
        min_box_size: float,
        pre_nms_top_k: int | None,
        best_class_only: bool = False,
        max_log_scale: float | None = box_ops.MAX_LOG_SCALE,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.box_weights = box_weights
        self.score_threshold = score_threshold
        self.suppression = suppression
        self.max_detections = max_detections
        self.min_box_size = min_box_size
        self.pre_nms_top_k = pre_nms_top_k
        self.best_class_only = best_class_only
        self.max_log_scale = max_log_scale

    def call(
        self, class_logits: tf.Tensor, deltas: tf.Tensor, proposals: tf.Tensor, is_valid: tf.Tensor, windows: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Detect."""
        num_proposals, num_classes = class_logits.shape[1], class_logits.shape[2] - 1
        boxes = box_ops.decode(deltas, proposals[:, :, None, :], self.box_weights, self.max_log_scale)
        boxes = box_ops.clip(boxes, windows)
        scores = tf.nn.softmax(class_logits)[..., 1:]
        if self.best_class_only:
            scores = tf.where(is_best(class_logits, first=1), scores, 0.0)
        usable = box_ops.are_larger(boxes, self.min_box_size) & tf.expand_dims(is_valid, -1) & (scores > self.score_threshold)
        scores = tf.reshape(tf.where(usable, scores, nms.EXCLUDED_SCORE), [-1, num_proposals * num_classes])
        num_pairs = num_proposals * num_classes
        scores, flat = tf.math.top_k(scores, k=min(self.pre_nms_top_k or num_pairs, num_pairs))
        # Float division keeps this exact below 2**24 pairs, and TFLite has it as one operation.
        roi = tf.cast(tf.floor((tf.cast(flat, tf.float32) + 0.5) / num_classes), tf.int32)
        classes = flat - roi * num_classes
        per_class = deltas.shape[2] > 1 or num_classes == 1
        box_row = flat if per_class else roi
        boxes = tf.gather(tf.reshape(boxes, [-1, num_proposals * deltas.shape[2], 4]), box_row, batch_dims=1)
        boxes = tf.where(tf.expand_dims(scores > nms.EXCLUDED_SCORE, -1), boxes, 0.0)
        return self._suppress(boxes, classes, scores, num_classes)

    def _suppress(
        self, boxes: tf.Tensor, classes: tf.Tensor, scores: tf.Tensor, num_classes: int
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        kept, scores, num_detections = self.suppression(
            boxes, classes, scores, num_classes=num_classes, max_output_size=self.max_detections
        )
        is_detection = tf.range(self.max_detections)[None, :] < num_detections[:, None]
        boxes, classes = (tf.gather(values, kept, batch_dims=1) for values in (boxes, classes))
        return (
            tf.where(tf.expand_dims(is_detection, -1), boxes, 0.0),
            tf.where(is_detection, classes + 1, 0),
            tf.where(is_detection, scores, 0.0),
            num_detections,
        )


def is_best(logits: tf.Tensor, first: int = 0) -> tf.Tensor:
    """Whether a class has the highest logit, the first one where several have it: [..., C] -> bool [..., C - first]."""
    return tf.range(first, logits.shape[-1]) == tf.expand_dims(tf.argmax(logits, axis=-1, output_type=tf.int32), -1)


def box_rows(classes: tf.Tensor, num_boxes: int) -> tf.Tensor:
    """Row of a head's per-class output that belongs to a class.

    Args:
        classes: int32, 0 and below for background (row 0, to be masked by the caller).
        num_boxes: rows there are: K, or 1 for a class-agnostic head.

    Returns:
        int32 of the same shape.
    """
    return tf.clip_by_value(classes - 1, 0, num_boxes - 1)


def _fc_init() -> keras.initializers.Initializer:
    return keras.initializers.VarianceScaling(1.0, mode="fan_in", distribution="uniform")


def _predictor(units: int, stddev: float, name: str) -> keras.layers.Dense:
    return keras.layers.Dense(units, kernel_initializer=keras.initializers.RandomNormal(stddev=stddev), name=name)
