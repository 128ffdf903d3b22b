"""Layers of Keras's layout, which is ours, under the names `NAME/kernel`, `NAME/bias`, `NAME/gamma` and so on."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.weights.assign import Assignments, NormArrays, Parameters, conv_norm_arrays, layer_assignments

NORM_PARTS = ("gamma", "beta", "moving_mean", "moving_variance")


def kernel_and_bias(
    parameters: Parameters, name: str, shape: Sequence[int], num_outputs: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A kernel of `shape` and its bias.

    Args:
        parameters: of the checkpoint.
        name: of the layer.
        shape: of the kernel.
        num_outputs: None: the last side of the kernel.
    """
    outputs = shape[-1] if num_outputs is None else num_outputs
    return parameters.take(f"{name}/kernel", shape), parameters.take(f"{name}/bias", (outputs,))


def norm(parameters: Parameters, name: str, channels: int) -> NormArrays:
    """A batch norm."""
    return NormArrays(*(parameters.take(f"{name}/{part}", (channels,)) for part in NORM_PARTS))


def with_bias(parameters: Parameters, layer: keras.layers.Layer, name: str) -> Assignments:
    """A layer of kernel and bias: a convolution, transposed or not, or a fully connected layer."""
    kernel, bias = kernel_and_bias(parameters, name, layer.kernel.shape, layer.bias.shape[0])
    return layer_assignments(layer, {"kernel": kernel, "bias": bias})


def conv_norm(parameters: Parameters, layer: ConvNorm, name: str, norm_name: str, *, has_bias: bool = True) -> Assignments:
    """A convolution and its batch norm, of the layer's own epsilon.

    Args:
        parameters: of the checkpoint.
        layer: with norm "frozen", "batch" or "sync_batch".
        name: of the convolution.
        norm_name: of the norm.
        has_bias: whether the convolution has one before the norm.
    """
    shape = layer.kernel.shape
    kernel = parameters.take(f"{name}/kernel", shape)
    bias = parameters.take(f"{name}/bias", shape[-1:]) if has_bias else None
    statistics = norm(parameters, norm_name, shape[-1])
    return layer_assignments(layer, conv_norm_arrays(layer, kernel, statistics, epsilon=layer.norm_epsilon, bias=bias))


def fold(kernel: np.ndarray, bias: np.ndarray, norm: NormArrays, *, epsilon: float, axis: int = -1) -> dict[str, np.ndarray]:
    """Kernel and bias of the layer that computes `kernel`, `bias` and a frozen `norm`; exact to rounding.

    Args:
        kernel: any shape.
        bias: [outputs].
        norm: of the outputs.
        epsilon: that it was trained with.
        axis: of the kernel, that of the outputs.
    """
    scale = norm.gamma / np.sqrt(norm.variance + np.float32(epsilon))
    along = [1] * kernel.ndim
    along[axis] = -1
    return {"kernel": kernel * scale.reshape(along), "bias": (bias - norm.mean) * scale + norm.beta}
