"""TensorProto and numpy, against TensorFlow's own functions."""

import numpy as np
import pytest
import tensorflow as tf

from tests.serving.status import Code, StatusError
from tests.serving.tensors import from_proto, to_proto
from tests.serving.toys import TYPES_INPUTS, TYPES_OUTPUTS

VALUES = [*TYPES_INPUTS.values(), *TYPES_OUTPUTS.values(), np.array(1.5), np.zeros((0, 2), np.float32), np.array([3], np.uint16)]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value.dtype}{value.shape}")
def test_round_trips_and_tensorflow_agrees(value):
    for tensor in (from_proto(to_proto(value)), tf.make_ndarray(to_proto(value)), from_proto(tf.make_tensor_proto(value))):
        assert tensor.dtype == value.dtype
        np.testing.assert_array_equal(tensor, value)


def test_one_value_stands_for_those_that_follow():
    proto = tf.make_tensor_proto(np.zeros(0, np.float32))
    proto.tensor_shape.dim[0].size = 3
    np.testing.assert_array_equal(from_proto(proto), np.zeros(3, np.float32))
    proto.float_val.extend([1, 2])
    np.testing.assert_array_equal(from_proto(proto), np.array([1, 2, 2], np.float32))
    proto.float_val.extend([3, 4])
    with pytest.raises(StatusError, match="4 values for shape"):
        from_proto(proto)


def test_malformed():
    proto = tf.make_tensor_proto(np.ones(3, np.float32))
    proto.tensor_content = b"123"
    with pytest.raises(StatusError, match=r"tensor_content of 3 bytes for shape \[3\] of float") as caught:
        from_proto(proto)
    assert caught.value.code == Code.INVALID_ARGUMENT
    proto.tensor_shape.dim[0].size = -1
    with pytest.raises(StatusError, match="shape is not fully given"):
        from_proto(proto)
    with pytest.raises(StatusError, match="no reading of tensors of type complex64"):
        from_proto(tf.make_tensor_proto(np.ones(3, np.complex64)))
    with pytest.raises(StatusError, match="no writing of tensors of numpy's type complex64"):
        to_proto(np.ones(3, np.complex64))
