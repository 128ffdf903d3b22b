import keras
import numpy as np
import pytest

from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.weights.assign import NormArrays, PretrainedWeightsError, assign_layers, conv_norm_arrays

RNG = np.random.default_rng(0)
NORM = NormArrays(*(RNG.uniform(0.5, 1.5, 4).astype("float32") for _ in range(4)))


def small_model(**options):
    inputs = keras.Input((None, None, 2))
    return keras.Model(inputs, ConvNorm(4, 1, name="conv", **options)(inputs))


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("norm_epsilon", [1e-5, 0.2])
def test_bias_and_epsilon_are_folded_exactly(norm, norm_epsilon):
    model = small_model(norm=norm, norm_epsilon=norm_epsilon)
    kernel, bias = RNG.normal(size=(1, 1, 2, 4)).astype("float32"), RNG.normal(size=4).astype("float32")
    arrays = conv_norm_arrays(model.get_layer("conv"), kernel, NORM, epsilon=0.1, bias=bias)
    assign_layers(model, {"conv": arrays}, "a test")
    x = RNG.normal(size=(2, 3, 3, 2)).astype("float32")
    expected = (x @ kernel[0, 0] + bias - NORM.mean) / np.sqrt(NORM.variance + 0.1) * NORM.gamma + NORM.beta
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_every_weight_exactly_once():
    model = small_model(norm="none")
    before = [weight.numpy() for weight in model.weights]
    kernel, bias = np.ones((1, 1, 2, 4), "float32"), np.ones(4, "float32")
    for arrays, message in (
        ({"conv": {"kernel": kernel}}, r"a test does not fit .*missing \[\('conv', 'bias'\)\]"),
        ({"conv": {"kernel": kernel, "bias": bias, "scale": bias}}, r"left over \[\('conv', 'scale'\)\]"),
        ({"conv": {"kernel": kernel, "bias": kernel}}, r"conv/bias .* has shape \(4,\), got \(1, 1, 2, 4\)"),
    ):
        with pytest.raises(PretrainedWeightsError, match=message):
            assign_layers(model, arrays, "a test")
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    assign_layers(model, {"conv": {"kernel": kernel, "bias": bias}}, "a test")
    assert all(np.all(weight == 1) for weight in model.weights)


def test_group_norm_has_no_place_for_statistics():
    with pytest.raises(PretrainedWeightsError, match="conv: the weights hold batch-norm statistics, which norm=group"):
        conv_norm_arrays(small_model(norm="group").get_layer("conv"), np.ones((1, 1, 2, 4)), NORM, epsilon=0.1)
