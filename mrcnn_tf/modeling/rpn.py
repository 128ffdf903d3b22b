"""The region proposal network: head, targets and losses, proposals (Ren et al., 2015, on a pyramid as Lin et al., 2017).

Shapes: B images, A anchors per location, L levels, N anchors of all levels (fine to coarse), P proposals, G rows of ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.ops import boxes as box_ops
from mrcnn_tf.ops import losses, matching, nms
from mrcnn_tf.ops.anchors import cell_anchors, level_anchors

_INIT = keras.initializers.RandomNormal(stddev=0.01)


def build_rpn_head(in_channels: int, *, width: int, num_convs: int, num_anchors: int) -> keras.Model:
    """The head shared by all levels.

    Args:
        in_channels: channels of the pyramid.
        width: channels of the hidden convolutions.
        num_convs: hidden 3x3 convolutions.
        num_anchors: A.

    Returns:
        A model: feature map [B, H, W, C] -> objectness logits [B, H, W, A] and deltas [B, H, W, 4 A], channel `4 a + k` being
        component k of (dy, dx, dh, dw) of anchor a. Layers `conv0`.., `objectness`, `deltas`.
    """
    features = keras.Input((None, None, in_channels), name="features")
    x = features
    for i in range(num_convs):
        x = ConvNorm(width, 3, norm="none", activation="relu", kernel_initializer=_INIT, name=f"conv{i}")(x)
    objectness = ConvNorm(num_anchors, 1, norm="none", kernel_initializer=_INIT, name="objectness")(x)
    deltas = ConvNorm(4 * num_anchors, 1, norm="none", kernel_initializer=_INIT, name="deltas")(x)
    return keras.Model(features, [objectness, deltas], name="rpn_head")


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class Anchors(keras.layers.Layer):
    """Anchors of every level: feature maps [B, H_l, W_l, C] -> list of [H_l W_l A, 4] float32."""

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float],
        strides: Sequence[int],
        *,
        rounded: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.strides = tuple(strides)
        self.cells = [cell_anchors(level, aspect_ratios, rounded=rounded) for level in sizes]

    def call(self, features: list[tf.Tensor]) -> list[tf.Tensor]:
        """Lay the cell anchors of each level over its feature map."""
        return [
            level_anchors(_spatial_size(level), stride, cell)
            for level, stride, cell in zip(features, self.strides, self.cells, strict=True)
        ]


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class Proposals(keras.layers.Layer):
    """The best boxes of the RPN: top-k per level, decode, clip, NMS per level, top-k over all levels.

    Call with lists over levels: objectness [B, H_l, W_l, A], deltas [B, H_l, W_l, 4 A], anchors [N_l, 4]; and image_sizes [B, 2].
    Returns proposals [B, P, 4] (no gradient; padding rows are 0) and is_valid [B, P] bool.
    """

    def __init__(
        self, *, pre_nms_top_k: int, post_nms_top_k: int, nms_iou_threshold: float, min_box_size: float, **kwargs: Any
    ) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.pre_nms_top_k = pre_nms_top_k
        self.post_nms_top_k = post_nms_top_k
        self.nms_iou_threshold = nms_iou_threshold
        self.min_box_size = min_box_size

    def call(
        self, objectness: list[tf.Tensor], deltas: list[tf.Tensor], anchors: list[tf.Tensor], image_sizes: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Propose."""
        levels = [
            self._propose_on_level(flatten(o, 1)[..., 0], flatten(d, 4), a, image_sizes)
            for o, d, a in zip(objectness, deltas, anchors, strict=True)
        ]
        boxes = tf.concat([level[0] for level in levels], axis=1)
        scores = tf.concat([level[1] for level in levels], axis=1)
        short = max(0, self.post_nms_top_k - scores.shape[1])
        scores = tf.pad(scores, [[0, 0], [0, short]], constant_values=nms.EXCLUDED_SCORE)
        boxes = tf.pad(boxes, [[0, 0], [0, short], [0, 0]])
        scores, kept = tf.math.top_k(scores, k=self.post_nms_top_k)
        is_valid = scores > nms.EXCLUDED_SCORE
        proposals = tf.where(is_valid[..., None], tf.gather(boxes, kept, batch_dims=1), 0.0)
        return tf.stop_gradient(proposals), is_valid

    def _propose_on_level(
        self, scores: tf.Tensor, deltas: tf.Tensor, anchors: tf.Tensor, image_sizes: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        static_count = scores.shape[1]
        count = tf.shape(scores)[1] if static_count is None else static_count
        k = tf.minimum(self.pre_nms_top_k, count) if static_count is None else min(self.pre_nms_top_k, static_count)
        scores, best = tf.math.top_k(scores, k=k)
        boxes = box_ops.decode(tf.gather(deltas, best, batch_dims=1), tf.gather(anchors, best))
        boxes = box_ops.clip(boxes, image_sizes)
        usable = box_ops.are_larger(boxes, self.min_box_size) & tf.math.is_finite(scores)
        scores = tf.where(usable, scores, nms.EXCLUDED_SCORE)
        boxes = tf.where(usable[..., None], boxes, 0.0)
        size = self.post_nms_top_k if static_count is None else min(self.post_nms_top_k, static_count)
        kept, num_valid = nms.nms_indices(boxes, scores, max_output_size=size, iou_threshold=self.nms_iou_threshold)
        is_valid = tf.range(size)[None, :] < num_valid[:, None]
        scores = tf.where(is_valid, tf.gather(scores, kept, batch_dims=1), nms.EXCLUDED_SCORE)
        return tf.gather(boxes, kept, batch_dims=1), scores


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class RpnLosses(keras.layers.Layer):
    """Samples anchors and returns the RPN's two loss terms (`mrcnn_tf.ops.losses.term`).

    Both are normalised by the number of samples asked for, times the images (detectron2). Call with objectness, deltas and
    anchors as `Proposals`, gt_boxes [B, G, 4], gt_classes [B, G], gt_crowd [B, G] and seeds [B, 2] int32.
    """

    def __init__(
        self,
        *,
        foreground_iou_threshold: float,
        background_iou_threshold: float,
        num_samples: int,
        positive_fraction: float,
        crowd_overlap_threshold: float,
        box_loss: str,
        smooth_l1_beta: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.foreground_iou_threshold = foreground_iou_threshold
        self.background_iou_threshold = background_iou_threshold
        self.num_samples = num_samples
        self.positive_fraction = positive_fraction
        self.crowd_overlap_threshold = crowd_overlap_threshold
        self.box_loss = box_loss
        self.smooth_l1_beta = smooth_l1_beta

    def call(
        self,
        objectness: list[tf.Tensor],
        deltas: list[tf.Tensor],
        anchors: list[tf.Tensor],
        gt_boxes: tf.Tensor,
        gt_classes: tf.Tensor,
        gt_crowd: tf.Tensor,
        seeds: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Class term and box term."""
        logits = tf.concat([flatten(o, 1)[..., 0] for o in objectness], axis=1)
        predicted = tf.concat([flatten(d, 4) for d in deltas], axis=1)
        all_anchors = tf.concat(anchors, axis=0)
        indices, is_foreground, is_valid, matched = self._sample(all_anchors, gt_boxes, gt_classes, gt_crowd, seeds)
        normaliser = tf.cast(tf.shape(logits)[0] * self.num_samples, tf.float32)
        class_losses = losses.sigmoid_cross_entropy(tf.gather(logits, indices, batch_dims=1), tf.cast(is_foreground, tf.float32))
        class_total = tf.reduce_sum(tf.where(is_valid, class_losses, 0.0))
        targets = box_ops.encode(tf.gather(gt_boxes, matched, batch_dims=1), tf.gather(all_anchors, indices))
        residual = tf.gather(predicted, indices, batch_dims=1) - targets
        residual = tf.where(is_foreground[..., None], residual, 0.0)
        box_total = tf.reduce_sum(losses.box_regression(residual, self.box_loss, self.smooth_l1_beta))
        return losses.term(class_total, normaliser), losses.term(box_total, normaliser)

    def _sample(
        self, anchors: tf.Tensor, gt_boxes: tf.Tensor, gt_classes: tf.Tensor, gt_crowd: tf.Tensor, seeds: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        labels, matched = matching.match(
            anchors[None],
            gt_boxes,
            (gt_classes > 0) & ~gt_crowd,
            foreground_iou_threshold=self.foreground_iou_threshold,
            background_iou_threshold=self.background_iou_threshold,
            allow_low_quality=True,
        )
        labels = matching.ignore_crowd(labels, anchors[None], gt_boxes, gt_crowd, self.crowd_overlap_threshold)
        keys = matching.random_keys(seeds, tf.shape(labels)[1] if labels.shape[1] is None else labels.shape[1])
        indices, is_foreground, is_valid = matching.sample(
            labels, keys, num_samples=self.num_samples, positive_fraction=self.positive_fraction
        )
        return indices, is_foreground, is_valid, tf.gather(matched, indices, batch_dims=1)


def flatten(maps: tf.Tensor, components: int) -> tf.Tensor:
    """Head output [B, H, W, A * components] -> [B, H W A, components], in the anchors' order."""
    count = None if None in maps.shape[1:3] else maps.shape[1] * maps.shape[2] * (maps.shape[3] // components)
    flat = tf.reshape(maps, [tf.shape(maps)[0], -1 if count is None else count, components])
    return tf.ensure_shape(flat, [maps.shape[0], count, components])


def _spatial_size(features: tf.Tensor) -> tuple:
    dynamic = tf.shape(features)
    return tuple(dynamic[i] if features.shape[i] is None else features.shape[i] for i in (1, 2))
