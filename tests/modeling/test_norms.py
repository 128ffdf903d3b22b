"""A norm on its own, against batch norm's definition."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.norms import Norm
from mrcnn_tf.ops.static_graph import static_graph

RNG = np.random.default_rng(0)


def inputs(dtype="float32"):
    return tf.constant(RNG.normal(2, 3, (2, 4, 5, 64)), dtype)


def test_frozen_norm_is_batch_norm_with_its_constants():
    layer, x = Norm("frozen", norm_epsilon=0.1), inputs()
    layer.build(x.shape)
    values = {weight.name: RNG.uniform(0.5, 2, weight.shape).astype(np.float32) for weight in layer.weights}
    assert set(values) == {"gamma", "beta", "moving_mean", "moving_variance"}
    assert not layer.trainable_weights
    for weight in layer.weights:
        weight.assign(values[weight.name])
    scale = values["gamma"] / np.sqrt(values["moving_variance"] + 0.1)
    expected = (x.numpy() - values["moving_mean"]) * scale + values["beta"]
    for training in (False, True):
        np.testing.assert_allclose(layer(x, training=training), expected, atol=1e-5)


def test_batch_norm_measures_and_keeps_statistics():
    layer, x = Norm("batch"), inputs()
    y = layer(x, training=True).numpy()
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=(0, 1, 2)), 1, atol=1e-3)
    moving = next(weight for weight in layer.weights if weight.name == "moving_mean")
    np.testing.assert_allclose(moving, 0.1 * x.numpy().mean(axis=(0, 1, 2)), rtol=1e-3)


def test_group_norm_is_of_32_groups():
    x = inputs()
    y = Norm("group")(x).numpy().reshape(2, 20, 32, 2)
    np.testing.assert_allclose(y.mean(axis=(1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=(1, 3)), 1, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_group_norm_is_the_same_in_a_static_graph(dtype):
    layer, x = Norm("group", dtype=dtype), inputs("bfloat16" if dtype == "mixed_bfloat16" else "float32")
    layer.build(x.shape)
    for weight in layer.weights:
        weight.assign(RNG.uniform(0.5, 2, weight.shape))

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            return y, tape.gradient(tf.reduce_sum(tf.cast(y, tf.float32) ** 3), x)

    expected = gradient()
    with static_graph():
        operations = tf.function(layer).get_concrete_function(x).graph.get_operations()
        assert max(len(output.shape) for operation in operations for output in operation.outputs if output.shape.rank) == 4
        found = gradient()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == x.dtype
        one, other = (tf.cast(value, tf.float32) for value in (one, other))
        np.testing.assert_allclose(one, other, rtol=0.02 if dtype == "mixed_bfloat16" else 1e-4, atol=1e-3)


@pytest.mark.parametrize("norm", ["frozen", "batch", "sync_batch", "group"])
def test_configuration_rebuilds_the_layer(norm):
    layer = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(Norm(norm, norm_epsilon=0.5, name="n")))
    assert (layer.norm, layer.norm_epsilon, layer.name) == (norm, 0.5, "n")


def test_bfloat16_stays():
    assert Norm("frozen", dtype="mixed_bfloat16")(inputs("bfloat16")).dtype == tf.bfloat16


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_other_norms_are_refused(norm):
    with pytest.raises(ValueError, match=f"frozen, batch, sync_batch, group; got '{norm}'"):
        Norm(norm)
