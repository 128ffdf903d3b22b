"""Packing a quantised TFLite file again, smaller: what is equal in it is stored once, and inner tensors have no names.

A convolution that is quantised by channel has a scale (4 bytes) and a zero point (8 bytes) for each channel, in each signature
that has it, and again for its bias. Most of these lists are equal, and a flatbuffer can refer to one of them many times. So are
constants of the signatures, such as anchors.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16
"""Of the weights, as the schema of TFLite asks for."""


def pack_shared(content: bytes) -> bytes:
    """The same model in fewer bytes.

    Args:
        content: a TFLite file without anything appended.

    Returns:
        A file whose weights lie behind the flatbuffer, aligned.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for subgraph in model.subgraphs:
        _drop_names(subgraph)
    weights = [_take_weights(buffer, content) for buffer in model.buffers]
    builder = _SharingBuilder(len(content) // 4)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    packed = bytearray(builder.Output())
    places: dict[bytes, int] = {}
    for data in weights:
        if data and data not in places:
            packed += bytes(-len(packed) % _ALIGNMENT)
            places[data] = len(packed)
            packed += data
    root = schema.Model.GetRootAs(packed, 0)
    for number, data in enumerate(weights):
        if data:
            flatbuffer_utils.update_packed_buffer(root.Buffers(number), offset=places[data], size=len(data))
    return bytes(packed)


def _drop_names(subgraph: Any) -> None:
    """Leave a name to inputs and outputs alone; those of all others are 80 kB that nothing on a device reads."""
    known = {*subgraph.inputs, *subgraph.outputs}
    for number, tensor in enumerate(subgraph.tensors):
        if number not in known:
            tensor.name = None


def _take_weights(buffer: Any, content: bytes) -> bytes:
    """The bytes of a buffer, which is left with room for where they will be."""
    if buffer.offset > 1:
        data = content[buffer.offset : buffer.offset + buffer.size]
    else:
        data = b"" if buffer.data is None else bytes(np.asarray(buffer.data, np.uint8))
    buffer.data = None
    # Numbers that are not the default, or the flatbuffer would have no room for them.
    buffer.offset = buffer.size = 1 if data else 0
    return data


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal vectors once."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802
        """The place of a vector of these numbers."""
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]
