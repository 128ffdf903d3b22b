"""Convolutions as matrix products, for XLA on CPUs. The numbers are those of TensorFlow's operations, but for rounding.

XLA's compiler for CPUs transposes maps and kernels in memory for the gradients of a convolution, spreads a strided one with zeros
that are multiplied as well, and adds up a bias' gradient in many small windows. A matrix product has none of this. On GPUs, whose
library has kernels for all of it, the operations stay as they are.
"""

from __future__ import annotations

import tensorflow as tf


def pointwise_conv(inputs: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """A convolution whose kernel is one pixel.

    Args:
        inputs: [N, H, W, C].
        kernel: [1, 1, C, F] of the same dtype.
        stride: of both axes.

    Returns:
        [N, ceil(H / stride), ceil(W / stride), F].
    """
    return tf.einsum("nyxc,cf->nyxf", inputs[:, ::stride, ::stride] if stride > 1 else inputs, kernel[0, 0])


def transposed_conv(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """A transposed convolution whose stride is the side of its kernel, so that no two pixels of the input meet.

    Args:
        inputs: [N, H, W, C].
        kernel: [K, K, F, C] of the same dtype.

    Returns:
        [N, K H, K W, F].
    """
    side, _, filters, channels = kernel.shape
    _, height, width, _ = inputs.shape
    cells = _product(inputs, tf.reshape(tf.transpose(kernel, [3, 0, 1, 2]), [channels, -1]))
    cells = tf.reshape(cells, [-1, height, width, side, side, filters])
    return tf.reshape(tf.transpose(cells, [0, 1, 3, 2, 4, 5]), [-1, height * side, width * side, filters])


def add_bias(inputs: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """`tf.nn.bias_add`.

    Args:
        inputs: [..., C].
        bias: [C] of the same dtype.

    Returns:
        [..., C].
    """
    # The bias' gradient becomes a product of the upstream one with these ones; the product here is fused away.
    ones = tf.ones_like(tf.reshape(inputs, [-1, inputs.shape[-1]])[:, :1])
    return inputs + tf.reshape(tf.matmul(ones, bias[None]), tf.shape(inputs))


def _product(inputs: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """[N, H, W, C] by [C, F], [N, H, W, F]. Not by `tf.einsum`, with whose gradient XLA transposes the larger factor."""
    _, height, width, channels = inputs.shape
    return tf.reshape(tf.matmul(tf.reshape(inputs, [-1, channels]), matrix), [-1, height, width, matrix.shape[1]])
