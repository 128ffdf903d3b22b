import keras
import numpy as np
import pytest

from mrcnn_tf.config import BackboneConfig, imagenet_preprocessing
from mrcnn_tf.modeling import resnet
from mrcnn_tf.modeling.backbones import build_backbone
from mrcnn_tf.modeling.resnet import ResNetShape
from mrcnn_tf.weights import keras_applications, load_backbone_weights
from mrcnn_tf.weights.assign import PretrainedWeightsError


def random_source(name):
    """A `keras.applications` ResNet in which every weight matters."""
    source = getattr(keras.applications, keras_applications.MODELS[name])(include_top=False, weights=None)
    rng = np.random.default_rng(0)
    for weight in source.weights:
        if weight.name != "kernel":
            low, high = (0.5, 1.5) if weight.name == "moving_variance" else (0.1, 0.5) if weight.name == "gamma" else (-0.2, 0.2)
            weight.assign(rng.uniform(low, high, weight.shape))
    return source


def assert_same_features(name, last_blocks):
    source = random_source(name)
    backbone = build_backbone(name, stride_in="1x1")
    keras_applications.copy_resnet(source, backbone)
    levels = {f"c{stage}": source.get_layer(f"conv{stage}_block{last}_out").output for stage, last in last_blocks.items()}
    expected = keras.Model(source.input, levels)
    x = np.random.default_rng(1).normal(size=(2, 64, 96, 3)).astype("float32")
    got = backbone(x)
    for level, values in expected(x).items():
        np.testing.assert_allclose(got[level], values, atol=1e-4 * np.abs(values).max(), err_msg=level)


def test_resnet50_computes_what_keras_applications_computes():
    assert_same_features("resnet50", {2: 3, 3: 4, 4: 6, 5: 3})


@pytest.mark.slow
def test_resnet101_computes_what_keras_applications_computes():
    assert_same_features("resnet101", {2: 3, 3: 4, 4: 23, 5: 3})


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(resnet.RESNETS, "tiny", ResNetShape((1, 1, 1, 1), inner_width=8))
    return lambda stride_in: build_backbone("tiny", stride_in=stride_in)


def test_the_other_stride_is_refused_with_the_constants_to_set(tiny):
    with pytest.raises(PretrainedWeightsError, match=r"stride_in to 1x1.*pixel_mean=\(103.939.*channel_order=bgr"):
        keras_applications.load_imagenet(tiny("3x3"), "resnet50")


def test_failed_download_says_what_to_do(tiny, monkeypatch):
    def fail(**kwargs):
        raise Exception("URL fetch failure on https://example.org: no route")

    monkeypatch.setattr(keras.applications, "ResNet101", fail)
    message = r"no route.*resnet101_weights_tf_dim_ordering_tf_kernels_notop\.h5 into ~/\.keras/models.*weights to null"
    with pytest.raises(PretrainedWeightsError, match=message):
        load_backbone_weights(tiny("1x1"), BackboneConfig(name="resnet101", stride_in="1x1"))


def test_there_are_none_for_resnext(tiny):
    with pytest.raises(
        PretrainedWeightsError, match=r"no ImageNet weights for resnext101_32x8d; set model\.backbone\.weights to null"
    ):
        load_backbone_weights(tiny("1x1"), BackboneConfig(name="resnext101_32x8d"))


def test_no_weights_and_unknown_weights(tiny):
    backbone = tiny("1x1")
    before = [weight.numpy() for weight in backbone.weights]
    load_backbone_weights(backbone, BackboneConfig(weights=None))
    for weight, value in zip(backbone.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    with pytest.raises(PretrainedWeightsError, match=r'"imagenet", null or a file; there is no file coco'):
        load_backbone_weights(backbone, BackboneConfig(weights="coco"))


def test_preprocessing_is_caffes():
    # keras.applications' own, applied to a pixel of RGB (1, 2, 3).
    pixel = np.array([[[[1.0, 2.0, 3.0]]]])
    constants = imagenet_preprocessing("resnet50")
    ours = (pixel[..., ::-1] - constants["pixel_mean"]) / constants["pixel_std"]
    assert constants["channel_order"] == "bgr"
    np.testing.assert_allclose(ours, keras.applications.resnet.preprocess_input(pixel.copy()), rtol=1e-5)
