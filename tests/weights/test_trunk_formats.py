"""Trunks of other systems: recognised by their names, with the constants and the weights that belong to them."""

import re

import keras
import numpy as np
import pytest

from mrcnn_tf.modeling.backbones import build_backbone
from mrcnn_tf.weights.assign import PretrainedWeightsError
from mrcnn_tf.weights.trunk_formats import recognise
from tests.parity import stages
from tests.parity.seeded import weight

PATH = stages.Path("some.pkl")
EXTRA = {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def seeded(shapes):
    return {name: weight(1, name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def torchvision_arrays():
    """A ResNet-50 as torchvision's classifier file has it."""
    shapes = stages.parameter_shapes("torchvision_maskrcnn_resnet50_fpn_v1.tsv")
    body = {name.removeprefix("backbone.body."): shape for name, shape in shapes.items() if name.startswith("backbone.body.")}
    return seeded({**body, **EXTRA})


@pytest.fixture(scope="module")
def detectron2_arrays():
    """A ResNet-50 as a detectron2 trunk."""
    shapes = stages.parameter_shapes("detectron2_mask_rcnn_R_50_FPN.tsv")
    prefix = "backbone.bottom_up."
    return seeded({name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)})


def filled(trunk, **options):
    backbone = build_backbone(**{**trunk.backbone, "norm": trunk.norm, **options})
    trunk.load_into(backbone)
    return backbone


def features(backbone, seed=0):
    x = np.random.default_rng(seed).normal(size=(1, 64, 64, 3)).astype("float32")
    return {level: np.asarray(values) for level, values in backbone(x).items()}


def assert_same_features(found, expected):
    for level, values in features(expected).items():
        np.testing.assert_allclose(features(found)[level], values, rtol=1e-4, atol=1e-4 * np.abs(values).max())


def test_torchvision_and_timm(torchvision_arrays):
    trunk = recognise(torchvision_arrays, PATH)
    assert trunk.backbone == {"name": "resnet50", "stride_in": "3x3", "norm_epsilon": 1e-5}
    assert trunk.preprocessing["channel_order"] == "rgb"
    assert trunk.preprocessing["pixel_mean"] == (123.675, 116.28, 103.53)
    backbone = filled(trunk)
    kernel = torchvision_arrays["layer2.0.conv2.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(backbone.get_layer("res3_0_conv2").kernel, kernel)
    np.testing.assert_array_equal(
        backbone.get_layer("res3_0_shortcut").moving_mean, torchvision_arrays["layer2.0.downsample.1.running_mean"]
    )


def test_trunk_of_a_whole_model(torchvision_arrays, detectron2_arrays):
    for prefix, arrays in (("backbone.body.", torchvision_arrays), ("backbone.bottom_up.", detectron2_arrays)):
        whole = {prefix + name: array for name, array in arrays.items()} | {"rpn.head.conv.weight": np.zeros(1)}
        assert_same_features(filled(recognise(whole, PATH)), filled(recognise(arrays, PATH)))


def test_detectron2_msra(detectron2_arrays):
    trunk = recognise(detectron2_arrays, PATH)
    assert trunk.backbone == {"name": "resnet50", "stride_in": "1x1", "norm_epsilon": 1e-5}
    assert trunk.preprocessing == {"pixel_mean": (103.53, 116.28, 123.675), "pixel_std": (1, 1, 1), "channel_order": "bgr"}
    filled(trunk)


def converted_for_detectron2(name):
    name = name if name.startswith("layer") else f"stem.{name}"
    name = re.sub(r"layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def test_torchvision_converted_for_detectron2(torchvision_arrays):
    converted = {converted_for_detectron2(name): array for name, array in torchvision_arrays.items()}
    converted["stem.conv1.norm.num_batches_tracked"] = np.int64(0)
    trunk, original = recognise(converted, PATH), recognise(torchvision_arrays, PATH)
    assert (trunk.backbone, trunk.preprocessing) == (original.backbone, original.preprocessing)
    assert_same_features(filled(trunk), filled(original))


def caffe2_name(name, statistics=("rm", "riv")):
    parts = {"weight": "s", "bias": "b", "running_mean": statistics[0], "running_var": statistics[1]}
    *head, part = name.split(".")
    branch = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    if head[-1] == "norm":
        where = "res_conv1" if head[0] == "stem" else f"{head[0]}_{head[1]}_{branch[head[2]]}"
        return f"{where}_bn_{parts[part]}"
    return "conv1_w" if head[0] == "stem" else f"{head[0]}_{head[1]}_{branch[head[2]]}_w"


@pytest.mark.parametrize("statistics", [("rm", "riv"), ("running_mean", "running_var")])
def test_caffe2_names(detectron2_arrays, statistics):
    arrays = {caffe2_name(name, statistics): array for name, array in detectron2_arrays.items()}
    assert "res4_5_branch2c_bn_s" in arrays
    extra = {"fc1000_w": np.zeros((1000, 2048)), "fc1000_b": np.zeros(1000), "conv1_w_momentum": np.zeros(1)}
    trunk = recognise({**arrays, **extra}, PATH)
    assert trunk.backbone["stride_in"] == "1x1"
    assert_same_features(filled(trunk), filled(recognise(detectron2_arrays, PATH)))


def test_caffe2_bias_of_the_stem_moves_into_the_norm(detectron2_arrays):
    arrays = {caffe2_name(name): array for name, array in detectron2_arrays.items()}
    bias = np.linspace(-1, 1, 64, dtype="float32")
    stem = filled(recognise({**arrays, "conv1_b": bias}, PATH)).get_layer("stem")
    np.testing.assert_allclose(stem.moving_mean, detectron2_arrays["stem.conv1.norm.running_mean"] - bias, rtol=1e-6)


def test_detectron_has_its_norms_folded_into_scale_and_bias(detectron2_arrays):
    arrays = {caffe2_name(name): array for name, array in detectron2_arrays.items() if "running_" not in name}
    stem = filled(recognise(arrays, PATH)).get_layer("stem")
    scale = np.asarray(stem.gamma) / np.sqrt(np.asarray(stem.moving_variance) + stem.norm_epsilon)
    np.testing.assert_allclose(scale, arrays["res_conv1_bn_s"], rtol=1e-6)
    np.testing.assert_array_equal(stem.moving_mean, np.zeros(64))


def test_detectron_with_group_norm(detectron2_arrays):
    arrays = {caffe2_name(n).replace("_bn_", "_gn_"): a for n, a in detectron2_arrays.items() if "running_" not in n}
    trunk = recognise(arrays, PATH)
    assert (trunk.norm, trunk.backbone["stride_in"]) == ("group", "3x3")
    np.testing.assert_array_equal(filled(trunk).get_layer("stem").norm_layer.gamma, arrays["res_conv1_gn_s"])
    with pytest.raises(PretrainedWeightsError, match=r"some\.pkl does not fit"):
        filled(trunk, norm="frozen")


def test_resnext_has_the_deviation_of_its_own_training():
    shapes = stages.parameter_shapes("detectron2_X_101_FPN.tsv")
    prefix = "backbone.bottom_up."
    arrays = {n.removeprefix(prefix): np.broadcast_to(np.float32(0), s) for n, s in shapes.items() if n.startswith(prefix)}
    trunk = recognise(arrays, PATH)
    assert (trunk.backbone["name"], trunk.backbone["stride_in"]) == ("resnext101_32x8d", "3x3")
    assert trunk.preprocessing["pixel_std"] == (57.375, 57.12, 58.395)


def test_keras_applications():
    source = keras.applications.ResNet50(include_top=True, weights=None)
    arrays = {f"{layer.name}/{w.name}": np.asarray(w) for layer in source.layers for w in layer.weights}
    trunk = recognise(arrays, PATH)
    assert trunk.backbone == {"name": "resnet50", "stride_in": "1x1", "norm_epsilon": 1e-5}
    kernel = arrays["conv3_block1_1_conv/kernel"]
    np.testing.assert_array_equal(filled(trunk).get_layer("res3_0_conv1").kernel, kernel)


def test_other_names_and_other_depths(torchvision_arrays):
    assert recognise({"some.weight": np.zeros(3)}, PATH) is None
    fewer = {name: array for name, array in torchvision_arrays.items() if not name.startswith("layer3.5.")}
    with pytest.raises(PretrainedWeightsError, match=r"\(3, 4, 5, 3\) bottleneck blocks"):
        recognise(fewer, PATH)


def test_left_over_parameters_are_named(detectron2_arrays):
    trunk = recognise({**detectron2_arrays, "res2.0.conv9.weight": np.zeros(3)}, PATH)
    with pytest.raises(PretrainedWeightsError, match=r"no place for: res2\.0\.conv9\.weight \[3\]"):
        filled(trunk)
