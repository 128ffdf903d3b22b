"""Test-time augmentation: one variant is the predictor, mirrored pictures give mirrored results, and how variants are merged."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.predict import Predictor
from mrcnn_tf.tta import AugmentedPredictor


def tiny(config, **options):
    """A model of random weights that finds something: without training all classes are likely."""
    keras.utils.set_random_seed(3)
    values = config.model.model_dump()
    values["box_head"] |= options.pop("box_head", {})
    values["mask_head"] |= options.pop("mask_head", {})
    values["preprocessing"] |= options.pop("preprocessing", {})
    model = MaskRCNN(type(config.model).model_validate({**values, **options}), pretrained=False)
    for layer in (model.box_head.get_layer("class_logits"), model.box_head.get_layer("box_deltas")):
        layer.kernel.assign(20 * layer.kernel)
    if model.mask_predictor is not None:
        for weight in model.mask_predictor.trainable_weights:
            weight.assign(1000 * weight)
    return model


@pytest.fixture(scope="module")
def model(tiny_config):
    return tiny(tiny_config)


@pytest.fixture(scope="module")
def predictor(model):
    """Two sizes, each straight and mirrored. Tracing is what takes time, so the tests share it."""
    return AugmentedPredictor(model, scales=[96, 128], flip=True)


def picture(height=90, width=120, seed=0):
    """Smooth noise, so that resizing keeps it."""
    noise = np.random.default_rng(seed).uniform(0, 255, (6, 8, 3))
    return np.clip(tf.image.resize(noise, (height, width), "bicubic").numpy(), 0, 255).astype(np.uint8)


def assert_close(got, expected, atol=2e-3):
    assert len(got) == len(expected) > 0
    np.testing.assert_array_equal(got.classes, expected.classes)
    np.testing.assert_allclose(got.scores, expected.scores, atol=atol)
    np.testing.assert_allclose(got.boxes, expected.boxes, atol=0.05)
    if expected.mask_probs is None:
        assert got.mask_probs is None
    else:
        np.testing.assert_allclose(got.mask_probs, expected.mask_probs, atol=atol)


def mirrored(found):
    """What is found in the mirrored picture, brought back."""
    width = found.image_size[1]
    boxes = found.boxes[:, [0, 3, 2, 1]] * [1, -1, 1, -1] + np.array([0, width, 0, width])
    masks = found.mask_probs[:, :, ::-1]
    return type(found)(**{**vars(found), "boxes": boxes.astype(np.float32), "mask_probs": masks})


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, {}),
        ({}, {"scales": [96], "max_size": 100}),
        (
            {
                "box_ends": "inclusive",
                "mask_head": {"paste": "stretched"},
                "preprocessing": {"placement": "centre", "padding": "square"},
            },
            {"scales": [128]},
        ),
        ({"box_head": {"clip_to": "input", "nms": "soft_gaussian"}}, {}),
        ({"mask_head": {"enabled": False}}, {}),
    ],
    ids=["default", "another size", "inclusive and centred", "soft and not clipped", "no masks"],
)
def test_one_variant_is_the_predictor(tiny_config, options, sizes):
    model = tiny(tiny_config, **options)
    size = sizes.get("scales", [None])[0]
    assert_close(
        AugmentedPredictor(model, **sizes)(picture()), Predictor(model, min_size=size, max_size=sizes.get("max_size"))(picture())
    )


def test_a_mirrored_picture_gives_mirrored_results(predictor):
    image = picture()
    turned = np.ascontiguousarray(image[:, ::-1])
    straight, back = predictor(image), mirrored(predictor(turned))
    order, other = (np.lexsort((*found.boxes.T.round(1), found.classes)) for found in (straight, back))
    assert_close(straight.select(order), back.select(other))
    # The law means something: without mirrored variants it does not hold.
    one, two = (look(predictor, picture, 0)[1][2] for picture in (image, turned))
    assert len(one) != len(two) or np.abs(np.sort(one) - np.sort(two)).max() > 1e-3


def look(predictor, image, variant):
    return predictor._look(image, tf.constant([image.shape[:2]], tf.int32), *predictor._variants[variant])


def test_boxes_are_merged_by_nms(predictor, model):
    image = picture()
    found = [look(predictor, image, variant)[1] for variant in range(4)]
    merged = predictor(image)
    assert 0 < len(merged) <= model.config.box_head.max_detections
    assert merged.scores[0] == pytest.approx(max(scores.max() for _, _, scores in found))
    # Every merged box is that of a variant, and none overlaps a better one of its class.
    every = np.concatenate([boxes for boxes, _, _ in found])
    assert np.abs(merged.boxes[:, None] - every[None]).max(axis=2).min(axis=1).max() < 1e-4
    for number in set(merged.classes):
        boxes = merged.boxes[merged.classes == number]
        assert max((iou(a, b) for n, a in enumerate(boxes) for b in boxes[:n]), default=0) <= 0.5 + 1e-4


def test_the_mask_is_the_mean_over_the_variants(predictor):
    """The masks of each variant at the merged boxes, asked for one by one."""
    image = picture()
    size = tf.constant([image.shape[:2]], tf.int32)
    merged = predictor(image)
    looks = [look(predictor, image, variant)[0] for variant in range(4)]
    masks = [predictor._average_masks([one], merged.boxes, merged.classes, size) for one in looks]
    assert np.abs(masks[0] - masks[1]).max() > 1e-3
    np.testing.assert_allclose(merged.mask_probs, np.mean(masks, axis=0), atol=1e-5)


def test_nothing_found(model):
    predictor = AugmentedPredictor(model, scales=[96, 128])
    predictor._look = lambda *args: (None, (np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, np.float32)))
    predictor._average_masks = lambda looks, boxes, *args: np.zeros((len(boxes), 28, 28), np.float32)
    found = predictor(picture())
    assert len(found) == 0
    assert found.mask_probs.shape == (0, 28, 28)


def test_grey_pictures_and_thresholds(predictor):
    grey = picture()[:, :, 0]
    found = predictor(grey)
    predictor.score_threshold = float(np.median(found.scores))
    try:
        assert len(predictor(grey)) == np.sum(found.scores >= predictor.score_threshold)
    finally:
        predictor.score_threshold = 0.0


@pytest.mark.parametrize("scales", [[0], [96, 96]])
def test_senseless_sizes_are_refused(model, scales):
    with pytest.raises(ValueError, match=str(scales[0])):
        AugmentedPredictor(model, scales=scales)


def iou(a, b):
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
