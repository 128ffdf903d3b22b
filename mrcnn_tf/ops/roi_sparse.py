"""ROIAlign as a sparse matrix from the pixels of all levels to the bins of all rois, outside XLA.

A bin is a weighted sum of pixels, and few of them. The matrix of the weights serves two purposes: any number of samples per
bin, for which crop_and_resize would need a call per number, and the gradient. TensorFlow's CPU kernel for the gradient of
crop_and_resize adds from several threads to the same pixel without a lock, so it loses some additions; the transposed
matrix gives the right sum, and the same one each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from mrcnn_tf.ops.roi_geometry import RoiFrames, neighbours


class SamplingMatrix(NamedTuple):
    """The weights of ROIAlign."""

    csr: tf.Tensor
    """[num_bins, num_pixels] float32 in compressed sparse rows (a variant tensor)."""
    num_bins: tf.Tensor
    num_pixels: tf.Tensor


def align_by_matrix(
    features: Sequence[tf.Tensor],
    frames: RoiFrames,
    batch_indices: tf.Tensor,
    level_indices: tf.Tensor,
    *,
    output_size: int,
) -> tf.Tensor:
    """ROIAlign with ceil(roi size in feature pixels / P) samples per bin, for each roi and axis.

    A roi without area has no samples and gives 0. The work grows with the area of the rois in feature pixels, so a long thin
    one costs no more than others. Arguments and result are those of `align_by_crop`.
    """
    counts = tf.maximum(tf.cast(tf.math.ceil(frames.sizes / output_size), tf.int32), 0)
    shapes = [tf.shape(feature) for feature in features]
    matrix = sampling_matrix(shapes, frames, batch_indices, level_indices, counts, output_size=output_size)
    channels = features[0].shape[-1]

    # The rois are not trained: autodiff would compute the gradient of each weight, too.
    @tf.custom_gradient
    def pool(*features: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        table = tf.concat([tf.reshape(feature, [-1, channels]) for feature in features], axis=0)
        pooled = tf.reshape(_multiply(matrix, table), [-1, output_size, output_size, channels])
        return pooled, lambda upstream: spread_to_features(matrix, upstream, shapes)

    return tf.ensure_shape(pool(*features), [batch_indices.shape[0], output_size, output_size, channels])


def sampling_matrix(
    shapes: Sequence[tf.Tensor],
    frames: RoiFrames,
    batch_indices: tf.Tensor,
    level_indices: tf.Tensor,
    counts: tf.Tensor,
    *,
    output_size: int,
) -> SamplingMatrix:
    """The matrix of ROIAlign.

    Args:
        shapes: L int32 vectors (B, H_l, W_l, C).
        frames: N rois in pixels of their own maps.
        batch_indices: [N] int32.
        level_indices: [N] int32.
        counts: [N, 2] int32, samples per bin of each roi, (y, x); 0 gives empty rows.
        output_size: bins per axis, P.

    Returns:
        The matrix, of N * P * P bins and of all pixels in the order level, image, row, column.
    """
    roi, cell, sample_y, sample_x = _samples(counts, output_size)
    level = tf.gather(level_indices, roi)
    height, width = tf.unstack(tf.gather(tf.stack([shape[1:3] for shape in shapes]), level), axis=1)
    steps = frames.sizes / (output_size * tf.cast(tf.maximum(counts, 1), tf.float32))
    y = tf.gather(frames.starts[:, 0], roi) + (tf.cast(sample_y, tf.float32) + 0.5) * tf.gather(steps[:, 0], roi)
    x = tf.gather(frames.starts[:, 1], roi) + (tf.cast(sample_x, tf.float32) + 0.5) * tf.gather(steps[:, 1], roi)
    rows, columns = neighbours(y, tf.cast(height, tf.float32)), neighbours(x, tf.cast(width, tf.float32))

    num_pixels = tf.stack([tf.reduce_prod(shape[:3]) for shape in shapes])
    first = tf.gather(tf.cumsum(num_pixels, exclusive=True), level) + tf.gather(batch_indices, roi) * height * width
    share = 1.0 / tf.cast(tf.gather(tf.reduce_prod(counts, axis=1), roi), tf.float32)
    low, high = first + rows.low * width, first + rows.high * width
    pixels = tf.stack([low + columns.low, low + columns.high, high + columns.low, high + columns.high], axis=1)
    upper, lower = rows.low_weight * share, rows.high_weight * share
    weights = [upper * columns.low_weight, upper * columns.high_weight, lower * columns.low_weight, lower * columns.high_weight]
    places = tf.stack([tf.repeat(roi * output_size**2 + cell, 4), tf.reshape(pixels, [-1])], axis=1)
    shape = tf.stack([tf.shape(batch_indices)[0] * output_size**2, tf.reduce_sum(num_pixels)])
    csr = tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=tf.cast(places, tf.int64),
        values=tf.reshape(tf.stack(weights, axis=1), [-1]),
        dense_shape=tf.cast(shape, tf.int64),
    )
    return SamplingMatrix(csr, num_bins=shape[0], num_pixels=shape[1])


def spread_to_features(matrix: SamplingMatrix, upstream: tf.Tensor, shapes: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The gradient of the features: the transposed `sampling_matrix` times the bins' gradient [N, P, P, C]."""
    table = _multiply(matrix, tf.reshape(upstream, [-1, upstream.shape[-1]]), transposed=True)
    levels = tf.split(table, tf.stack([tf.reduce_prod(shape[:3]) for shape in shapes]), num=len(shapes))
    # The parts share the table's memory. TensorFlow's `AddN`, by which the tape adds the gradients of all users of a map, begins
    # with the first one that nobody else holds at that moment; with copies that is always the same one.
    return [tf.reshape(tf.raw_ops.DeepCopy(x=level), shape) for level, shape in zip(levels, shapes, strict=True)]


def _samples(counts: tf.Tensor, output_size: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """All samples in the order of the matrix rows: roi, bin 0..P * P - 1, and (y, x) on the roi's grid of samples; [S] int32."""
    per_bin = tf.reduce_prod(counts, axis=1)
    ends = tf.cumsum(per_bin * output_size**2)
    sample = tf.range(tf.reduce_max(tf.concat([ends, [0]], axis=0)))
    roi = tf.searchsorted(ends, sample, side="right")
    per_bin, counts = tf.gather(per_bin, roi), tf.gather(counts, roi)
    sample -= tf.gather(tf.concat([[0], ends], axis=0), roi)
    cell, within = sample // per_bin, sample % per_bin
    y = cell // output_size * counts[:, 0] + within // counts[:, 1]
    x = cell % output_size * counts[:, 1] + within % counts[:, 1]
    return roi, cell, y, x


def _multiply(matrix: SamplingMatrix, dense: tf.Tensor, *, transposed: bool = False) -> tf.Tensor:
    num_rows = matrix.num_pixels if transposed else matrix.num_bins

    def product() -> tf.Tensor:
        # The CPU kernel's own transpose_a lets each thread add up what it happens to get, so its sums differ from run to run.
        factor = tf.raw_ops.SparseMatrixTranspose(input=matrix.csr, type=tf.float32) if transposed else matrix.csr
        return tf.raw_ops.SparseMatrixMatMul(a=factor, b=dense)

    # The CPU kernel divides by the number of bins.
    return tf.cond(matrix.num_bins > 0, product, lambda: tf.zeros([num_rows, dense.shape[-1]]))
