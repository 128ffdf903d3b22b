import colorsys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance

from mrcnn_tf.config import ColourJitterConfig
from mrcnn_tf.data.colour import KINDS, draw_colour, jitter_colour

ORDER = np.arange(4, dtype=np.int32)


def _picture(height=9, width=13):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def _changed(picture, **amounts):
    values = [amounts.get(kind, 0.0 if kind == "hue" else 1.0) for kind in KINDS]
    return jitter_colour(tf.constant(picture, tf.float32), tf.constant(ORDER), tf.constant(values, tf.float32)).numpy()


def test_amounts_of_one_and_no_turn_change_nothing():
    picture = _picture()
    np.testing.assert_allclose(_changed(picture), picture, atol=1e-3)


@pytest.mark.parametrize("amount", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ("kind", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_factors_are_those_of_pillow_which_torchvision_uses(kind, enhance, amount):
    """Pillow cuts fractions of a level off, and rounds its grey."""
    expected = np.asarray(enhance(Image.fromarray(_picture())).enhance(amount)).astype(float)
    np.testing.assert_allclose(_changed(_picture(), **{kind: amount}), expected, atol=1.7)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.25])
def test_the_hue_turns(turn):
    picture = _picture(3, 4)
    expected = []
    for red, green, blue in picture.reshape(-1, 3) / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        expected.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
    np.testing.assert_allclose(_changed(picture, hue=turn).reshape(-1, 3), np.array(expected) * 255, atol=0.1)


def test_the_order_counts():
    picture = tf.constant(_picture(), tf.float32)
    amounts = tf.constant([1.5, 0.5, 1.0, 0.0])
    one, other = (jitter_colour(picture, tf.constant(order), amounts).numpy() for order in ([0, 1, 2, 3], [1, 0, 2, 3]))
    assert abs(one - other).max() > 5


def test_grey_pictures_and_single_pixels():
    for picture in (np.full((4, 5, 3), 77, np.uint8), np.full((1, 1, 3), 255, np.uint8)):
        np.testing.assert_allclose(_changed(picture, saturation=1.9, hue=0.3), picture, atol=1)
        np.testing.assert_allclose(_changed(picture, contrast=0.3), picture, atol=1)
        assert _changed(picture, brightness=3.0).max() <= 255


def test_what_is_drawn_stays_within_the_strengths():
    strengths = ColourJitterConfig(brightness=0.4, contrast=1.5, hue=0.1)
    random = np.random.default_rng(0)
    drawn = [draw_colour(strengths, random) for _ in range(300)]
    orders, amounts = (np.array(column) for column in zip(*drawn, strict=True))
    assert len({tuple(order) for order in orders}) == 24
    np.testing.assert_allclose(amounts.min(axis=0), [0.6, 0, 1, -0.1], atol=0.02)
    np.testing.assert_allclose(amounts.max(axis=0), [1.4, 2.5, 1, 0.1], atol=0.02)
