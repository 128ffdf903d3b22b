"""Channels whose weights are next to nothing, in a TFLite file that is about to be quantised.

A bias is stored as a 32-bit integer in steps of the input's scale times that of the channel's weights. Where a trained channel is
dead, all its weights below 1e-7, say, and its bias is not, the bias does not fit: ai-edge-quantizer 0.10 cuts it off, and with a
positive one the cast that follows makes the largest negative number of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

_LEAST = 1e-4
"""Of the largest weight, as a part of the bias. With it a bias fits if the input's scale is above 6e-4, and what the weight adds,
at most that part times the input, is less than a step of the output."""
_PLACES = {
    schema.BuiltinOperator.CONV_2D: (1, 2, 0),
    schema.BuiltinOperator.DEPTHWISE_CONV_2D: (1, 2, 3),
    schema.BuiltinOperator.FULLY_CONNECTED: (1, 2, 0),
    schema.BuiltinOperator.TRANSPOSE_CONV: (1, 3, 0),
}
"""Which inputs are weights and bias, and the weights' axis of the output channels."""


def make_room_for_biases(content: bytes) -> bytes:
    """Give every channel with a bias a weight that is not negligible beside it.

    Args:
        content: a float32 file as the converter writes it.

    Returns:
        The file; of each channel of a convolution or fully connected layer at most one weight is changed.
    """
    writable = bytearray(content)
    model = schema.Model.GetRootAs(writable, 0)
    codes = [
        max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        for code in map(model.OperatorCodes, range(model.OperatorCodesLength()))
    ]
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            place = _PLACES.get(codes[operator.OpcodeIndex()])
            inputs = operator.InputsAsNumpy()
            if place is None or len(inputs) <= place[1] or inputs[place[1]] < 0:
                continue
            weights, bias = (_constant(model, graph.Tensors(int(inputs[number]))) for number in place[:2])
            if weights is not None and bias is not None:
                _lift(np.moveaxis(weights, place[2], 0), bias)
    return bytes(writable)


def _constant(model: Any, tensor: Any) -> NDArray[np.float32] | None:
    """A view of a constant's numbers in the file; None where it is computed, or not of float32."""
    buffer = model.Buffers(tensor.Buffer())
    if tensor.Type() != schema.TensorType.FLOAT32 or not buffer.DataLength():
        return None
    return buffer.DataAsNumpy().view(np.float32).reshape(tensor.ShapeAsNumpy())


def _lift(weights: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    """In place; weights [O, ...] and bias [O]."""
    least = _LEAST * np.abs(bias)
    place: Any = (slice(None), *[0] * (weights.ndim - 1))
    first = weights[place]
    dead = np.abs(weights).reshape(len(bias), -1).max(axis=1) < least
    first[dead] = least[dead]
