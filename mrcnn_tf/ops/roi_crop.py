"""ROIAlign by `tf.image.crop_and_resize`, outside XLA, with a fixed number of samples per bin.

A map padded with one edge pixel on each side turns the border rule of ROIAlign into that of crop_and_resize: samples within
one pixel around the map find the border's value there, and samples further out are extrapolated with 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from mrcnn_tf.ops.roi_geometry import RoiFrames, pool_by_level
from mrcnn_tf.ops.roi_sparse import sampling_matrix, spread_to_features


def align_by_crop(
    features: Sequence[tf.Tensor],
    frames: RoiFrames,
    batch_indices: tf.Tensor,
    level_indices: tf.Tensor,
    *,
    output_size: int,
    samples: int,
) -> tf.Tensor:
    """ROIAlign with `samples` x `samples` samples per bin.

    Args:
        features: L maps [B, H_l, W_l, C] float32.
        frames: N rois in pixels of their own maps.
        batch_indices: [N] int32.
        level_indices: [N] int32, position in `features` of each roi's map.
        output_size: bins per axis, P.
        samples: samples per bin and axis, at least 1.

    Returns:
        [N, P, P, C] float32.
    """
    places = (frames, batch_indices, level_indices)

    @tf.custom_gradient
    def align(*features: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        shapes = [tf.shape(feature) for feature in features]

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            counts = tf.fill([tf.shape(batch_indices)[0], 2], samples)
            matrix = sampling_matrix(shapes, *places, counts, output_size=output_size)
            return spread_to_features(matrix, upstream, shapes)

        return _pool(features, *places, output_size, samples), gradient

    return align(*features)


def _pool(
    features: Sequence[tf.Tensor],
    frames: RoiFrames,
    batch_indices: tf.Tensor,
    level_indices: tf.Tensor,
    output_size: int,
    samples: int,
) -> tf.Tensor:
    side = output_size * samples

    def pool(level: int, rows: tf.Tensor) -> tf.Tensor:
        feature = features[level]
        boxes = _crop_boxes(tf.shape(feature), RoiFrames(*(tf.gather(part, rows) for part in frames)), side)
        crops = tf.image.crop_and_resize(_pad_edges(feature), boxes, tf.gather(batch_indices, rows), [side, side])
        return tf.nn.avg_pool2d(crops, samples, samples, "VALID")

    return pool_by_level(level_indices, len(features), pool)


def _pad_edges(feature: tf.Tensor) -> tf.Tensor:
    # Twice as fast as tf.pad(mode="SYMMETRIC") on a CPU.
    rows = tf.concat([feature[:, :1], feature, feature[:, -1:]], axis=1)
    return tf.concat([rows[:, :, :1], rows, rows[:, :, -1:]], axis=2)


def _crop_boxes(shape: tf.Tensor, frames: RoiFrames, side: int) -> tf.Tensor:
    """Boxes on the padded map for crop_and_resize: 0 and 1 are the centres of its first and of its last pixel.

    The first and last samples of crop_and_resize lie on the edges of the box, those of ROIAlign half a step inside the roi.
    """
    half_step = frames.sizes / (2.0 * side)
    first = frames.starts + half_step + 1.0  # the padding
    last = frames.starts + frames.sizes - half_step + 1.0
    extent = tf.cast(shape[1:3] + 1, tf.float32)
    return tf.concat([first / extent, last / extent], axis=1)
