"""Colour jitter as torchvision's `ColorJitter` defines it: what is drawn, and what that does to a picture."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from mrcnn_tf.config import ColourJitterConfig

KINDS = ("brightness", "contrast", "saturation", "hue")


def draw_colour(strengths: ColourJitterConfig, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What is done to a picture.

    Args:
        strengths: brightness, contrast and saturation are multiplied by a factor in 1 - strength .. 1 + strength, at least 0;
            the hue is turned by -strength .. strength of the circle.
        random: source of the numbers.

    Returns:
        The order of `KINDS` [4] int32, and the factors and the turn [4] float32.
    """
    amounts = [
        random.uniform(max(0.0, 1 - strength), 1 + strength) for strength in (getattr(strengths, kind) for kind in KINDS[:3])
    ]
    turn = random.uniform(-strengths.hue, strengths.hue)
    return random.permutation(len(KINDS)).astype(np.int32), np.array([*amounts, turn], np.float32)


def jitter_colour(image: tf.Tensor, order: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """Change the colours of a picture.

    Args:
        image: [h, w, 3] float32, 0..255, RGB.
        order: [4] int32, a permutation of `KINDS` by their numbers.
        amounts: [4] float32, factors of brightness, contrast and saturation, and the turn of the hue.

    Returns:
        [h, w, 3] float32, 0..255.
    """

    def change(pixels: tf.Tensor, kind: tf.Tensor) -> tf.Tensor:
        amount = amounts[kind]
        changes = (
            lambda: pixels * amount,
            lambda: _blend(pixels, tf.floor(tf.reduce_mean(_grey(pixels)) + 0.5), amount),
            lambda: _blend(pixels, _grey(pixels), amount),
            lambda: tf.image.adjust_hue(pixels / 255, amount) * 255,
        )
        return tf.clip_by_value(tf.switch_case(kind, changes), 0, 255)

    for place in range(len(KINDS)):
        image = change(image, order[place])
    return image


def _grey(pixels: tf.Tensor) -> tf.Tensor:
    return tf.image.rgb_to_grayscale(pixels)


def _blend(pixels: tf.Tensor, other: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    return amount * pixels + (1 - amount) * other
