"""`TensorProto` to numpy and back, without TensorFlow."""

from __future__ import annotations

from math import prod

import numpy as np
from tensorflow.core.framework import tensor_pb2, types_pb2

from tests.serving.c_session import DTYPES, STRING
from tests.serving.status import Code, StatusError

_FIELDS = {
    1: "float_val",
    2: "double_val",
    3: "int_val",
    4: "int_val",
    5: "int_val",
    6: "int_val",
    STRING: "string_val",
    9: "int64_val",
    10: "bool_val",
    17: "int_val",
    22: "uint32_val",
    23: "uint64_val",
}
"""Where `TensorProto` keeps values, by type (tensorflow/core/framework/tensor.proto)."""

_NUMBERS = {np.dtype(DTYPES[number]): number for number in _FIELDS}


def from_proto(proto: tensor_pb2.TensorProto) -> np.ndarray:
    """The values of a tensor; one value stands for all that follow it, and none for zeros, as TensorFlow has it.

    Raises:
        StatusError: INVALID_ARGUMENT: the values do not fit the shape or the type; UNIMPLEMENTED: a type that is not served here.
    """
    field = _FIELDS.get(proto.dtype)
    if field is None:
        raise StatusError(Code.UNIMPLEMENTED, f"no reading of tensors of type {type_name(proto.dtype)}")
    dtype = np.dtype(DTYPES[proto.dtype])
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise StatusError(Code.INVALID_ARGUMENT, "the tensor's shape is not fully given")
    count = prod(shape)
    if proto.tensor_content:
        if proto.dtype == STRING:
            raise StatusError(Code.UNIMPLEMENTED, "no reading of strings from tensor_content: put them in string_val")
        if len(proto.tensor_content) != count * dtype.itemsize:
            message = f"tensor_content of {len(proto.tensor_content)} bytes for shape {shape} of {type_name(proto.dtype)}"
            raise StatusError(Code.INVALID_ARGUMENT, message)
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    values = getattr(proto, field)
    if len(values) > max(count, 1):
        raise StatusError(Code.INVALID_ARGUMENT, f"{len(values)} values for shape {shape}")
    array = np.empty(count, dtype)
    array[:] = values[-1] if values else b"" if proto.dtype == STRING else 0
    array[: len(values)] = values[:count]
    return array.reshape(shape)


def to_proto(array: np.ndarray) -> tensor_pb2.TensorProto:
    """A tensor with its values in the field of its type, where TensorFlow Serving puts them by default.

    Raises:
        StatusError: UNIMPLEMENTED: a type that is not served here.
    """
    number = _NUMBERS.get(array.dtype)
    if number is None:
        raise StatusError(Code.UNIMPLEMENTED, f"no writing of tensors of numpy's type {array.dtype}")
    proto = tensor_pb2.TensorProto(dtype=number)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, _FIELDS[number]).extend(array.ravel().tolist())
    return proto


def type_name(number: int) -> str:
    """TensorFlow's name of a type, such as `float` or `string`."""
    return types_pb2.DataType.Name(number).removeprefix("DT_").lower()
