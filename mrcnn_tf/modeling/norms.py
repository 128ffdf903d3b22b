"""The normalisations that a convolution can have: which there are, and one on its own.

`mrcnn_tf.modeling.layers.ConvNorm` holds convolution and norm in one layer, which is what most places want.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.ops.static_graph import in_static_graph

NORMS = ("frozen", "batch", "sync_batch", "group", "none")
BATCH_NORM_MOMENTUM = 0.9
"""Of the running statistics: torch's 0.1 read the other way round (Keras's 0.99 forgets too slowly for fine-tuning)."""
GROUP_NORM_GROUPS = 32
"""Wu & He, 2018, table 3."""


def make_norm_layer(norm: str, channels: int, **options: Any) -> keras.layers.Layer:
    """Keras' layer for a norm that is computed from its input.

    Args:
        norm: "batch", "sync_batch" (statistics over all replicas) or "group" (32 groups, or the greatest common divisor of 32 and
            the channels).
        channels: of the input.
        **options: `epsilon`, `gamma_initializer`, `dtype`, `trainable`.

    Returns:
        A layer, not yet built.
    """
    if norm in ("batch", "sync_batch"):
        synchronized = norm == "sync_batch"
        return keras.layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, synchronized=synchronized, name="norm", **options)
    return GroupNorm(groups=math.gcd(GROUP_NORM_GROUPS, channels), name="norm", **options)


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class GroupNorm(keras.layers.GroupNormalization):
    """Keras' layer (Wu & He, 2018), without tensors of five dimensions in a static graph: GPUs do not run those of TFLite."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalise [B, H, W, C]."""
        if not in_static_graph():
            return super().call(inputs)
        pixels = tf.cast(inputs, tf.float32)
        centred = pixels - self._group_mean(pixels)
        scale = tf.math.rsqrt(self._group_mean(tf.square(centred)) + self.epsilon) * tf.cast(self.gamma, tf.float32)
        return tf.cast(centred * scale + tf.cast(self.beta, tf.float32), self.compute_dtype)

    def _group_mean(self, values: tf.Tensor) -> tf.Tensor:
        """[B, 1, 1, C]: of the channel's group."""
        channels = values.shape[-1]
        size = channels // self.groups
        means = tf.reshape(tf.reduce_mean(values, axis=[1, 2]), [-1, 1, self.groups, size])
        means = tf.reduce_mean(means, axis=3, keepdims=True)
        return tf.reshape(tf.concat([means] * size, axis=3), [-1, 1, 1, channels])


def add_frozen_norm(layer: keras.layers.Layer, channels: int, gamma_initializer: Any = "ones") -> None:
    """Give a layer the four constants of a frozen batch norm, as attributes and as weights that are never trained.

    Args:
        layer: gets `gamma`, `beta`, `moving_mean` and `moving_variance`, [channels] each.
        channels: of the norm's input.
        gamma_initializer: of the scale.
    """
    initializers = {"gamma": gamma_initializer, "beta": "zeros", "moving_mean": "zeros", "moving_variance": "ones"}
    for name, initializer in initializers.items():
        weight = layer.add_weight(name=name, shape=(channels,), initializer=initializer, trainable=False, autocast=False)
        setattr(layer, name, weight)


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class Norm(keras.layers.Layer):
    """A norm that is no part of a convolution, because the convolution's output is also used without it, or with another norm.

    Input and output: [..., C] in the compute dtype.
    """

    def __init__(self, norm: str, *, norm_epsilon: float = 1e-5, **kwargs: Any) -> None:
        """Configure the layer.

        Args:
            norm: "frozen" (batch norm with constants), "batch", "sync_batch" or "group".
            norm_epsilon: added to the variance.
            **kwargs: `name`, `dtype`, `trainable`.

        Raises:
            ValueError: another norm.
        """
        super().__init__(**kwargs)
        if norm not in NORMS or norm == "none":
            raise ValueError(f"norm must be one of {', '.join(NORMS[:-1])}; got {norm!r}")
        self.norm, self.norm_epsilon = norm, norm_epsilon
        self.norm_layer: keras.layers.Layer | None = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights for inputs [..., C]."""
        channels = input_shape[-1]
        assert channels is not None, "the convolution before knows its channels"
        if self.norm == "frozen":
            add_frozen_norm(self, channels)
            return
        options = {"epsilon": self.norm_epsilon, "dtype": self.dtype_policy, "trainable": self.trainable}
        self.norm_layer = make_norm_layer(self.norm, channels, **options)
        self.norm_layer.build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Normalise."""
        if self.norm_layer is not None:
            return self.norm_layer(inputs, training=training)
        scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.norm_epsilon)
        shift = self.beta - self.moving_mean * scale
        return inputs * tf.cast(scale, self.compute_dtype) + tf.cast(shift, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "norm": self.norm, "norm_epsilon": self.norm_epsilon}
