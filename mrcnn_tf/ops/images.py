"""Image geometry shared by training, prediction and serving: sizes, resizing, padding.

Sizes are (height, width). The rule for sizes is detectron2's `ResizeShortestEdge`.
"""

from __future__ import annotations

import tensorflow as tf


def resized_size(height: int, width: int, *, min_size: int, max_size: int) -> tuple[int, int]:
    """Size of an image whose shortest edge becomes `min_size`, unless its longest would exceed `max_size`.

    Args:
        height: of the original image, pixels.
        width: of the original image, pixels.
        min_size: wanted shortest edge, pixels.
        max_size: upper bound of the longest edge, pixels.

    Returns:
        (height, width) in pixels, rounded half up as detectron2 does, at least 1.

    Raises:
        ValueError: an edge or a bound is smaller than 1.
    """
    if min(height, width, min_size, max_size) < 1:
        raise ValueError(f"sizes must be at least 1, got image ({height}, {width}), min_size {min_size}, max_size {max_size}")
    scale = min_size / min(height, width)
    new_height, new_width = scale * height, scale * width
    longest = max(new_height, new_width)
    if longest > max_size:
        new_height, new_width = new_height * (max_size / longest), new_width * (max_size / longest)
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resized_size_tensor(height: tf.Tensor, width: tf.Tensor, *, min_size: int, max_size: int) -> tf.Tensor:
    """`resized_size` inside a graph, with the same numbers.

    Args:
        height: [] integer, pixels.
        width: [] integer, pixels.
        min_size: wanted shortest edge, pixels.
        max_size: upper bound of the longest edge, pixels.

    Returns:
        [2] int32 (height, width).
    """
    # float64, as Python computes: in float32 some products land on the other side of a half.
    edges = tf.cast(tf.stack([height, width]), tf.float64)
    edges = min_size / tf.reduce_min(edges) * edges
    longest = tf.reduce_max(edges)
    edges = tf.where(longest > max_size, edges * (max_size / longest), edges)
    return tf.maximum(1, tf.cast(edges + 0.5, tf.int32))


def resize_image(image: tf.Tensor, size: tf.Tensor | tuple[int, int], *, antialias: bool) -> tf.Tensor:
    """Bilinear resize with half-pixel centres.

    Args:
        image: [h, w, 3] uint8 or float.
        size: (height, width), pixels.
        antialias: widen the filter when shrinking, as Pillow does; without it torchvision's bilinear.

    Returns:
        [height, width, 3] float32, in the range of the input.
    """
    # tf.image.resize hands back its input untouched, dtype included, when the size does not change.
    return tf.image.resize(tf.cast(image, tf.float32), size, method="bilinear", antialias=antialias)


def pad_image(image: tf.Tensor, size: tf.Tensor | tuple[int, int]) -> tf.Tensor:
    """Zeros at the bottom and the right.

    Args:
        image: [h, w, c], any dtype.
        size: (height, width) of the result, not smaller than the image.

    Returns:
        [height, width, c] of the image's dtype; the shape is static when `size` is.
    """
    missing = tf.convert_to_tensor(size, tf.int32) - tf.shape(image)[:2]
    padded = tf.pad(image, [[0, missing[0]], [0, missing[1]], [0, 0]])
    if not tf.is_tensor(size):
        padded = tf.ensure_shape(padded, [*size, None])
    return padded
