"""RoIPool (Girshick, Fast R-CNN, ICCV 2015, section 2.1): the ablation that ROIAlign replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from mrcnn_tf.ops.roi_geometry import assign_levels, check_pyramid, level_of_stride
from mrcnn_tf.ops.static_graph import in_static_graph


class _Bins(NamedTuple):
    """The bins of N rois on both axes: pixels from `begins` up to, not including, `ends`, [N, 2, P] int32."""

    begins: tf.Tensor
    ends: tf.Tensor


def roi_pool(
    features: Sequence[tf.Tensor],
    rois: tf.Tensor,
    batch_indices: tf.Tensor,
    *,
    strides: Sequence[int],
    output_size: int,
    level_epsilon: float = 1e-8,
    level_rounding: str = "floor",
) -> tf.Tensor:
    """Maximum of the features in the quantised bins of each roi; the gradient flows to the features only.

    The corners of a roi are rounded to feature pixels, both of which belong to it. Bin i of P covers the pixels from
    floor(i * size / P) to ceil((i + 1) * size / P), cut off at the border of the map. A bin without pixels is 0. The
    gradient goes to the first maximum of a bin.

    Args:
        features: L maps [B, H_l, W_l, C], fine to coarse, of a floating type; computed with in float32.
        rois: [N, 4], yxyx in pixels of the input. N may be 0.
        batch_indices: [N] int32, the image of each roi.
        strides: input pixels per feature pixel of each map, consecutive powers of two.
        output_size: bins per axis, P.
        level_epsilon: see `assign_levels`.
        level_rounding: see `assign_levels`.

    Returns:
        [N, P, P, C] float32.

    Raises:
        ValueError: the strides do not fit the features, or the call is inside `static_graph()`.
    """
    check_pyramid(features, strides, output_size)
    if in_static_graph():
        raise ValueError("RoIPool loops over the pixels of the largest bin, so it cannot run under XLA or TFLite; use roi_align")
    rois = tf.stop_gradient(tf.cast(rois, tf.float32))
    first, last = level_of_stride(strides[0]), level_of_stride(strides[-1])
    levels = assign_levels(rois, min_level=first, max_level=last, epsilon=level_epsilon, rounding=level_rounding)
    level_indices = levels - first
    table, starts, sizes = _pixel_table([tf.cast(feature, tf.float32) for feature in features])
    level_sizes = tf.gather(sizes, level_indices)  # [N, 2]
    scale = tf.gather(tf.constant([1.0 / stride for stride in strides]), level_indices)[:, None]
    origins = tf.gather(starts, level_indices) + batch_indices * tf.reduce_prod(level_sizes, axis=1)
    return _pool(table, origins, level_sizes[:, 1], _bins(rois * scale, level_sizes, output_size))


def _pixel_table(features: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """All pixels of all levels and images [T, C], where each level starts [L] and its (height, width) [L, 2], int32."""
    shapes = [tf.shape(feature) for feature in features]
    counts = tf.stack([tf.reduce_prod(shape[:3]) for shape in shapes])
    table = tf.concat([tf.reshape(feature, [-1, feature.shape[-1]]) for feature in features], axis=0)
    return table, tf.cumsum(counts, exclusive=True), tf.stack([shape[1:3] for shape in shapes])


def _bins(rois: tf.Tensor, limits: tf.Tensor, output_size: int) -> _Bins:
    """Bins of rois [N, 4] in feature pixels on maps of `limits` [N, 2] (height, width)."""
    corners = tf.cast(tf.floor(rois + 0.5), tf.int32)
    starts = corners[:, :2, None]
    sizes = tf.maximum(corners[:, 2:, None] - starts + 1, 1)
    bins = tf.range(output_size)
    begins = starts + bins * sizes // output_size
    ends = starts - (-(bins + 1) * sizes) // output_size
    limits = limits[:, :, None]
    return _Bins(tf.clip_by_value(begins, 0, limits), tf.clip_by_value(ends, 0, limits))


def _pool(table: tf.Tensor, origins: tf.Tensor, widths: tf.Tensor, bins: _Bins) -> tf.Tensor:
    """[N, P, P, C] maxima over the bins of maps that start at row `origins` [N] of the table and are `widths` [N] wide."""
    extents = bins.ends - bins.begins
    filled = tf.logical_and(extents[:, 0, :, None] > 0, extents[:, 1, None, :] > 0)[..., None]

    @tf.custom_gradient
    def maximum(table: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        best, rows = _running_maximum(table, origins, widths, bins)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return _scatter(tf.where(filled, upstream, 0.0), rows, tf.shape(table))

        return tf.where(filled, best, 0.0), gradient

    return maximum(table)


def _running_maximum(table: tf.Tensor, origins: tf.Tensor, widths: tf.Tensor, bins: _Bins) -> tuple[tf.Tensor, tf.Tensor]:
    """The maximum of each bin and its table row, both [N, P, P, C]; meaningless for empty bins.

    The k-th turn of the loop looks at the k-th pixel of every bin. A bin with fewer pixels looks at its last ones again.
    """
    spans = tf.maximum(tf.reduce_max(bins.ends - bins.begins, axis=2), 1)  # [N, 2]
    num_turns = tf.reduce_max(tf.concat([spans[:, 0] * spans[:, 1], [0]], axis=0))

    def look(turn: tf.Tensor, best: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        offsets = tf.stack([turn // spans[:, 1], turn % spans[:, 1]], axis=1)
        y, x = tf.unstack(tf.maximum(tf.minimum(bins.begins + offsets[:, :, None], bins.ends - 1), 0), axis=1)
        row = origins[:, None, None] + y[:, :, None] * widths[:, None, None] + x[:, None, :]
        values = tf.gather(table, row)
        higher = values > best
        return turn + 1, tf.where(higher, values, best), tf.where(higher, row[..., None], rows)

    num_rois, _, output_size = tf.unstack(tf.shape(bins.begins))
    shape = [num_rois, output_size, output_size, table.shape[-1]]
    start = (tf.constant(0), tf.fill(shape, table.dtype.min), tf.zeros(shape, tf.int32))
    _, best, rows = tf.while_loop(lambda turn, *_: turn < num_turns, look, start, parallel_iterations=1)
    return best, rows


def _scatter(upstream: tf.Tensor, rows: tf.Tensor, table_shape: tf.Tensor) -> tf.Tensor:
    """Add the gradient [N, P, P, C] of each channel to its own row of the table."""
    num_rows, channels = tf.unstack(tf.cast(table_shape, tf.int64))
    places = tf.cast(rows, tf.int64) * channels + tf.range(channels)
    sums = tf.math.unsorted_segment_sum(tf.reshape(upstream, [-1]), tf.reshape(places, [-1]), num_rows * channels)
    return tf.reshape(sums, table_shape)
