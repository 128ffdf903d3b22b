"""From torch's layouts to TensorFlow's, layer by layer, for checkpoints of torchvision, detectron2 and timm.

torch: convolutions [out, in / groups, height, width], transposed ones [in, out, height, width], linear ones [out, in], features
flattened (channel, row, column), boxes x before y. Here: [height, width, in / groups, out], [height, width, out, in], [in, out],
(row, column, channel), y before x. No kernel is flipped: both compute cross-correlations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np

from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.weights.assign import Assignments, NormArrays, Parameters, conv_norm_arrays, layer_assignments

NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"
"""torch counts the batches of a batch norm in a buffer that nothing is computed with."""


def conv(parameters: Parameters, layer: ConvNorm, name: str, norm: str | None = None) -> Assignments:
    """A convolution and its norm.

    The norm keeps the layer's epsilon, whatever it was trained with. A bias before a batch norm moves into its mean.

    Args:
        parameters: of the checkpoint.
        layer: with norm "none", or with the norm that the checkpoint has.
        name: of the convolution.
        norm: of its norm; None where there is none.

    Returns:
        What goes into the layer.
    """
    height, width, channels, filters = layer.kernel.shape
    kernel = parameters.take(f"{name}.weight", (filters, channels, height, width)).transpose(2, 3, 1, 0)
    arrays = {"kernel": kernel}
    if layer.use_bias:
        arrays["bias"] = parameters.take(f"{name}.bias", (filters,))
    if norm is None:
        return layer_assignments(layer, arrays)
    if layer.norm == "group":
        gamma, beta = (parameters.take(f"{norm}.{part}", (filters,)) for part in NORM_PARTS[:2])
        return layer_assignments(layer, {**arrays, "gamma": gamma, "beta": beta})
    statistics = NormArrays(*(parameters.take(f"{norm}.{part}", (filters,)) for part in NORM_PARTS))
    bias = parameters.take(f"{name}.bias", (filters,)) if f"{name}.bias" in parameters else None
    return layer_assignments(layer, conv_norm_arrays(layer, kernel, statistics, epsilon=layer.norm_epsilon, bias=bias))


def transposed_conv(parameters: Parameters, layer: keras.layers.Conv2DTranspose, name: str) -> Assignments:
    """A transposed convolution with bias."""
    height, width, filters, channels = layer.kernel.shape
    kernel = parameters.take(f"{name}.weight", (channels, filters, height, width)).transpose(2, 3, 1, 0)
    return layer_assignments(layer, {"kernel": kernel, "bias": parameters.take(f"{name}.bias", (filters,))})


def linear(parameters: Parameters, layer: keras.layers.Dense, name: str) -> Assignments:
    """A fully connected layer on what is flat in both systems."""
    channels, units = layer.kernel.shape
    kernel = parameters.take(f"{name}.weight", (units, channels)).T
    return layer_assignments(layer, {"kernel": kernel, "bias": parameters.take(f"{name}.bias", (units,))})


def linear_on_map(parameters: Parameters, layer: keras.layers.Dense, name: str, size: int) -> Assignments:
    """A fully connected layer on a flattened map of `size` x `size` pixels."""
    inputs, units = layer.kernel.shape
    maps = parameters.take(f"{name}.weight", (units, inputs)).reshape(units, -1, size, size)
    kernel = maps.transpose(2, 3, 1, 0).reshape(inputs, units)
    return layer_assignments(layer, {"kernel": kernel, "bias": parameters.take(f"{name}.bias", (units,))})


def rpn_deltas(parameters: Parameters, layer: ConvNorm, name: str) -> Assignments:
    """The RPN's regression: (dx, dy, dw, dh) of each anchor become (dy, dx, dh, dw)."""
    _, _, channels, outputs = layer.kernel.shape
    order = swapped_axes(outputs // 4)
    kernel = parameters.take(f"{name}.weight", (outputs, channels, 1, 1)).transpose(2, 3, 1, 0)[..., order]
    return layer_assignments(layer, {"kernel": kernel, "bias": parameters.take(f"{name}.bias", (outputs,))[order]})


def rows_of_linear(
    parameters: Parameters, layer: keras.layers.Dense, name: str, rows: Sequence[int], num_rows: int
) -> Assignments:
    """A fully connected layer whose outputs are some of the checkpoint's, in another order.

    Args:
        parameters: of the checkpoint.
        layer: with as many units as `rows`.
        name: in the checkpoint.
        rows: of the checkpoint, for each unit.
        num_rows: that the checkpoint has.

    Returns:
        What goes into the layer.
    """
    kernel = parameters.take(f"{name}.weight", (num_rows, layer.kernel.shape[0]))[list(rows)].T
    return layer_assignments(layer, {"kernel": kernel, "bias": parameters.take(f"{name}.bias", (num_rows,))[list(rows)]})


def mask_predictor(
    parameters: Parameters, layer: keras.layers.Layer, name: str, rows: Sequence[int], num_rows: int
) -> Assignments:
    """The last 1x1 convolution of the mask branch; `rows` as in `rows_of_linear`."""
    channels = layer.kernel.shape[0]
    kernel = parameters.take(f"{name}.weight", (num_rows, channels, 1, 1))[list(rows), :, 0, 0].T
    return layer_assignments(layer, {"kernel": kernel, "bias": parameters.take(f"{name}.bias", (num_rows,))[list(rows)]})


def swapped_axes(num_boxes: int) -> list[int]:
    """Where (dy, dx, dh, dw) of each box are found among (dx, dy, dw, dh)."""
    return [4 * box + component for box in range(num_boxes) for component in (1, 0, 3, 2)]


def norm_kind(arrays: Mapping[str, np.ndarray], norm: str) -> str:
    """What the norm of that name is: "batch", "frozen" (torch's frozen batch norm counts no batches), "group" or "none"."""
    if f"{norm}.running_mean" in arrays:
        return "batch" if f"{norm}.{COUNTER}" in arrays else "frozen"
    return "group" if f"{norm}.weight" in arrays else "none"
