"""Pictures as the input of a TFLite file: resized to fit, padded, uint8."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from mrcnn_tf.config import ModelConfig
from mrcnn_tf.data.transforms import training_size
from mrcnn_tf.ops.images import pad_image, resize_image


class EdgeInput(NamedTuple):
    """What the signature `full` takes.

    Attributes:
        image: [1, H, W, 3] uint8.
        image_size: [1, 2] int32, valid height and width.
    """

    image: NDArray[np.uint8]
    image_size: NDArray[np.int32]


def edge_input(pixels: NDArray[np.uint8], config: ModelConfig, image_size: tuple[int, int]) -> EdgeInput:
    """Resize a picture as the model's configuration says, further where it would not fit, and pad it.

    Args:
        pixels: [h, w, 3] uint8 RGB.
        config: of the model.
        image_size: (height, width) of the padded input.
    """
    how = config.preprocessing
    size = training_size(
        pixels.shape[0],
        pixels.shape[1],
        min_size=how.min_size,
        max_size=how.max_size,
        image_size=image_size,
        rounding=how.resize_rounding,
        enlarge_only=how.enlarge_only,
    )
    resized = resize_image(tf.constant(pixels), size, antialias=how.antialias, quantize=how.quantize)
    levels = tf.cast(tf.floor(resized + 0.5), tf.uint8)
    return EdgeInput(pad_image(levels, image_size, how.placement).numpy()[None], np.array([size], np.int32))
