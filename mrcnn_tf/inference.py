"""The way of a picture through a model, as functions on tensors: resized, padded, looked through, and back to its own pixels.

`Predictor` and the served graphs are both made of these, so that they cannot differ.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from mrcnn_tf.ops.boxes import image_windows
from mrcnn_tf.ops.images import pad_image, resize_image, resized_size_tensor
from mrcnn_tf.ops.restore import restore_detections

PAD_MULTIPLE = 32
"""The stride of P5, the coarsest level that is not made by pooling."""


class Inference:
    """What a model does with pictures.

    A picture is resized so that its shortest edge is `min_size` (or less, where the longest would exceed `max_size`) and padded
    to multiples of 32, in the way of `config.preprocessing`. What is found is moved and scaled back by the true ratio of each
    axis.

    Args:
        model: a `MaskRCNN`, or any callable with a `config` that keeps the contract of docs/contracts.md.
        min_size: shortest edge in pixels; None: that of the model's configuration.
        max_size: bound of the longest edge in pixels; None: that of the model's configuration.

    Attributes:
        model: as given.
        min_size: pixels.
        max_size: pixels.
    """

    def __init__(self, model: Any, *, min_size: int | None = None, max_size: int | None = None) -> None:
        self.model = model
        self._preprocessing = model.config.preprocessing
        self.min_size = self._preprocessing.min_size if min_size is None else min_size
        self.max_size = self._preprocessing.max_size if max_size is None else max_size

    def sizes(self, picture_size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """How large a picture becomes.

        Args:
            picture_size: [2] int32 (height, width).

        Returns:
            [2] int32 of the resized picture, and [2] int32 of the network's input.
        """
        how = self._preprocessing
        size = resized_size_tensor(
            picture_size[0],
            picture_size[1],
            min_size=self.min_size,
            max_size=self.max_size,
            rounding=how.resize_rounding,
            enlarge_only=how.enlarge_only,
        )
        padded = size if how.padding == "multiple" else tf.fill([2], self.max_size)
        return size, (padded + PAD_MULTIPLE - 1) // PAD_MULTIPLE * PAD_MULTIPLE

    def prepare(self, image: tf.Tensor, size: tf.Tensor, padded_size: tf.Tensor) -> tf.Tensor:
        """Resize and pad.

        Args:
            image: [h, w, 3] uint8 RGB.
            size: [2] int32 of the resized picture.
            padded_size: [2] int32 of the result.

        Returns:
            [H, W, 3] float32.
        """
        how = self._preprocessing
        return pad_image(resize_image(image, size, antialias=how.antialias, quantize=how.quantize), padded_size, how.placement)

    def detect(self, images: tf.Tensor, sizes: tf.Tensor, picture_sizes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Find objects.

        Args:
            images: [B, H, W, 3], what `prepare` gives.
            sizes: [B, 2] int32 of the resized pictures.
            picture_sizes: [B, 2] int32 of the pictures before.

        Returns:
            The detections of docs/contracts.md, in pixels of the pictures, without those that have no area there. They are
            clipped to it unless `config.box_head.clip_to` is "input".
        """
        config = self.model.config
        outputs = self.model({"images": images, "image_sizes": sizes}, training=False)
        return restore_detections(
            outputs,
            image_windows(sizes, tf.shape(images)[1:3], self._preprocessing.placement == "centre"),
            picture_sizes,
            inclusive=config.box_ends == "inclusive",
            clip=config.box_head.clip_to == "image",
        )
