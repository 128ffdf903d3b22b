import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops.images import pad_image, resize_image, resized_size, resized_size_tensor


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # detectron2's usual COCO image
        ((640, 480), (1067, 800)),
        ((300, 1000), (400, 1333)),  # the longest edge decides
        ((800, 1333), (800, 1333)),
        ((1, 1), (800, 800)),
        ((1, 4000), (1, 1333)),
    ],
)
def test_resized_size_follows_the_rule(size, expected):
    assert resized_size(*size, min_size=800, max_size=1333) == expected


def test_python_and_tensor_sizes_agree():
    random = np.random.default_rng(0)
    sizes = random.integers(1, 3000, (100, 2))
    bounds = random.integers(1, 1500, (100, 2))
    for (height, width), (low, more) in zip(sizes.tolist(), bounds.tolist(), strict=True):
        expected = resized_size(height, width, min_size=low, max_size=low + more)
        got = resized_size_tensor(tf.constant(height), tf.constant(width), min_size=low, max_size=low + more)
        assert tuple(got.numpy()) == expected
        assert max(expected) <= low + more
        assert min(expected) >= 1


def test_resized_size_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"\(0, 5\)"):
        resized_size(0, 5, min_size=8, max_size=9)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_to_the_same_size_changes_nothing_but_the_type(antialias, dtype):
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(dtype)
    resized = resize_image(tf.constant(image), (7, 5), antialias=antialias)
    assert resized.dtype == tf.float32
    np.testing.assert_array_equal(resized, image)


def test_resize_keeps_a_ramp_at_half_pixel_centres():
    ramp = np.tile((np.arange(8, dtype=np.float32) + 0.5)[None, :, None], (8, 1, 3))
    resized = resize_image(tf.constant(ramp), (8, 16), antialias=False).numpy()
    np.testing.assert_allclose(resized[0, 1:-1, 0], (np.arange(16)[1:-1] + 0.5) / 2, atol=1e-5)


def test_antialias_averages_where_plain_bilinear_skips():
    stripes = np.zeros((16, 16, 3), np.float32)
    stripes[:, ::4] = 255
    smooth = resize_image(tf.constant(stripes), (4, 4), antialias=True).numpy()
    plain = resize_image(tf.constant(stripes), (4, 4), antialias=False).numpy()
    assert abs(smooth[:, 1:-1].mean() - 255 / 4) < 12
    assert abs(plain[:, 1:-1].mean() - 255 / 4) > 30


@pytest.mark.parametrize("antialias", [True, False])
def test_one_pixel_can_grow_and_images_can_shrink_to_one_pixel(antialias):
    pixel = tf.constant([[[10, 20, 30]]], tf.uint8)
    np.testing.assert_allclose(resize_image(pixel, (4, 6), antialias=antialias), np.tile([[[10.0, 20, 30]]], (4, 6, 1)))
    assert resize_image(tf.zeros([9, 5, 3]), (1, 1), antialias=antialias).shape == (1, 1, 3)


def test_pad_puts_zeros_below_and_to_the_right():
    image = tf.fill([2, 3, 3], tf.constant(7, tf.uint8))
    padded = pad_image(image, (4, 5)).numpy()
    assert padded.dtype == np.uint8
    assert padded.shape == (4, 5, 3)
    assert padded[:2, :3].min() == 7
    assert padded.sum() == image.numpy().sum()
    np.testing.assert_array_equal(pad_image(image, tf.constant([4, 5])), padded)


def test_padded_shape_is_static_in_a_graph():
    @tf.function(input_signature=[tf.TensorSpec([None, None, 3])])
    def pad(image):
        padded = pad_image(image, (64, 32))
        assert padded.shape == (64, 32, 3)
        return padded

    assert pad(tf.ones([5, 6, 3])).numpy().sum() == 90
