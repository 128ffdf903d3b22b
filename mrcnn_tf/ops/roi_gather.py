"""ROIAlign by gathers with static shapes, for XLA (which has no kernel for crop_and_resize) and TFLite.

All levels lie in one table of pixels, so that one gather serves all rois whatever their level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import tensorflow as tf

from mrcnn_tf.ops.roi_geometry import Neighbours, RoiFrames, neighbours


def align_by_gather(
    features: Sequence[tf.Tensor],
    frames: RoiFrames,
    batch_indices: tf.Tensor,
    level_indices: tf.Tensor,
    *,
    output_size: int,
    samples: int,
) -> tf.Tensor:
    """ROIAlign with `samples` x `samples` samples per bin; arguments and result as in `align_by_crop`, shapes static."""
    height, width = _map_sizes(features, level_indices)
    side = output_size * samples
    y_start, x_start = tf.split(frames.starts, 2, axis=1)
    y_size, x_size = tf.split(frames.sizes, 2, axis=1)
    rows = _samples(y_start, y_size, height, side)
    columns = _samples(x_start, x_size, width, side)
    return _gather(features, batch_indices, level_indices, rows, columns, samples)


def resize_by_gather(
    features: Sequence[tf.Tensor],
    relative: tf.Tensor,
    batch_indices: tf.Tensor,
    level_indices: tf.Tensor,
    *,
    output_size: int,
) -> tf.Tensor:
    """What `tf.image.crop_and_resize` gives for boxes on the maps of their levels, with static shapes.

    Args:
        features: L maps [B, H_l, W_l, C] float32.
        relative: [N, 4] float32, yxyx, where 0 and 1 are the centres of a map's first and last pixel.
        batch_indices: [N] int32.
        level_indices: [N] int32.
        output_size: samples per axis, P, at least 2.

    Returns:
        [N, P, P, C] float32; samples outside of the map are 0.
    """
    height, width = _map_sizes(features, level_indices)
    y1, x1, y2, x2 = tf.split(relative, 4, axis=1)
    rows, columns = _edge_to_edge(y1, y2, height, output_size), _edge_to_edge(x1, x2, width, output_size)
    return _gather(features, batch_indices, level_indices, rows, columns, samples=1)


def _map_sizes(features: Sequence[tf.Tensor], level_indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Height and width [N, 1] float32 of the map of each roi."""
    sizes = _table([_size(feature) for feature in features], tf.float32)
    height, width = tf.split(tf.gather(sizes, level_indices), 2, axis=1)
    return height, width


def _gather(
    features: Sequence[tf.Tensor],
    batch_indices: tf.Tensor,
    level_indices: tf.Tensor,
    rows: Neighbours,
    columns: Neighbours,
    samples: int,
) -> tf.Tensor:
    table, row_starts = _pixel_table(features)
    pixels = tf.gather(tf.reshape(row_starts, [-1]), level_indices * features[0].shape[0] + batch_indices)
    widths = tf.gather(_table([[_size(feature)[1]] for feature in features]), level_indices)
    return _pool(table, _corners(pixels, widths, rows, columns), samples)


def _pixel_table(features: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """All pixels of all levels and images [T, C], and where those of (level, image) start, [L, B] int32."""
    starts, total = [], 0
    for feature in features:
        images, (height, width) = feature.shape[0], _size(feature)
        starts.append([total + image * height * width for image in range(images)])
        total += images * height * width
    channels = features[0].shape[-1]
    return tf.concat([tf.reshape(feature, [-1, channels]) for feature in features], axis=0), _table(starts)


def _size(feature: tf.Tensor) -> tuple[int | tf.Tensor, int | tf.Tensor]:
    """(height, width) of a map; tensors where they are not known yet, which are constants to XLA all the same."""
    if None in feature.shape[1:3]:
        height, width = tf.unstack(tf.shape(feature)[1:3])
        return height, width
    return feature.shape[1], feature.shape[2]


def _table(rows: Sequence[Sequence[int | tf.Tensor]], dtype: tf.DType = tf.int32) -> tf.Tensor:
    """Whole numbers as a tensor, a constant where all are known."""
    known = all(isinstance(value, int) for row in rows for value in row)
    return tf.constant(rows, dtype) if known else tf.cast(tf.stack([tf.stack(row) for row in rows]), dtype)


def _samples(start: tf.Tensor, size: tf.Tensor, limit: tf.Tensor, side: int) -> Neighbours:
    """The `side` samples of each roi on an axis of `limit` pixels, [N, side]; arguments [N, 1]."""
    return neighbours(start + size * ((tf.range(side, dtype=tf.float32) + 0.5) / side), limit)


def _edge_to_edge(start: tf.Tensor, end: tf.Tensor, limit: tf.Tensor, count: int) -> Neighbours:
    """The samples of each roi from one edge to the other, [N, count]; relative edges and the map's pixels [N, 1]."""
    positions = (limit - 1.0) * (start + (end - start) * (tf.range(count, dtype=tf.float32) / (count - 1)))
    found = neighbours(positions, limit)
    # Not NaN, and without the border of one pixel that ROIAlign has.
    inside = tf.cast((positions >= 0.0) & (positions <= limit - 1.0), tf.float32)
    return found._replace(low_weight=found.low_weight * inside, high_weight=found.high_weight * inside)


def _corners(first: tf.Tensor, width: tf.Tensor, rows: Neighbours, columns: Neighbours) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Table rows [N, P * S, P * S] and weights [N, P * S, P * S, 1] of the four neighbours of each sample.

    `first` [N] is the table row of the first pixel of the roi's map, `width` [N, 1] the width of that map.
    """
    corners = []
    for row, row_weight in ((rows.low, rows.low_weight), (rows.high, rows.high_weight)):
        row_index = tf.reshape(first, [-1, 1]) + row * width
        for column, column_weight in ((columns.low, columns.low_weight), (columns.high, columns.high_weight)):
            weight = tf.expand_dims(row_weight, 2) * tf.expand_dims(column_weight, 1)
            corners.append((tf.expand_dims(row_index, 2) + tf.expand_dims(column, 1), tf.expand_dims(weight, 3)))
    return corners


def _pool(table: tf.Tensor, corners: Sequence[tuple[tf.Tensor, tf.Tensor]], samples: int) -> tf.Tensor:
    """[N, P, P, C]: the mean over the samples of each bin of the weighted corners."""

    # Autodiff would join the gradients of the four gathers into one scatter of four times the memory, slow to compile, too.
    @tf.custom_gradient
    def pool(table: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            per_sample = tf.repeat(tf.repeat(upstream / samples**2, samples, axis=1), samples, axis=2)
            total = tf.zeros_like(table)
            for index, weight in corners:
                total = tf.tensor_scatter_nd_add(total, tf.expand_dims(index, 3), per_sample * weight)
            return total

        sampled = reduce(tf.add, [tf.gather(table, index) * weight for index, weight in corners])
        return tf.nn.avg_pool2d(sampled, samples, samples, "VALID"), gradient

    return pool(table)
