"""torch's layouts against its definitions of the layers, written down in numpy."""

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose

from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.modeling.mask_head import MaskPredictor
from mrcnn_tf.weights import torch_layout
from mrcnn_tf.weights.assign import Parameters, PretrainedWeightsError, assign_all

RNG = np.random.default_rng(0)


def arrays(**shapes):
    return {name.replace("__", "."): RNG.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def fill(convert, layer, found, *arguments):
    parameters = Parameters(found, "a test")
    assignments = convert(parameters, layer, *arguments)
    parameters.finish()
    assign_all(assignments)
    return layer


def built(layer, *shape):
    layer.build(shape)
    return layer


def torch_conv(x, kernel, groups=1):
    """[C, H, W] by [O, C / groups, k, k], padded by k // 2."""
    out, per_group, side, _ = kernel.shape
    padded = np.pad(x, [(0, 0), (side // 2,) * 2, (side // 2,) * 2])
    result = np.zeros((out, *x.shape[1:]))
    for o in range(out):
        first = o // (out // groups) * per_group
        for i, j in np.ndindex(x.shape[1:]):
            result[o, i, j] = (padded[first : first + per_group, i : i + side, j : j + side] * kernel[o]).sum()
    return result


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_with_frozen_norm(groups):
    found = arrays(c__weight=(6, 4 // groups, 3, 3), n__weight=6, n__bias=6, n__running_mean=6, n__running_var=6)
    found["n.running_var"] = np.abs(found["n.running_var"]) + 0.5
    layer = built(ConvNorm(6, 3, groups=groups, norm="frozen", norm_epsilon=0.1), None, None, None, 4)
    fill(torch_layout.conv, layer, found, "c", "n")
    x = RNG.normal(size=(4, 5, 3)).astype("float32")
    scale = found["n.weight"] / np.sqrt(found["n.running_var"] + 0.1)
    expected = (torch_conv(x, found["c.weight"], groups) - found["n.running_mean"][:, None, None]) * scale[:, None, None]
    expected += found["n.bias"][:, None, None]
    assert_allclose(np.transpose(layer(x.transpose(1, 2, 0)[None])[0], (2, 0, 1)), expected, atol=1e-4)


def test_convolution_with_bias_and_without_norm():
    found = arrays(c__weight=(3, 2, 1, 1), c__bias=3)
    layer = fill(torch_layout.conv, built(ConvNorm(3, 1, norm="none"), None, None, None, 2), found, "c")
    x = RNG.normal(size=(2, 4, 4)).astype("float32")
    expected = torch_conv(x, found["c.weight"]) + found["c.bias"][:, None, None]
    assert_allclose(np.transpose(layer(x.transpose(1, 2, 0)[None])[0], (2, 0, 1)), expected, atol=1e-5)


def test_convolution_with_group_norm():
    found = arrays(c__weight=(4, 2, 1, 1), n__weight=4, n__bias=4)
    layer = fill(torch_layout.conv, built(ConvNorm(4, 1, norm="group"), None, None, None, 2), found, "c", "n")
    assert_allclose(layer.norm_layer.gamma, found["n.weight"])
    assert_allclose(layer.norm_layer.beta, found["n.bias"])


def test_transposed_convolution():
    found = arrays(d__weight=(3, 2, 2, 2), d__bias=2)
    layer = built(keras.layers.Conv2DTranspose(2, 2, strides=2), None, None, None, 3)
    fill(torch_layout.transposed_conv, layer, found, "d")
    x = RNG.normal(size=(3, 2, 2)).astype("float32")
    expected = np.zeros((2, 4, 4))
    for i, j in np.ndindex(2, 2):
        expected[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = np.einsum("c,coab->oab", x[:, i, j], found["d.weight"])
    expected += found["d.bias"][:, None, None]
    assert_allclose(np.transpose(layer(x.transpose(1, 2, 0)[None])[0], (2, 0, 1)), expected, atol=1e-5)


def test_linear_on_a_flattened_map():
    found = arrays(f__weight=(5, 3 * 2 * 2), f__bias=5)
    layer = fill(torch_layout.linear_on_map, built(keras.layers.Dense(5), None, 12), found, "f", 2)
    x = RNG.normal(size=(3, 2, 2)).astype("float32")
    expected = found["f.weight"] @ x.ravel() + found["f.bias"]
    assert_allclose(layer(x.transpose(1, 2, 0).reshape(1, -1))[0], expected, atol=1e-5)


def test_rows_in_another_order():
    found = arrays(f__weight=(4, 3), f__bias=4)
    layer = fill(torch_layout.rows_of_linear, built(keras.layers.Dense(3), None, 3), found, "f", [3, 0, 2], 4)
    x = RNG.normal(size=3).astype("float32")
    expected = found["f.weight"] @ x + found["f.bias"]
    assert_allclose(layer(x[None])[0], expected[[3, 0, 2]], atol=1e-5)


def test_rpn_deltas_are_y_before_x():
    found = arrays(d__weight=(8, 2, 1, 1), d__bias=8)
    layer = fill(torch_layout.rpn_deltas, built(ConvNorm(8, 1, norm="none"), None, None, None, 2), found, "d")
    x = RNG.normal(size=2).astype("float32")
    expected = found["d.weight"][:, :, 0, 0] @ x + found["d.bias"]
    assert_allclose(layer(x[None, None, None])[0, 0, 0], expected[[1, 0, 3, 2, 5, 4, 7, 6]], atol=1e-5)


def test_mask_predictor_takes_the_rows_of_the_foreground():
    found = arrays(p__weight=(3, 2, 1, 1), p__bias=3)
    layer = MaskPredictor(2)
    layer.build((None, 4, 4, 2), (None,))
    fill(torch_layout.mask_predictor, layer, found, "p", [1, 2], 3)
    assert_allclose(layer.kernel, found["p.weight"][1:, :, 0, 0].T)
    assert_allclose(layer.bias, found["p.bias"][1:])


def test_kinds_of_norm():
    group = {"n.weight": 0, "n.bias": 0}
    frozen = {**group, "n.running_mean": 0, "n.running_var": 0}
    kinds = [torch_layout.norm_kind(a, "n") for a in ({}, group, frozen, {**frozen, "n.num_batches_tracked": 0})]
    assert kinds == ["none", "group", "frozen", "batch"]


def test_what_is_missing_misshapen_or_left_over_is_told_at_once():
    found = {"f.weight": np.zeros((2, 2), "float32"), "g.weight": np.zeros(1)}
    with pytest.raises(PretrainedWeightsError) as caught:
        fill(torch_layout.linear, built(keras.layers.Dense(2), None, 3), found, "f")
    message = str(caught.value)
    assert "a test does not fit the model" in message
    assert "the checkpoint lacks: f.bias [2]" in message
    assert "f.weight is [2, 2], the model needs [2, 3]" in message
    assert "no place for: g.weight [1]" in message
