import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.data.transforms import flip_sample, pad_sample, resize_sample, training_size


def _sample(height=6, width=10, masks=True):
    random = np.random.default_rng(0)
    sample = {
        "images": tf.constant(random.integers(0, 256, (height, width, 3)), tf.uint8),
        "image_sizes": tf.constant([height, width]),
        "gt_boxes": tf.constant([[1, 2, 4, 7.5], [0, 0, height, width], [0, 0, 0, 0]], tf.float32),
        "gt_classes": tf.constant([1, 2, 0]),
        "gt_crowd": tf.constant([False, True, False]),
    }
    if masks:
        sample["gt_masks"] = tf.constant(random.integers(0, 256, (3, 56, 56)), tf.uint8)
    return sample


@pytest.mark.parametrize("masks", [True, False])
def test_flipping_twice_changes_nothing(masks):
    sample = _sample(masks=masks)
    once, twice = flip_sample(sample), flip_sample(flip_sample(sample))
    assert set(twice) == set(sample)
    for key, value in sample.items():
        np.testing.assert_array_equal(twice[key], value)
    assert (once["images"].numpy() != sample["images"].numpy()).any()


def test_flip_moves_image_boxes_and_masks_alike():
    sample, flipped = _sample(), flip_sample(_sample())
    np.testing.assert_array_equal(flipped["gt_boxes"], [[1, 2.5, 4, 8], [0, 0, 6, 10], [0, 0, 0, 0]])
    np.testing.assert_array_equal(flipped["gt_masks"], np.flip(sample["gt_masks"], 2))
    np.testing.assert_array_equal(flipped["images"], np.flip(sample["images"], 1))


def test_boxes_follow_the_true_ratio_of_each_axis():
    resized = resize_sample(_sample(), tf.constant([9, 40]), antialias=True)
    np.testing.assert_allclose(resized["gt_boxes"], [[1.5, 8, 6, 30], [0, 0, 9, 40], [0, 0, 0, 0]])
    assert resized["images"].shape == (9, 40, 3)
    assert resized["images"].dtype == tf.uint8
    assert resized["image_sizes"].numpy().tolist() == [9, 40]


def test_boxes_never_leave_the_image():
    for width in range(1, 400, 7):
        sample = _sample(3, width)
        right = resize_sample(sample, tf.constant([5, 133]), antialias=False)["gt_boxes"].numpy()[1, 3]
        assert right == 133


def test_values_are_rounded_not_cut():
    sample = _sample() | {"images": tf.constant([[[0] * 3, [3] * 3]], tf.uint8), "image_sizes": tf.constant([1, 2])}
    assert resize_sample(sample, tf.constant([1, 4]), antialias=False)["images"].numpy()[0, :, 0].tolist() == [0, 1, 2, 3]


def test_images_that_are_not_quantised_become_floats():
    sample = _sample() | {"images": tf.constant([[[0] * 3, [3] * 3]], tf.uint8), "image_sizes": tf.constant([1, 2])}
    image = resize_sample(sample, tf.constant([1, 4]), antialias=False, quantize=False)["images"]
    assert image.dtype == tf.float32
    assert image.numpy()[0, :, 0].tolist() == [0, 0.75, 2.25, 3]


def test_centred_padding_moves_boxes_along():
    sample = _sample()
    padded = pad_sample(sample, (64, 128), "centre")
    assert padded["images"].shape == (64, 128, 3)
    np.testing.assert_array_equal(padded["images"][29:35, 59:69], sample["images"])
    assert padded["images"].numpy().sum() == sample["images"].numpy().sum()
    np.testing.assert_array_equal(padded["gt_boxes"], [[30, 61, 33, 66.5], [29, 59, 35, 69], [0, 0, 0, 0]])
    for key in ("image_sizes", "gt_classes", "gt_crowd", "gt_masks"):
        assert padded[key] is sample[key]


def test_padding_is_static_and_leaves_the_rest_alone():
    padded = pad_sample(_sample(), (64, 128))
    assert padded["images"].shape == (64, 128, 3)
    assert padded["images"].numpy()[6:].max() == padded["images"].numpy()[:, 10:].max() == 0
    np.testing.assert_array_equal(padded["gt_boxes"], _sample()["gt_boxes"])


@pytest.mark.parametrize("image_size", [(64, 64), (64, 256), (320, 64)])
def test_the_training_size_fits_the_padded_input(image_size):
    random = np.random.default_rng(1)
    for height, width in [(1, 1), (1, 900), (900, 1), *random.integers(1, 900, (60, 2)).tolist()]:
        size = training_size(height, width, min_size=200, max_size=333, image_size=image_size)
        assert 1 <= size[0] <= image_size[0]
        assert 1 <= size[1] <= image_size[1]
        if min(size) > 1:
            assert size[0] / size[1] == pytest.approx(height / width, rel=1.6 / min(size))


def test_the_training_size_follows_the_rule_of_inference():
    given = {"min_size": 240, "max_size": 400, "image_size": (448, 448)}
    assert training_size(480, 641, **given) == (240, 321)  # 320.5
    assert training_size(480, 641, **given, rounding="floor") == (240, 320)
    assert training_size(480, 641, **given, rounding="half_even") == (240, 320)
    assert training_size(300, 350, **given) == (240, 280)
    assert training_size(300, 350, **given, enlarge_only=True) == (300, 350)


def test_the_training_size_is_the_usual_one_where_it_fits():
    assert training_size(480, 640, min_size=240, max_size=400, image_size=(320, 320)) == (240, 320)
    assert training_size(480, 640, min_size=240, max_size=400, image_size=(320, 256)) == (192, 256)
