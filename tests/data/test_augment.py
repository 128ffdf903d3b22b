import json

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import ColourJitterConfig, Config, DataConfig, ModelConfig, PreprocessingConfig
from mrcnn_tf.data.augment import prepare_sample
from mrcnn_tf.data.masks import mask_crop
from mrcnn_tf.data.recipe import training_recipe, validation_recipe

SQUARE, TRIANGLE = [6, 4, 18, 4, 18, 16, 6, 16], [0, 20, 30, 20, 15, 38]
ROWS = ("gt_boxes", "gt_classes", "gt_crowd", "gt_masks")


def _recipe(*, how=None, **data):
    values = {"min_sizes": (64,), "max_size": 128, "image_size": (64, 64), "horizontal_flip": 0.0} | data
    return training_recipe(Config(model=ModelConfig(preprocessing=PreprocessingConfig(**(how or {}))), data=DataConfig(**values)))


def _sample(size=(40, 40), polygons=(SQUARE, TRIANGLE), *, rows=3, masks=True, segmentations=True, colours=(200, 90)):
    """Objects are of one colour each on black, so that pixels tell where they are."""
    image = np.zeros((*size, 3), np.uint8)
    boxes, crops = np.zeros((rows, 4), np.float32), np.zeros((rows, 56, 56), np.uint8)
    texts = [b""] * rows
    for row, polygon in enumerate(polygons):
        points = np.reshape(polygon, (-1, 2))
        boxes[row] = [*points.min(axis=0)[::-1], *points.max(axis=0)[::-1]]
        crops[row] = mask_crop([polygon], boxes[row].tolist(), size)
        texts[row] = json.dumps([polygon]).encode()
        on = mask_crop([polygon], (0, 0, *size), size)
        inside = np.array(tf.image.resize(on[:, :, None], size, antialias=True))[:, :, 0] > 127
        image[inside] = colours[row]
    classes = np.zeros(rows, np.int32)
    classes[: len(polygons)] = np.arange(1, len(polygons) + 1)
    sample = {
        "images": image,
        "image_sizes": np.array(size, np.int32),
        "gt_boxes": boxes,
        "gt_classes": classes,
        "gt_crowd": np.zeros(rows, bool),
    }
    sample |= {"gt_masks": crops} if masks else {}
    sample |= {"gt_segmentations": np.array(texts, object)} if masks and segmentations else {}
    return {key: tf.constant(value) for key, value in sample.items()}


def _prepare(sample, recipe, *, seed=0, size=(64, 64), other=None):
    return {key: value.numpy() for key, value in prepare_sample(sample, tf.constant(seed, tf.int64), size, recipe, other).items()}


def _overlaps(made, colours):
    """By class: IoU of its mask, laid over its box, with the pixels that are of its colour rather than of another's or black."""
    height, width = made["images"].shape[:2]
    nearest = np.abs(made["images"][:, :, :1].astype(int) - [0, *colours]).argmin(axis=2)
    found = {}
    for row in np.flatnonzero(made["gt_classes"]):
        top, left, bottom, right = made["gt_boxes"][row]
        y = np.clip(np.floor((np.arange(height) + 0.5 - top) / (bottom - top) * 56).astype(int), -1, 56)
        x = np.clip(np.floor((np.arange(width) + 0.5 - left) / (right - left) * 56).astype(int), -1, 56)
        mask, shown = np.pad(made["gt_masks"][row], 1)[np.ix_(y + 1, x + 1)] > 127, nearest == made["gt_classes"][row]
        found[made["gt_classes"][row]] = (mask & shown).sum() / (mask | shown).sum()
    return found


def _large(polygon):
    return [4 * value for value in polygon]


def test_large_scale_jitter_at_scale_one_of_a_square_picture_is_plain():
    plain, jittered = _recipe(), _recipe(scale_jitter=(1.0, 1.0))
    one, other = _prepare(_sample(segmentations=False), plain), _prepare(_sample(), jittered)
    assert set(one) == set(other)
    for key, value in one.items():
        np.testing.assert_array_equal(other[key], value)
        assert other[key].dtype == value.dtype


def test_pasting_from_a_picture_without_objects_is_plain():
    plain, pasted = _recipe(), _recipe(copy_paste=True, copy_paste_blur=2.0)
    one = _prepare(_sample(), plain)
    both = _prepare(_sample(), pasted, other=_sample((20, 64), ()))
    for key in ("images", "image_sizes"):
        np.testing.assert_array_equal(both[key], one[key])
    for key in ROWS:
        np.testing.assert_array_equal(both[key][:3], one[key])
        assert not both[key][3:].any()


@pytest.mark.parametrize("placement", ["top_left", "centre"])
@pytest.mark.parametrize("seed", range(6))
def test_objects_lie_on_their_pixels_whatever_the_jitter(seed, placement):
    recipe = _recipe(scale_jitter=(0.5, 2.0), horizontal_flip=0.5, min_visible_area=400, how={"placement": placement})
    for polygon in (SQUARE, TRIANGLE):
        made = _prepare(_sample((160, 160), [_large(polygon)]), recipe, seed=seed, size=(256, 256))
        assert min(_overlaps(made, [200]).values(), default=1) > 0.93
        height, width = made["image_sizes"]
        offset = [(256 - height) // 2, (256 - width) // 2] if placement == "centre" else [0, 0]
        boxes = made["gt_boxes"][made["gt_classes"] > 0] - np.tile(offset, 2)
        assert ((boxes >= 0) & (boxes <= [height, width, height, width])).all()
        assert not made["gt_boxes"][made["gt_classes"] == 0].any()


@pytest.mark.parametrize("placement", ["top_left", "centre"])
@pytest.mark.parametrize("seed", range(6))
def test_pasted_objects_are_seen_and_what_they_cover_is_not(seed, placement):
    recipe = _recipe(
        scale_jitter=(0.5, 2.0), horizontal_flip=0.5, copy_paste=True, min_visible_area=400, how={"placement": placement}
    )
    below = _sample((160, 160), [_large(SQUARE), _large(TRIANGLE)], colours=(120, 60))
    other = _sample(
        (120, 200), [_large([5, 5, 30, 5, 30, 25, 5, 25]), _large([35, 10, 48, 12, 40, 28])], rows=2, colours=(250, 185)
    )
    other["gt_classes"] = tf.where(other["gt_classes"] > 0, other["gt_classes"] + 2, 0)
    made = _prepare(below, recipe, seed=seed, other=other, size=(256, 256))
    assert made["gt_classes"].shape == (5,)
    # Black padding or the mean colour, which is near 120 but for blue, is no object's.
    made["images"][(made["images"] == [124, 117, 104]).all(axis=2)] = 0
    assert min(_overlaps(made, [120, 60, 250, 185]).values(), default=1) > 0.8


def test_the_valid_size_takes_in_what_is_pasted_beside_a_smaller_picture():
    recipe = _recipe(copy_paste=True, min_sizes=(32,), max_size=64, how={"pixel_mean": (10, 20, 30)})
    wide = _sample((20, 40), ([20, 0, 40, 0, 40, 20, 20, 20],), rows=1)
    for seed in range(20):
        made = _prepare(_sample(polygons=()), recipe, seed=seed, other=wide)
        if made["gt_classes"].any():
            break
    assert made["image_sizes"].tolist() == [32, 64]
    # 32 x 32 of the picture, then ground in the mean colour (given as BGR), then the object.
    assert made["images"][5, 40].tolist() == ([30, 20, 10] if made["gt_boxes"][0, 1] > 40 else [200] * 3)
    assert not made["images"][32:].any()


def test_the_seed_alone_decides():
    recipe = _recipe(scale_jitter=(0.1, 2.0), horizontal_flip=0.5, colour_jitter=ColourJitterConfig(brightness=0.5, hue=0.1))
    made = [_prepare(_sample(), recipe, seed=seed) for seed in (5, 5, 6)]
    for key, value in made[0].items():
        np.testing.assert_array_equal(made[1][key], value)
    assert (made[0]["images"] != made[2]["images"]).any()


def test_scales_windows_and_flips_are_spread_over_their_ranges():
    recipe = _recipe(scale_jitter=(0.5, 2.0), horizontal_flip=0.25)
    made = [_prepare(_sample((40, 20), ()), recipe, seed=seed) for seed in range(150)]
    heights = np.array([sample["image_sizes"][0] for sample in made])
    assert heights.min() < 36
    assert (heights == 64).mean() == pytest.approx(2 / 3, abs=0.12)


@pytest.mark.parametrize("masks", [True, False])
def test_no_objects_one_pixel_and_grey(masks):
    recipe = _recipe(scale_jitter=(0.1, 2.0), colour_jitter=ColourJitterConfig(saturation=1.0, hue=0.5))
    for seed in range(5):
        empty = _prepare(_sample((1, 1), (), masks=masks), recipe, seed=seed)
        assert not empty["gt_classes"].any()
        assert (empty["image_sizes"] >= 1).all()
        pixel = _prepare(_sample((1, 1), ([0, 0, 1, 0, 1, 1, 0, 1],), masks=masks, colours=(77,)), recipe, seed=seed)
        height, width = pixel["image_sizes"]
        assert pixel["gt_boxes"][0].tolist() == [0, 0, height, width]
        assert (pixel["images"][:height, :width] == 77).all()
        assert not pixel["images"][height:].any()


def test_boxes_only_are_cut_too():
    made = _prepare(_sample(masks=False), _recipe(scale_jitter=(2.0, 2.0)), seed=1)
    assert "gt_masks" not in made
    assert (made["gt_boxes"] <= 64).all()


def test_sizes_may_be_tensors():
    recipe, sample = _recipe(), _sample()
    traced = tf.function(lambda size: prepare_sample(sample, tf.constant(0, tf.int64), size, recipe))
    assert traced(tf.constant([64, 128]))["images"].shape == (64, 128, 3)
    assert traced(tf.constant([128, 64]))["images"].shape == (128, 64, 3)


def test_validation_draws_nothing():
    data = DataConfig(scale_jitter=(0.1, 2), copy_paste=True, horizontal_flip=1, colour_jitter=ColourJitterConfig(hue=0.5))
    config = Config(model=ModelConfig(preprocessing=PreprocessingConfig(min_size=64)), data=data)
    recipe = validation_recipe(config)
    assert not recipe.cuts
    assert not recipe.changes_colour
    made = [_prepare(_sample(segmentations=False), recipe, seed=seed) for seed in (0, 1)]
    assert made[0]["image_sizes"].tolist() == [64, 64]
    np.testing.assert_array_equal(made[0]["images"], made[1]["images"])
