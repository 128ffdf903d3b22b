"""The three ways in which detections of a class that overlap are made fewer.

Shape legend: B images, N boxes of each image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tensorflow as tf

from mrcnn_tf.ops import nms, soft_nms

SuppressionKind = Literal["hard", "soft_linear", "soft_gaussian"]


@dataclass(frozen=True)
class Suppression:
    """How detections are made fewer.

    Attributes:
        kind: greedy NMS, or Soft-NMS with one of its two ways of lowering scores.
        iou_threshold: hard: boxes above it are dropped; soft_linear: scores are lowered from it on; soft_gaussian: unused.
        sigma: of soft_gaussian.
        min_score: of both soft kinds; what falls below it is dropped.
    """

    kind: SuppressionKind = "hard"
    iou_threshold: float = 0.5
    sigma: float = 0.5
    min_score: float = 0.001

    def __call__(
        self, boxes: tf.Tensor, classes: tf.Tensor, scores: tf.Tensor, *, num_classes: int, max_output_size: int
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Select detections, class by class.

        Args:
            boxes: [B, N, 4], yxyx in pixels.
            classes: [B, N] int32 in 0..num_classes - 1.
            scores: [B, N], above 0; entries of `nms.EXCLUDED_SCORE` or below are never selected.
            num_classes: how many classes there are.
            max_output_size: most detections of an image, the best of all classes.

        Returns:
            indices: [B, max_output_size] int32 into the N boxes, by falling score.
            scores: [B, max_output_size], lowered by the soft kinds; of no meaning after the last valid one.
            num_valid: [B] int32.
        """
        if self.kind == "hard":
            shifted = nms.offset_boxes_by_group(boxes, classes, num_classes)
            kept, num_valid = nms.nms_indices(shifted, scores, max_output_size=max_output_size, iou_threshold=self.iou_threshold)
            return kept, tf.gather(scores, kept, batch_dims=1), num_valid
        is_linear = self.kind == "soft_linear"
        decay = soft_nms.linear_decay(self.iou_threshold) if is_linear else soft_nms.gaussian_decay(self.sigma)
        return soft_nms.soft_nms(boxes, scores, classes, max_output_size=max_output_size, decay=decay, min_score=self.min_score)
