"""The region proposal network: head, targets and losses, proposals (Ren et al., 2015, on a pyramid as Lin et al., 2017).

Shapes: B images, A anchors per location, L levels, N anchors of all levels (fine to coarse), P proposals, G rows of ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.modeling.norms import Norm
from mrcnn_tf.ops import boxes as box_ops
from mrcnn_tf.ops import losses, matching, nms
from mrcnn_tf.ops.anchors import cell_anchors, level_anchors


def build_rpn_head(
    in_channels: int,
    *,
    width: int,
    num_convs: int,
    num_anchors: int,
    norm: str = "none",
    norm_epsilon: float = 1e-5,
    levels: Sequence[int] = (2, 3, 4, 5, 6),
) -> keras.Model:
    """The head shared by all levels.

    Args:
        in_channels: channels of the pyramid.
        width: channels of the hidden convolutions.
        num_convs: hidden 3x3 convolutions.
        num_anchors: A.
        norm: of the hidden convolutions, one for each level (Model Garden), as in `layers.ConvNorm`.
        norm_epsilon: added to the variance.
        levels: of the pyramid, L.

    Returns:
        A model: list of L feature maps [B, H_l, W_l, C] -> list of L objectness logits [B, H_l, W_l, A] and list of L deltas
        [B, H_l, W_l, 4 A], channel `4 a + k` being component k of (dy, dx, dh, dw) of anchor a. Layers `conv0`.., `objectness`,
        `deltas`, and with a norm `conv0_norm2`.. (the last number is the level).
    """
    features = [keras.Input((None, None, in_channels), name=f"p{level}") for level in levels]
    hidden = dict(zip(levels, features, strict=True))
    for i in range(num_convs):
        conv = ConvNorm(
            width,
            3,
            norm="none",
            use_bias=norm == "none",
            activation="relu" if norm == "none" else None,
            kernel_initializer=_init(),
            name=f"conv{i}",
        )
        hidden = {level: conv(x) for level, x in hidden.items()}
        if norm != "none":
            hidden = {level: _norm_of_level(x, f"conv{i}", level, norm, norm_epsilon) for level, x in hidden.items()}
    objectness = ConvNorm(num_anchors, 1, norm="none", kernel_initializer=_init(), name="objectness")
    deltas = ConvNorm(4 * num_anchors, 1, norm="none", kernel_initializer=_init(), name="deltas")
    outputs = [[objectness(x) for x in hidden.values()], [deltas(x) for x in hidden.values()]]
    return keras.Model(features, outputs, name="rpn_head")


def _init() -> keras.initializers.Initializer:
    """A new one for each layer: Keras draws an initializer's seed when it is made, and then always the same numbers."""
    return keras.initializers.RandomNormal(stddev=0.01)


def _norm_of_level(x: keras.KerasTensor, conv: str, level: int, norm: str, norm_epsilon: float) -> keras.KerasTensor:
    x = Norm(norm, norm_epsilon=norm_epsilon, name=f"{conv}_norm{level}")(x)
    return keras.layers.ReLU(name=f"{conv}_relu{level}")(x)


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
        offset: float = 0.0,
        measured_strides: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.strides = tuple(strides)
        self.cells = [cell_anchors(level, aspect_ratios, rounded=rounded) for level in sizes]
        self.offset = offset
        self.measured_strides = measured_strides

    def call(self, features: list[tf.Tensor]) -> list[tf.Tensor]:
        """Lay the cell anchors of each level over its feature map."""
        sizes = [_spatial_size(level) for level in features]
        return [
            level_anchors(size, strides, cell, offset=self.offset)
            for size, strides, cell in zip(sizes, self._strides_of(sizes), self.cells, strict=True)
        ]

    def _strides_of(self, sizes: list[tuple]) -> list[tuple]:
        """(down, across) of each level; measured as torchvision does it, input size // feature size."""
        if not self.measured_strides:
            return [(stride, stride) for stride in self.strides]
        height, width = (side * self.strides[0] for side in sizes[0])
        return [(height // rows, width // columns) for rows, columns in sizes]


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class Proposals(keras.layers.Layer):
    """The best boxes of the RPN: top-k per level, decode, clip, NMS per level, top-k over all levels.

    With `joint_levels` the levels are put together first, so that there is one top-k and one NMS. `ranking` says what is
    compared, "logit" or "probability".

    Call with lists over levels: objectness [B, H_l, W_l, A], deltas [B, H_l, W_l, 4 A], anchors [N_l, 4]; and windows [B, 4].
    Returns proposals [B, P, 4] (no gradient; padding rows are 0) and is_valid [B, P] bool.
    """

    def __init__(
        self,
        *,
        pre_nms_top_k: int,
        post_nms_top_k: int,
        nms_iou_threshold: float,
        min_box_size: float,
        joint_levels: bool = False,
        ranking: str = "logit",
        box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
        max_log_scale: float | None = box_ops.MAX_LOG_SCALE,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.pre_nms_top_k = pre_nms_top_k
        self.post_nms_top_k = post_nms_top_k
        self.nms_iou_threshold = nms_iou_threshold
        self.min_box_size = min_box_size
        self.joint_levels = joint_levels
        self.rank = {"logit": tf.identity, "probability": tf.sigmoid}[ranking]
        self.box_weights = box_weights
        self.max_log_scale = max_log_scale

    def call(
        self, objectness: list[tf.Tensor], deltas: list[tf.Tensor], anchors: list[tf.Tensor], windows: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Propose."""
        scores, deltas = [self.rank(flatten(o, 1)[..., 0]) for o in objectness], [flatten(d, 4) for d in deltas]
        if self.joint_levels:
            scores, deltas, anchors = [tf.concat(scores, 1)], [tf.concat(deltas, 1)], [tf.concat(anchors, 0)]
        levels = [self._propose_on_level(*level, windows) for level in zip(scores, deltas, anchors, strict=True)]
        boxes = tf.concat([level[0] for level in levels], axis=1)
        scores = tf.concat([level[1] for level in levels], axis=1)
        short = max(0, self.post_nms_top_k - scores.shape[1])
        scores = tf.pad(scores, [[0, 0], [0, short]], constant_values=nms.EXCLUDED_SCORE)
        boxes = tf.pad(boxes, [[0, 0], [0, short], [0, 0]])
        scores, kept = tf.math.top_k(scores, k=self.post_nms_top_k)
        is_valid = scores > nms.EXCLUDED_SCORE
        proposals = tf.where(tf.expand_dims(is_valid, -1), tf.gather(boxes, kept, batch_dims=1), 0.0)
        return tf.stop_gradient(proposals), is_valid

    def _propose_on_level(
        self, scores: tf.Tensor, deltas: tf.Tensor, anchors: tf.Tensor, windows: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        static_count = scores.shape[1]
        count = tf.shape(scores)[1] if static_count is None else static_count
        k = tf.minimum(self.pre_nms_top_k, count) if static_count is None else min(self.pre_nms_top_k, static_count)
        scores, best = tf.math.top_k(scores, k=k)
        deltas, anchors = tf.gather(deltas, best, batch_dims=1), tf.gather(anchors, best)
        boxes = box_ops.clip(box_ops.decode(deltas, anchors, self.box_weights, self.max_log_scale), windows)
        usable = box_ops.are_larger(boxes, self.min_box_size) & tf.math.is_finite(scores)
        scores = tf.where(usable, scores, nms.EXCLUDED_SCORE)
        boxes = tf.where(tf.expand_dims(usable, -1), boxes, 0.0)
        size = self.post_nms_top_k if static_count is None else min(self.post_nms_top_k, static_count)
        if static_count is None:
            # XLA's suppression takes no fewer boxes than it gives.
            short = tf.maximum(0, size - k)
            scores = tf.pad(scores, [[0, 0], [0, short]], constant_values=nms.EXCLUDED_SCORE)
            boxes = tf.pad(boxes, [[0, 0], [0, short], [0, 0]])
        kept, num_valid = nms.nms_indices(boxes, scores, max_output_size=size, iou_threshold=self.nms_iou_threshold)
        is_valid = tf.range(size)[None, :] < num_valid[:, None]
        scores = tf.where(is_valid, tf.gather(scores, kept, batch_dims=1), nms.EXCLUDED_SCORE)
        return tf.gather(boxes, kept, batch_dims=1), scores


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class RpnLosses(keras.layers.Layer):
    """Samples anchors and returns the RPN's two loss terms (`mrcnn_tf.ops.losses.term`), and a third: positives per image.

    Both losses are normalised by the number of samples asked for, times the images (detectron2), or with `divide_by_drawn` by the
    samples that there were (torchvision). Call with objectness, deltas and
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
        box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
        divide_by_drawn: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.box_weights = box_weights
        self.divide_by_drawn = divide_by_drawn
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
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Class term, box term, and the number of sampled positives over that of images."""
        logits = tf.concat([flatten(o, 1)[..., 0] for o in objectness], axis=1)
        predicted = tf.concat([flatten(d, 4) for d in deltas], axis=1)
        all_anchors = tf.concat(anchors, axis=0)
        indices, is_foreground, is_valid, matched = self._sample(all_anchors, gt_boxes, gt_classes, gt_crowd, seeds)
        num_images = tf.cast(tf.shape(logits)[0], tf.float32)
        normaliser = tf.reduce_sum(tf.cast(is_valid, tf.float32)) if self.divide_by_drawn else num_images * self.num_samples
        class_losses = losses.sigmoid_cross_entropy(tf.gather(logits, indices, batch_dims=1), tf.cast(is_foreground, tf.float32))
        class_total = tf.reduce_sum(tf.where(is_valid, class_losses, 0.0))
        targets = box_ops.encode(tf.gather(gt_boxes, matched, batch_dims=1), tf.gather(all_anchors, indices), self.box_weights)
        residual = tf.gather(predicted, indices, batch_dims=1) - targets
        residual = tf.where(is_foreground[..., None], residual, 0.0)
        box_total = tf.reduce_sum(losses.box_regression(residual, self.box_loss, self.smooth_l1_beta))
        positives = losses.term(tf.reduce_sum(tf.cast(is_foreground, tf.float32)), num_images)
        return losses.term(class_total, normaliser), losses.term(box_total, normaliser), positives

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
