"""Dead channels keep their bias in int8."""

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.export.edge_runtimes import EdgeRunner
from mrcnn_tf.export.tflite_channels import make_room_for_biases
from mrcnn_tf.export.tflite_quantize import quantize

RNG = np.random.default_rng(0)
BIASES = np.array([1.5, -1.5, 2.0, -2.0, 0.0, 0.1, 1.0, -1.0], np.float32)
"""Of channels whose weights are 0, 0, 1e-8, 1e-8, 0 and, the last three, alive."""


def dead_and_alive(shape, axis):
    weights = RNG.normal(0, 0.2, shape).astype(np.float32)
    channels = np.moveaxis(weights, axis, 0)
    channels[:2] = channels[4] = 0
    channels[2:4] = 1e-8
    return weights


def layer(kind):
    """A function of [1, 4, 4, 8] and its weights."""
    if kind == "conv":
        kernel = dead_and_alive((3, 3, 8, 8), 3)
        return lambda x: tf.nn.conv2d(x, kernel, 1, "SAME") + BIASES
    if kind == "depthwise":
        kernel = dead_and_alive((3, 3, 8, 1), 2)
        return lambda x: tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME") + BIASES
    kernel = dead_and_alive((8, 8), 1)
    return lambda x: tf.matmul(tf.reshape(x, [16, 8]), kernel) + BIASES


def converted(function):
    module = tf.Module()
    module.answer = tf.function(lambda x: {"y": function(x)}, input_signature=[tf.TensorSpec([1, 4, 4, 8], tf.float32, "x")])
    concrete = module.answer.get_concrete_function()
    return bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete], module).convert())


@pytest.mark.parametrize("kind", ["conv", "depthwise", "dense"])
def test_dead_channels_keep_their_bias(kind):
    content = converted(layer(kind))
    pictures = [{"x": RNG.uniform(0, 6, (1, 4, 4, 8)).astype(np.float32)} for _ in range(4)]
    run = EdgeRunner(content)
    name = "serving_default"
    expected = run(name, pictures[0])["y"].reshape(16, 8)
    found = EdgeRunner(quantize(content, {name: pictures}))(name, pictures[0])["y"].reshape(16, 8)
    step = (max(expected.max(), 0) - min(expected.min(), 0)) / 255
    np.testing.assert_allclose(found[:, :5], np.broadcast_to(BIASES[:5], (16, 5)), atol=2 * step)
    np.testing.assert_allclose(found, expected, atol=12 * step)


def test_living_channels_stay_as_they_are():
    content = converted(lambda x: tf.nn.conv2d(x, RNG.normal(0, 0.2, (1, 1, 8, 8)).astype(np.float32), 1, "SAME") + BIASES)
    assert make_room_for_biases(content) == content


def test_without_a_bias():
    content = converted(lambda x: tf.nn.conv2d(x, np.zeros((1, 1, 8, 8), np.float32), 1, "SAME"))
    assert make_room_for_biases(content) == content
