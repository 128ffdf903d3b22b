"""Pooling as the Mask R-CNN of matterport does it: `tf.image.crop_and_resize`, given the boxes as they are.

One bilinear sample stands for a bin. The first lies on the edge of the roi and the last on the opposite one, where 0 and 1 of the
relative coordinates are the centres of a map's first and last pixel. ROIAlign's samples lie inside of the roi instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from mrcnn_tf.ops.roi_gather import resize_by_gather
from mrcnn_tf.ops.roi_geometry import assign_levels, check_pyramid, level_of_stride, pool_by_level
from mrcnn_tf.ops.static_graph import in_static_graph

_LAST = 1.0 - 5e-7
"""Stands for the last pixel. From 1 itself rounding carries some samples out of the map, and the kernel answers those with 0."""


def roi_resize(
    features: Sequence[tf.Tensor],
    rois: tf.Tensor,
    batch_indices: tf.Tensor,
    *,
    strides: Sequence[int],
    output_size: int,
    inclusive: bool = False,
    level_epsilon: float = 1e-8,
    level_rounding: str = "floor",
) -> tf.Tensor:
    """Bilinear samples of the features on a grid from edge to edge of each roi; the gradient flows to the features only.

    Inside `static_graph()` gathers from one table of all levels stand in for `tf.image.crop_and_resize`.

    Args:
        features: L maps [B, H_l, W_l, C], fine to coarse, of a floating type; computed with in float32. The first one times its
            stride is the size of the input.
        rois: [N, 4], yxyx in pixels of the input. N may be 0.
        batch_indices: [N] int32, the image of each roi.
        strides: input pixels per feature pixel of each map, consecutive powers of two.
        output_size: samples per axis, P, at least 2.
        inclusive: the last pixel of the input has the coordinate size - 1 and not size.
        level_epsilon: see `assign_levels`.
        level_rounding: see `assign_levels`.

    Returns:
        [N, P, P, C] float32; samples outside of the map are 0.

    Raises:
        ValueError: the strides do not fit the features.
    """
    check_pyramid(features, strides, output_size)
    features = [tf.cast(feature, tf.float32) for feature in features]
    input_size = tf.cast(tf.tile(tf.shape(features[0])[1:3] * strides[0], [2]), tf.float32)
    relative = tf.stop_gradient(tf.cast(rois, tf.float32)) / (input_size - (1.0 if inclusive else 0.0))
    first, last = level_of_stride(strides[0]), level_of_stride(strides[-1])
    levels = assign_levels(relative * input_size, min_level=first, max_level=last, epsilon=level_epsilon, rounding=level_rounding)
    relative = tf.where(relative == 1.0, _LAST, relative)

    if in_static_graph():
        return resize_by_gather(features, relative, batch_indices, levels - first, output_size=output_size)

    def pool(level: int, rows: tf.Tensor) -> tf.Tensor:
        boxes, images = tf.gather(relative, rows), tf.gather(batch_indices, rows)
        return tf.image.crop_and_resize(features[level], boxes, images, [output_size, output_size])

    return pool_by_level(levels - first, len(features), pool)
