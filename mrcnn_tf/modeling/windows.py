"""Where an image lies in the padded input, and where a box ends: thin layers over `mrcnn_tf.ops.boxes`.

Inside of the network boxes may be inclusive: (y2, x2) is then the last pixel of a box, not the one after it, as in matterport's
Mask R-CNN, whose normalised coordinates run from the first pixel, 0, to the last one, 1. `MoveEnds` goes from one to the other.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.ops import boxes as box_ops


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class ImageWindows(keras.layers.Layer):
    """The part of the padded input that each image covers: images [B, H, W, 3], image_sizes [B, 2] -> boxes [B, 4] float32.

    Args:
        centred: see `mrcnn_tf.ops.boxes.image_windows`.
    """

    def __init__(self, *, centred: bool, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.centred = centred

    def call(self, images: tf.Tensor, image_sizes: tf.Tensor) -> tf.Tensor:
        """Place the images."""
        return box_ops.image_windows(image_sizes, tf.shape(images)[1:3], self.centred)


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class InputWindows(keras.layers.Layer):
    """All of the padded input: called as `ImageWindows`, with the same result for each image."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)

    def call(self, images: tf.Tensor, image_sizes: tf.Tensor) -> tf.Tensor:
        """Take the input's size for that of each image."""
        input_size = tf.shape(images)[1:3]
        return box_ops.image_windows(tf.zeros_like(image_sizes) + input_size, input_size, centred=False)


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class MoveEnds(keras.layers.Layer):
    """Boxes [..., 4] with (y2, x2) moved by `pixels`; rows of zeros stay."""

    def __init__(self, pixels: float, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.pixels = pixels

    def call(self, boxes: tf.Tensor) -> tf.Tensor:
        """Move."""
        return box_ops.move_ends(boxes, self.pixels)
