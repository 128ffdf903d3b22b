"""Every kind of file has only what tflite-runtime 2.14 loads and computes rightly."""

import numpy as np
import pytest
import tensorflow as tf

from tests.edge.allowed_operations import ALLOWED, unknown, unreadable
from tests.edge.cases import FILES


@pytest.mark.parametrize("name", FILES)
def test_files_have_allowed_operations_only(cases, name):
    content = (cases / name / "model.tflite").read_bytes()
    assert unknown(content) == []
    assert unreadable(content) == []


def test_all_allowed_operations_occur(cases):
    """One that does not was never compared."""
    from mrcnn_tf.export.tflite_convert import operations

    found = {operation for name in FILES for operation, _ in operations((cases / name / "model.tflite").read_bytes())}
    assert found >= ALLOWED.keys()


class Dense(tf.Module):
    def __init__(self):
        super().__init__()
        self.weights = tf.Variable(np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64))

    @tf.function(input_signature=[tf.TensorSpec([2, 64])])
    def __call__(self, x):
        return tf.round(tf.matmul(x, self.weights)) * tf.linspace(0.0, 1.0, 64)


def converted(**options):
    module = Dense()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.__call__.get_concrete_function()], module)
    for name, value in options.items():
        setattr(converter, name, value)
    return converter.convert()


def test_an_operation_that_is_not_in_the_list_is_named():
    (fault,) = unknown(converted())
    assert fault == "ROUND version 1"


def test_weights_quantised_on_float_inputs_are_named():
    (fault,) = unreadable(converted(optimizations=[tf.lite.Optimize.DEFAULT]))
    assert "integer weights beside float inputs" in fault


def test_float16_constants_outside_weights_are_named():
    converter = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    content = converted(**converter, target_spec=tf.lite.TargetSpec(supported_types=[tf.float16]))
    (fault,) = unreadable(content)
    assert "float16 constant that is no weight" in fault


def test_integer_layers_without_a_bias_are_named():
    def samples():
        yield [np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)]

    content = converted(optimizations=[tf.lite.Optimize.DEFAULT], representative_dataset=samples)
    assert any("without a bias" in fault for fault in unreadable(content))


def test_a_plain_file_has_no_faults():
    assert unreadable(converted()) == []
