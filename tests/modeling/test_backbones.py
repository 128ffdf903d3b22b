import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling import resnet
from mrcnn_tf.modeling.backbones import build_backbone, output_channels
from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.modeling.resnet import ResNetShape

RESNET_CHANNELS = {"c2": 256, "c3": 512, "c4": 1024, "c5": 2048}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Trunks small enough to differentiate and to compile."""
    monkeypatch.setitem(resnet.RESNETS, "tiny", ResNetShape((1, 2, 1, 1), inner_width=8))
    monkeypatch.setitem(resnet.RESNETS, "tiny_groups", ResNetShape((1, 2, 1, 1), groups=4, inner_width=16))
    yield
    keras.backend.clear_session()


def images(batch=1, height=64, width=96):
    return tf.constant(np.random.default_rng(0).normal(size=(batch, height, width, 3)), tf.float32)


# Parameters with running statistics and without the classifier, from torchvision's documentation of the three ResNets.
@pytest.mark.parametrize(
    ("name", "channels", "num_parameters"),
    [
        ("resnet50", RESNET_CHANNELS, 25_557_032 - 2_049_000 + 53_120),
        pytest.param("resnet101", RESNET_CHANNELS, 44_549_160 - 2_049_000 + 105_344, marks=pytest.mark.slow),
        ("resnext101_32x8d", RESNET_CHANNELS, 88_791_336 - 2_049_000 + 202_880),
        ("efficientnet_lite0", {"c2": 24, "c3": 40, "c4": 112, "c5": 320}, None),
        ("efficientnet_lite1", {"c2": 24, "c3": 40, "c4": 112, "c5": 320}, None),
        ("efficientnet_lite2", {"c2": 24, "c3": 48, "c4": 120, "c5": 352}, None),
    ],
)
def test_shapes_and_parameters(name, channels, num_parameters):
    backbone = build_backbone(name)
    outputs = backbone(images())
    strides = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
    assert {key: tuple(value.shape) for key, value in outputs.items()} == {
        key: (1, 64 // stride, 96 // stride, channels[key]) for key, stride in strides.items()
    }
    assert output_channels(backbone) == channels
    assert num_parameters is None or backbone.count_params() == num_parameters
    # Frozen norms with their initial statistics must not let the signal grow or vanish with depth.
    spread = [float(tf.math.reduce_std(outputs[key])) for key in ("c2", "c5")]
    assert 0.05 < spread[1] / spread[0] < 20
    assert 0.01 < spread[0] < 10


def test_gradient_reaches_every_kernel_and_xla_agrees():
    backbone, x = build_backbone("tiny_groups"), images(1, 32, 32)

    def step(x):
        with tf.GradientTape() as tape:
            outputs = backbone(x)
            loss = sum(tf.reduce_mean(level**2) for level in outputs.values())
        return outputs, tape.gradient(loss, backbone.trainable_weights)

    outputs, gradients = tf.function(step)(x)
    assert all(float(tf.reduce_max(tf.abs(gradient))) > 0 for gradient in gradients)
    compiled = tf.function(step, jit_compile=True)(x)
    for got, expected in zip(tf.nest.flatten(compiled), tf.nest.flatten((outputs, gradients)), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max() + 1e-6)


def traced_ops(backbone):
    """Types of the operations of a graph that computes outputs and the gradient of all that is trainable."""

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(level) for level in backbone(x).values())
        return loss, tape.gradient(loss, backbone.trainable_weights)

    weights = backbone.trainable_weights
    if not weights:
        return []
    return [op.type for op in step.get_concrete_function(images(1, 32, 32)).graph.get_operations()]


@pytest.mark.parametrize(
    ("name", "frozen_stages"),
    [*(("tiny", stages) for stages in range(6)), ("efficientnet_lite0", 0), ("efficientnet_lite0", 2), ("efficientnet_lite0", 5)],
)
def test_frozen_stages_are_not_differentiated(name, frozen_stages):
    backbone = build_backbone(name, frozen_stages=frozen_stages)
    convs = [layer for layer in backbone.layers if isinstance(layer, ConvNorm)]
    trained = [layer for layer in convs if layer.trainable]
    ops = traced_ops(backbone)
    assert sum("BackpropFilter" in op for op in ops) == len(trained)
    assert sum("BackpropInput" in op for op in ops) <= len(trained)
    stages = {stage_of(layer.name, name) for layer in convs if not layer.trainable}
    assert stages == set(range(1, frozen_stages + 1))
    assert {stage_of(layer.name, name) for layer in trained} == set(range(frozen_stages + 1, 6))


def stage_of(layer_name, backbone_name):
    number = re.match(r"(res|block)(\d+)", layer_name)
    if number is None:
        return 1
    if number[1] == "res":
        return int(number[2])
    # EfficientNet-Lite0: blocks 0 | 1, 2 | 3, 4 | 5 to 10 | 11 to 15.
    return 1 + sum(int(number[2]) >= first for first in (1, 3, 5, 11))


@pytest.mark.parametrize(("padding", "offset"), [("symmetric", 3), ("same", 2)])
def test_padding_of_the_stem(padding, offset):
    """An even size and stride 2: "same" is 2 pixels at the top and the left where "symmetric" is 3."""
    backbone = build_backbone("tiny", padding=padding)
    x = images(1, 16, 16)
    stem = backbone.get_layer("stem")
    values = {weight.name: weight.numpy() for weight in stem.weights}
    padded = np.pad(x.numpy(), ((0, 0), (offset, 3), (offset, 3), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(padded[0], (7, 7), axis=(0, 1))[:16:2, :16:2]
    # Initial statistics: the norm divides by sqrt(1 + epsilon) only.
    expected = np.maximum(np.einsum("hwcij,ijco->hwo", patches, values["kernel"]) / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(stem(x)[0], expected, atol=1e-4)
    strided = [layer for layer in backbone.layers if isinstance(layer, ConvNorm) and layer.strides == 2]
    assert {layer.padding for layer in strided} == {padding}


@pytest.mark.parametrize(("pool_padding", "first"), [("symmetric", -1), ("same", 0)])
def test_padding_of_the_pooling(pool_padding, first):
    """The windows of 3 pixels begin at -1, 1, 3, ... or at 0, 2, 4, ..., and a pixel that is not there does not count."""
    backbone = build_backbone("tiny", pool_padding=pool_padding)
    stem = keras.Model(backbone.input, [backbone.get_layer(name).output for name in ("stem", "stem_pool")])
    before, after = (level.numpy()[0] for level in stem(images(1, 16, 16)))
    rows = [range(max(start, 0), min(start + 3, 8)) for start in range(first, first + 8, 2)]
    expected = [[before[np.ix_(y, x)].max(axis=(0, 1)) for x in rows] for y in rows]
    np.testing.assert_array_equal(after, expected)


def test_stride_sits_where_it_is_asked_for():
    for stride_in, expected in (("1x1", (2, 1)), ("3x3", (1, 2))):
        backbone = build_backbone("tiny", stride_in=stride_in)
        for stage in (3, 4, 5):
            assert tuple(backbone.get_layer(f"res{stage}_0_conv{i}").strides for i in (1, 2)) == expected
            assert backbone.get_layer(f"res{stage}_0_shortcut").strides == 2
        assert backbone.get_layer("res2_0_conv1").strides == backbone.get_layer("res3_1_conv2").strides == 1


@pytest.mark.parametrize("name", ["tiny", "efficientnet_lite0"])
def test_frozen_norm_is_batch_norm_at_inference(name):
    frozen, batch = build_backbone(name), build_backbone(name, norm="batch")
    rng = np.random.default_rng(1)
    for layer in frozen.layers:
        values = {weight.name: rng.uniform(0.5, 1.0, weight.shape) for weight in layer.weights if weight.name != "kernel"}
        for weight in layer.weights:
            if weight.name in values:
                weight.assign(values[weight.name])
        values = {weight.name: weight.numpy() for weight in layer.weights}
        for weight in batch.get_layer(layer.name).weights:
            weight.assign(values[weight.name])
    for got, expected in zip(frozen(images()).values(), batch(images(), training=False).values(), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("name", "epsilon"), [("tiny", 1e-5), ("efficientnet_lite0", 1e-3)])
def test_norm_epsilon(name, epsilon):
    def of(**options):
        return {layer.norm_epsilon for layer in build_backbone(name, **options).layers if isinstance(layer, ConvNorm)}

    assert of() == {epsilon}
    assert of(norm_epsilon=0.0) == {0.0}


def test_every_norm_builds_on_every_kind_of_block():
    for name in ("tiny_groups", "efficientnet_lite0"):
        for norm in ("sync_batch", "group", "none"):
            outputs = build_backbone(name, norm=norm)(images(1, 32, 32))
            assert all(np.isfinite(level).all() for level in outputs.values())


def test_mixed_precision_runs_in_bfloat16_throughout():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        backbone = build_backbone("tiny")
    finally:
        keras.config.set_dtype_policy("float32")
    graph = tf.function(backbone).get_concrete_function(tf.TensorSpec((2, 32, 32, 3), tf.bfloat16)).graph
    convolutions = [op for op in graph.get_operations() if op.type == "Conv2D"]
    assert convolutions
    assert {op.outputs[0].dtype for op in convolutions} == {tf.bfloat16}
    # Only kernels (first side 1, 3 or 7) and biases are cast, never features (2 images).
    casts = [op.outputs[0].shape for op in graph.get_operations() if op.type == "Cast"]
    assert casts
    assert not [shape for shape in casts if len(shape) == 4 and shape[0] == 2]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {}, "unknown backbone 'resnet18'; known: resnet50"),
        ("resnet50", {"frozen_stages": 6}, "0..5, got 6"),
        ("resnet50", {"stride_in": "2x2"}, "1x1 or 3x3, got '2x2'"),
        ("resnet50", {"padding": "valid"}, "padding must be symmetric or same, got 'valid'"),
        ("resnet50", {"pool_padding": "valid"}, "pool_padding must be symmetric or same, got 'valid'"),
        ("tiny", {"norm": "layer"}, "norm must be one of"),
    ],
)
def test_wrong_arguments_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name, **options)
