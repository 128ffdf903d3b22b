"""Reference boxes of the region proposal network (Ren et al., 2015; one size per pyramid level: Lin et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float], *, rounded: bool = False) -> np.ndarray:
    """Anchors of one location, centred at the origin.

    Args:
        sizes: square roots of the areas, pixels.
        aspect_ratios: height over width.
        rounded: round half sizes to whole pixels (torchvision).

    Returns:
        [A, 4] float32, size-major: all ratios of the first size, then of the next.
    """
    halves = []
    for size in sizes:
        for ratio in aspect_ratios:
            height, width = size * ratio**0.5, size / ratio**0.5
            halves.append((height / 2, width / 2))
    half = np.array(halves, np.float32)
    boxes = np.concatenate([-half, half], axis=1)
    return np.round(boxes) if rounded else boxes


def level_anchors(
    feature_size: tf.Tensor, strides: tuple[int | tf.Tensor, int | tf.Tensor], cell: np.ndarray, *, offset: float = 0.0
) -> tf.Tensor:
    """Anchors of one pyramid level; the cell at (i, j) is centred at ((i + offset) * strides[0], (j + offset) * strides[1]).

    Args:
        feature_size: (height, width) of the level, Python ints or int32 scalars.
        strides: input pixels between neighbouring cells (down, across), Python ints or int32 scalars.
        cell: [A, 4] anchors of one location.
        offset: of the first cell's centre, in strides: 0 in detectron2 and torchvision, 0.5 in Model Garden.

    Returns:
        [height * width * A, 4] float32 in the order (row, column, anchor).
    """
    height, width = feature_size
    rows = (tf.cast(tf.range(height), tf.float32) + offset) * tf.cast(strides[0], tf.float32)
    columns = (tf.cast(tf.range(width), tf.float32) + offset) * tf.cast(strides[1], tf.float32)
    y, x = tf.meshgrid(rows, columns, indexing="ij")
    centres = tf.stack([y, x, y, x], axis=-1)
    return tf.reshape(centres[:, :, None, :] + tf.constant(cell), [-1, 4])
