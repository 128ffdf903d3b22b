"""Image geometry shared by training, prediction and serving: sizes, resizing, padding.

Sizes are (height, width). The systems that checkpoints come from differ in how they make the size of the resized image whole, and
in what they resize: `SizeRounding` and the arguments of `resize_image` name the differences.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import tensorflow as tf

from mrcnn_tf.ops.boxes import image_windows

SizeRounding = Literal["half_up", "floor", "half_even"]
"""detectron2's `ResizeShortestEdge`, torchvision's `GeneralizedRCNNTransform`, and matterport's `resize_image`, which is also
Model Garden's where min_size and max_size are alike."""
Placement = Literal["top_left", "centre"]


def resized_size(
    height: int, width: int, *, min_size: int, max_size: int, rounding: SizeRounding = "half_up", enlarge_only: bool = False
) -> tuple[int, int]:
    """Size of an image whose shortest edge becomes `min_size`, unless its longest would exceed `max_size`.

    Args:
        height: of the original image, pixels.
        width: of the original image, pixels.
        min_size: wanted shortest edge, pixels.
        max_size: upper bound of the longest edge, pixels.
        rounding: to whole pixels; torchvision's "floor" can lose a pixel (799 for a `min_size` of 800).
        enlarge_only: a shortest edge above `min_size` stays as it is (matterport); `max_size` holds all the same.

    Returns:
        (height, width) in pixels, at least 1.

    Raises:
        ValueError: an edge or a bound is smaller than 1.
    """
    if min(height, width, min_size, max_size) < 1:
        raise ValueError(f"sizes must be at least 1, got image ({height}, {width}), min_size {min_size}, max_size {max_size}")
    edges = _resized_edges(np, np.array([height, width], np.float64), min_size, max_size, rounding, enlarge_only)
    return max(1, int(edges[0])), max(1, int(edges[1]))


def resized_size_tensor(
    height: tf.Tensor,
    width: tf.Tensor,
    *,
    min_size: int,
    max_size: int,
    rounding: SizeRounding = "half_up",
    enlarge_only: bool = False,
) -> tf.Tensor:
    """`resized_size` inside a graph, with the same numbers.

    Args:
        height: [] integer, pixels.
        width: [] integer, pixels.
        min_size: wanted shortest edge, pixels.
        max_size: upper bound of the longest edge, pixels.
        rounding: as in `resized_size`.
        enlarge_only: as in `resized_size`.

    Returns:
        [2] int32 (height, width).
    """
    edges = tf.cast(tf.stack([height, width]), tf.float64)
    return tf.maximum(1, tf.cast(_resized_edges(tf, edges, min_size, max_size, rounding, enlarge_only), tf.int32))


def resize_image(image: tf.Tensor, size: tf.Tensor | tuple[int, int], *, antialias: bool, quantize: bool = False) -> tf.Tensor:
    """Bilinear resize with half-pixel centres.

    Args:
        image: [h, w, 3] uint8 or float.
        size: (height, width), pixels.
        antialias: widen the filter when shrinking, as Pillow does; without it torchvision's bilinear.
        quantize: whole grey levels, made as Pillow makes them; with `antialias` within one level of Pillow's (detectron2).

    Returns:
        [height, width, 3] float32, in the range of the input.
    """
    # tf.image.resize hands back its input untouched, dtype included, when the size does not change.
    image = tf.cast(image, tf.float32)
    return _resize_in_levels(image, size, antialias) if quantize else _resize(image, size, antialias)


def resize_window(image: tf.Tensor, size: tf.Tensor, window: tf.Tensor, *, antialias: bool, quantize: bool = False) -> tf.Tensor:
    """A part of `resize_image`, made without the rest where the filter is antialiased.

    Args:
        image: [h, w, 3] uint8 or float.
        size: [2] int32 (height, width) of the whole resized image.
        window: [4] int32 (top, left, bottom, right) in it.
        antialias: as in `resize_image`.
        quantize: as in `resize_image`.

    Returns:
        [bottom - top, right - left, 3] float32. Of the whole image, in whole levels, it is what `resize_image` gives; of a part
        it differs by the rounding of the filter's weights, which turns less than 1 % of the values by a level.
    """
    top, left, bottom, right = tf.unstack(window)
    if not antialias:
        # The kernel that gives those numbers has no window.
        return resize_image(image, size, antialias=False, quantize=quantize)[top:bottom, left:right]
    image, top_inside, scale = _rows_for(image, size[0], top, bottom)
    pixels = tf.transpose(tf.cast(image, tf.float32), [1, 0, 2])
    across = _window_down(pixels, tf.cast(size[1] / tf.shape(pixels)[0], tf.float32), tf.cast(left, tf.float32), right - left)
    across = tf.transpose(tf.floor(across + 0.5) if quantize else across, [1, 0, 2])
    down = _window_down(across, scale, top_inside, bottom - top)
    return tf.floor(down + 0.5) if quantize else down


def pad_image(image: tf.Tensor, size: tf.Tensor | tuple[int, int], placement: Placement = "top_left") -> tf.Tensor:
    """Zeros around an image.

    Args:
        image: [h, w, c], any dtype.
        size: (height, width) of the result, not smaller than the image.
        placement: of the image; with "centre" the odd pixel of padding is at the bottom and the right.

    Returns:
        [height, width, c] of the image's dtype; the shape is static when `size` is.
    """
    padded_size, image_size = tf.convert_to_tensor(size, tf.int32), tf.shape(image)[:2]
    before = tf.cast(image_window(image_size, padded_size, placement)[:2], tf.int32)
    after = padded_size - image_size - before
    padded = tf.pad(image, [[before[0], after[0]], [before[1], after[1]], [0, 0]])
    if not tf.is_tensor(size):
        padded = tf.ensure_shape(padded, [*size, None])
    return padded


def image_window(image_size: tf.Tensor, padded_size: tf.Tensor | tuple[int, int], placement: Placement) -> tf.Tensor:
    """Where `pad_image` puts an image: sizes [2] and [2] (height, width) -> box [4] float32, pixels of the padded image."""
    return image_windows(image_size[tf.newaxis], tf.convert_to_tensor(padded_size, tf.int32), placement == "centre")[0]


def _resized_edges(math: Any, edges: Any, min_size: int, max_size: int, rounding: SizeRounding, enlarge_only: bool) -> Any:
    """Whole edges [2] for edges [2]; `math` is numpy or TensorFlow, for arrays of the one or tensors of the other.

    Float64, as Python computes: in float32 some products land on the other side of a half.
    """
    shortest = math.minimum(edges[0], edges[1])
    wanted = math.maximum(shortest, min_size) if enlarge_only else min_size
    rule = {"half_up": _half_up, "floor": _floor, "half_even": _half_even}[rounding]
    return rule(math, edges, wanted / shortest, max_size)


def _half_up(math: Any, edges: Any, scale: Any, max_size: int) -> Any:
    scaled = scale * edges
    longest = math.maximum(scaled[0], scaled[1])
    return math.floor(math.where(longest > max_size, scaled * (max_size / longest), scaled) + 0.5)


def _floor(math: Any, edges: Any, scale: Any, max_size: int) -> Any:
    longest = math.maximum(edges[0], edges[1])
    return math.floor(edges * math.minimum(scale, max_size / longest))


def _half_even(math: Any, edges: Any, scale: Any, max_size: int) -> Any:
    longest = math.maximum(edges[0], edges[1])
    return math.round(edges * math.where(math.round(longest * scale) > max_size, max_size / longest, scale))


def _resize(image: tf.Tensor, size: tf.Tensor | tuple[int, int], antialias: bool) -> tf.Tensor:
    return tf.image.resize(image, size, method="bilinear", antialias=antialias)


def _resize_in_levels(image: tf.Tensor, size: tf.Tensor | tuple[int, int], antialias: bool) -> tf.Tensor:
    """Across, then down, each rounded half up: the halfway picture of Pillow, too, has whole levels.

    Pillow from 13 on goes down first where the height shrinks much more than the width, which can turn single levels.
    """
    across = _resize_down_in_levels(tf.transpose(image, [1, 0, 2]), size[1], antialias)
    return _resize_down_in_levels(tf.transpose(across, [1, 0, 2]), size[0], antialias)


def _resize_down_in_levels(image: tf.Tensor, num_rows: tf.Tensor | int, antialias: bool) -> tf.Tensor:
    """[h, w, 3] -> [num_rows, w, 3], rounded half up.

    As one pixel a row with all its values as channels: tf.image.resize also filters along the row when its length stays, pixel by
    pixel, which with antialiasing takes four times as long. The numbers are the same.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    column = tf.reshape(image, [height, 1, width * 3])
    return tf.reshape(tf.floor(_resize(column, (num_rows, 1), antialias) + 0.5), [num_rows, width, 3])


def _rows_for(image: tf.Tensor, height: tf.Tensor, top: tf.Tensor, bottom: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The rows of an image that rows top..bottom of its resized version are made of, top from there on, and the scale."""
    scale = tf.cast(height / tf.shape(image)[0], tf.float32)
    reach = tf.maximum(1.0, 1 / scale) + 1
    first = tf.cast(tf.maximum(0.0, tf.floor(tf.cast(top, tf.float32) / scale - reach)), tf.int32)
    last = tf.cast(tf.math.ceil(tf.cast(bottom, tf.float32) / scale + reach), tf.int32)
    return image[first:last], tf.cast(top, tf.float32) - tf.cast(first, tf.float32) * scale, scale


def _window_down(image: tf.Tensor, scale: tf.Tensor, start: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Rows start..start + count of an image [h, w, 3] resized down by `scale`, antialiased: [count, w, 3].

    As one pixel a row, like `_resize_down_in_levels`.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    column = tf.reshape(image, [1, height, 1, width * 3])
    rows = tf.raw_ops.ScaleAndTranslate(
        images=column,
        size=[count, 1],
        scale=tf.stack([scale, 1.0]),
        translation=tf.stack([-start, 0.0]),
        kernel_type="triangle",
        antialias=True,
    )
    return tf.reshape(rows, [count, width, 3])
