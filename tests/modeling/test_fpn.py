import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.fpn import build_fpn

RNG = np.random.default_rng(0)
CHANNELS = {"c2": 3, "c3": 4, "c4": 5, "c5": 6}


def features(batch=2, height=64, width=96, dtype="float32"):
    return {
        name: RNG.normal(size=(batch, height // 2**level, width // 2**level, CHANNELS[name])).astype(dtype)
        for level, name in enumerate(CHANNELS, start=2)
    }


def randomised(**options):
    fpn = build_fpn(CHANNELS, width=8, **options)
    for weight in fpn.weights:
        weight.assign(RNG.normal(size=weight.shape) if "variance" not in weight.name else np.ones(weight.shape))
    return fpn


def test_levels_against_the_definition():
    fpn, inputs = randomised(), features()
    got = fpn(inputs)
    inner = None
    for level in (5, 4, 3, 2):
        kernel, bias = (weight.numpy() for weight in fpn.get_layer(f"lateral{level}").weights)
        lateral = inputs[f"c{level}"] @ kernel[0, 0] + bias
        inner = lateral if inner is None else lateral + inner.repeat(2, 1).repeat(2, 2)
        kernel, bias = (weight.numpy() for weight in fpn.get_layer(f"output{level}").weights)
        padded = np.pad(inner, ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = inner.shape[1:3]
        expected = bias + sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))
        np.testing.assert_allclose(got[f"p{level}"], expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(got["p6"], got["p5"][:, ::2, ::2])


def same_convolution(x, kernel, bias):
    """3x3, stride 2, on even sizes: TensorFlow pads a row at the bottom and a column at the right, and nothing else."""
    height, width = (side // 2 for side in x.shape[1:3])
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    taps = [(i, j) for i in range(3) for j in range(3)]
    return bias + sum(padded[:, i : i + 2 * height : 2, j : j + 2 * width : 2] @ kernel[i, j] for i, j in taps)


def test_convolved_p6_is_of_p5_before_its_norm():
    fpn, inputs = randomised(norm="frozen", p6="conv"), features(height=128, width=128)
    for level in fpn.layers:
        for weight in level.weights:
            if weight.name in ("moving_mean", "moving_variance"):
                weight.assign(RNG.uniform(0.5, 2, weight.shape))
    got = fpn(inputs)
    norm = {weight.name: weight.numpy() for weight in fpn.get_layer("norm5").weights}
    scale = norm["gamma"] / np.sqrt(norm["moving_variance"] + 1e-5)
    plain = (got["p5"].numpy() - norm["beta"]) / scale + norm["moving_mean"]
    assert {weight.name for weight in fpn.get_layer("output5").weights} == {"kernel", "bias"}
    top = {weight.name: weight.numpy() for weight in fpn.get_layer("p6").weights}
    scale = top["gamma"] / np.sqrt(top["moving_variance"] + 1e-5)
    expected = same_convolution(plain, top["kernel"], -top["moving_mean"]) * scale + top["beta"]
    np.testing.assert_allclose(got["p6"], expected, atol=1e-3 * expected.std())


def test_convolved_p6_without_norm():
    fpn, inputs = randomised(p6="conv"), features(height=128, width=128)
    got = fpn(inputs)
    kernel, bias = (weight.numpy() for weight in fpn.get_layer("p6").weights)
    np.testing.assert_allclose(got["p6"], same_convolution(got["p5"].numpy(), kernel, bias), rtol=1e-4, atol=1e-2)
    assert "norm5" not in [layer.name for layer in fpn.layers]


@pytest.mark.parametrize("size", [(32, 96), (160, 64), (64, 64)])
@pytest.mark.parametrize("p6", ["pool", "conv"])
def test_p6_of_odd_sizes_rounds_up(size, p6):
    outputs = build_fpn(CHANNELS, width=4, p6=p6)(features(1, *size))
    assert outputs["p6"].shape == (1, -(-size[0] // 64), -(-size[1] // 64), 4)


def test_information_flows_down_only():
    fpn, inputs = randomised(), features()
    before = fpn(inputs)
    after = fpn({**inputs, "c4": inputs["c4"] + 1})
    changed = {name for name in before if np.abs(before[name] - after[name]).max() > 0}
    assert changed == {"p2", "p3", "p4"}


@pytest.mark.parametrize("p6", ["pool", "conv"])
@pytest.mark.parametrize("norm", ["none", "batch", "group", "frozen"])
def test_norms_and_xla(norm, p6):
    fpn, inputs = randomised(norm=norm, p6=p6), features(1, 32, 32)
    assert any(weight.name == "bias" for weight in fpn.weights) == (norm == "none" or p6 == "conv")

    def step():
        with tf.GradientTape() as tape:
            outputs = fpn(inputs)
            loss = sum(tf.reduce_mean(tf.sin(level)) for level in outputs.values())
        return outputs, tape.gradient(loss, fpn.trainable_weights)

    for got, expected in zip(tf.nest.flatten(tf.function(step, jit_compile=True)()), tf.nest.flatten(step()), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * max(1, np.abs(expected).max()))


def test_kernels_start_with_the_variance_of_one_over_fan_in():
    fpn = build_fpn({"c2": 64, "c3": 64, "c4": 64, "c5": 64}, width=64)
    for name, fan_in in (("lateral3", 64), ("output3", 9 * 64)):
        kernel, bias = (weight.numpy() for weight in fpn.get_layer(name).weights)
        assert kernel.var() == pytest.approx(1 / fan_in, rel=0.1)
        assert np.abs(kernel).max() <= np.sqrt(3 / fan_in)
        assert not bias.any()


def test_missing_level_is_named():
    with pytest.raises(ValueError, match="c2, c3, c4 and c5; got"):
        build_fpn({"c2": 1, "c3": 1, "c4": 1})
