"""What every kind of RoI pooling shares: the level of a roi, its place in feature pixels, and the checks of the arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import tensorflow as tf

LEVEL_STARTS = {"floor": 0.0, "nearest": -0.5}
"""Where a level starts on the axis of the logarithm, before its number, for each kind of rounding."""


class RoiFrames(NamedTuple):
    """Rois in the pixels of one feature map, where (0, 0) is the centre of the first pixel if the rois are aligned."""

    starts: tf.Tensor
    """[N, 2] float32, (y, x) of the upper left corner."""
    sizes: tf.Tensor
    """[N, 2] float32, (height, width)."""


class Neighbours(NamedTuple):
    """The two pixels between which a sample lies on one axis, int32, and the weight of each, float32."""

    low: tf.Tensor
    high: tf.Tensor
    low_weight: tf.Tensor
    high_weight: tf.Tensor


def assign_levels(
    rois: tf.Tensor,
    *,
    min_level: int,
    max_level: int,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    epsilon: float = 1e-8,
    rounding: str = "floor",
) -> tf.Tensor:
    """Pyramid level of each roi: floor(canonical_level + log2(sqrt(area) / canonical_size + epsilon)), clipped.

    Equation 1 of the FPN paper (Lin et al., CVPR 2017). The epsilon stands inside the logarithm as in detectron2 (1e-8).
    torchvision adds 1e-6 after it, which is the same as 7e-7 in here for a roi of the canonical size.

    The logarithm is made whole by comparing with the powers of two. So a roi of exactly 112 pixels does not depend on how a
    device rounds log2, and the operations are ones that TFLite has.

    Args:
        rois: [N, 4] float32, yxyx in pixels of the input.
        min_level: level of the finest feature map, log2 of its stride.
        max_level: level of the coarsest one.
        canonical_size: square root of the area that belongs to `canonical_level`, pixels.
        canonical_level: level of a roi of the canonical size.
        epsilon: added to sqrt(area) / canonical_size.
        rounding: "floor", or "nearest" (matterport).

    Returns:
        [N] int32 in min_level..max_level.
    """
    first = LEVEL_STARTS[rounding]
    y1, x1, y2, x2 = tf.unstack(tf.cast(rois, tf.float32), axis=-1)
    area = tf.maximum(y2 - y1, 0.0) * tf.maximum(x2 - x1, 0.0)
    relative_size = tf.sqrt(area) / canonical_size + epsilon
    levels = tf.fill(tf.shape(relative_size), min_level)
    for level in range(min_level + 1, max_level + 1):
        levels += tf.cast(relative_size >= 2.0 ** (level - canonical_level + first), tf.int32)
    return levels


def roi_frames(rois: tf.Tensor, scale: float | tf.Tensor, *, aligned: bool, minimum_size: float = 1.0) -> RoiFrames:
    """Rois in feature pixels, with the rounding of the C++ kernels of detectron2 and torchvision.

    Args:
        rois: [N, 4] float32, yxyx in pixels of the input.
        scale: feature pixels per input pixel, a number or [N, 1].
        aligned: shift by half a pixel; otherwise sizes are at least `minimum_size`.
        minimum_size: feature pixels.

    Returns:
        `RoiFrames` of N rois.
    """
    # The kernels shift both corners and subtract then; the adaptive sample count hangs on the last bit of the size.
    shift = 0.5 if aligned else 0.0
    starts = rois[:, :2] * scale - shift
    sizes = (rois[:, 2:] * scale - shift) - starts
    return RoiFrames(starts, sizes if aligned else tf.maximum(sizes, minimum_size))


def neighbours(positions: tf.Tensor, limits: tf.Tensor) -> Neighbours:
    """Linear interpolation on one axis with the border rule of the ROIAlign kernels.

    Args:
        positions: float32 of any shape, in pixels, 0 being the centre of the first one.
        limits: float32 that broadcasts with `positions`, pixels on the axis.

    Returns:
        `Neighbours` in the shape of `positions`. Both weights are 0 more than one pixel outside of the axis; other positions
        are clamped to the centres of the border pixels.
    """
    inside = tf.logical_and(positions >= -1.0, positions <= limits)
    # NaN is not inside: a diverged training must not become a read outside of the features.
    positions = tf.clip_by_value(tf.where(inside, positions, 0.0), 0.0, limits - 1.0)
    inside = tf.cast(inside, tf.float32)
    low = tf.floor(positions)
    fraction = positions - low
    high = tf.minimum(low + 1.0, limits - 1.0)
    return Neighbours(tf.cast(low, tf.int32), tf.cast(high, tf.int32), (1.0 - fraction) * inside, fraction * inside)


def pool_by_level(level_indices: tf.Tensor, num_levels: int, pool: Callable[[int, tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Pool the rois of each level from the map of that level.

    Args:
        level_indices: [N] int32 in 0..num_levels - 1.
        num_levels: L.
        pool: called with the position of a level and the rows [M] int32 of its rois; gives [M, ...].

    Returns:
        [N, ...] in the order of the rois.
    """
    members = [tf.cast(tf.where(level_indices == level)[:, 0], tf.int32) for level in range(num_levels)]
    results = [pool(level, rows) for level, rows in enumerate(members)]
    stitched = tf.dynamic_stitch(members, results)
    return tf.ensure_shape(stitched, [level_indices.shape[0], *results[0].shape[1:]])


def level_of_stride(stride: int) -> int:
    """log2 of a stride that `check_pyramid` accepted."""
    return stride.bit_length() - 1


def check_pyramid(features: Sequence[tf.Tensor], strides: Sequence[int], output_size: int) -> None:
    """Reject arguments of RoI pooling that cannot be right.

    Raises:
        ValueError: no features, not one stride per feature map, strides that are not consecutive powers of two from fine to
            coarse, or an output size below 1.
    """
    if not features or len(features) != len(strides):
        raise ValueError(f"RoI pooling needs one stride for each feature map, got {len(features)} maps, strides {list(strides)}")
    if any(s < 1 or s & (s - 1) for s in strides) or any(b != 2 * a for a, b in pairwise(strides)):
        raise ValueError(f"strides must be consecutive powers of two, fine to coarse, as (4, 8, 16, 32); got {list(strides)}")
    if output_size < 1:
        raise ValueError(f"output_size must be at least 1, got {output_size}")
