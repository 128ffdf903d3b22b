"""ROIAlign over a feature pyramid (He et al., ICCV 2017, section 3; levels by Lin et al., CVPR 2017).

Shape legend: L levels, B images, H_l x W_l pixels and C channels of a level, N rois over all images, P bins per axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from mrcnn_tf.ops.roi_crop import align_by_crop
from mrcnn_tf.ops.roi_gather import align_by_gather
from mrcnn_tf.ops.roi_geometry import assign_levels, check_pyramid, level_of_stride, roi_frames
from mrcnn_tf.ops.roi_sparse import align_by_matrix
from mrcnn_tf.ops.static_graph import in_static_graph


def roi_align(
    features: Sequence[tf.Tensor],
    rois: tf.Tensor,
    batch_indices: tf.Tensor,
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
    minimum_size: float = 1.0,
    level_epsilon: float = 1e-8,
    level_rounding: str = "floor",
) -> tf.Tensor:
    """Average bilinear samples of the features in the bins of each roi; the gradient flows to the features only.

    A sample more than one pixel outside of the feature map counts as 0; others are clamped to the centres of the border
    pixels, as in the kernels of detectron2 and torchvision. Outside `static_graph()` the samples are taken by
    `tf.image.crop_and_resize`, inside it by gathers from one table of all levels; the results are the same to rounding.

    Args:
        features: L maps [B, H_l, W_l, C], fine to coarse, of a floating type; computed with in float32.
        rois: [N, 4], yxyx in pixels of the input. N may be 0.
        batch_indices: [N] int32, the image of each roi.
        strides: input pixels per feature pixel of each map, consecutive powers of two.
        output_size: bins per axis, P.
        sampling_ratio: samples per bin and axis. 0 takes ceil(roi size in feature pixels / P) for each roi and axis, so that
            a roi without area gives 0.
        aligned: bins are shifted by half a pixel so that they are centred (detectron2's ROIAlignV2); False is torchvision's
            default, which also treats rois as at least `minimum_size` large.
        minimum_size: feature pixels; 1 in torchvision, 0 in Model Garden.
        level_epsilon: see `assign_levels`.
        level_rounding: see `assign_levels`.

    Returns:
        [N, P, P, C] float32.

    Raises:
        ValueError: the strides do not fit the features, a negative sampling ratio, or adaptive sampling in a static graph.
    """
    check_pyramid(features, strides, output_size)
    if sampling_ratio < 0:
        raise ValueError(f"sampling_ratio must be 0 (adaptive) or positive, got {sampling_ratio}")
    if sampling_ratio == 0 and in_static_graph():
        raise ValueError(
            "sampling_ratio=0 has shapes that depend on the rois, so it cannot run under XLA or TFLite; use 1, 2 or 4"
        )
    features = [tf.cast(feature, tf.float32) for feature in features]
    rois = tf.stop_gradient(tf.cast(rois, tf.float32))
    first, last = level_of_stride(strides[0]), level_of_stride(strides[-1])
    levels = assign_levels(rois, min_level=first, max_level=last, epsilon=level_epsilon, rounding=level_rounding)
    scale = tf.gather(tf.constant([1.0 / stride for stride in strides]), levels - first)[:, None]
    frames = roi_frames(rois, scale, aligned=aligned, minimum_size=minimum_size)
    places = (features, frames, batch_indices, levels - first)
    if in_static_graph():
        return align_by_gather(*places, output_size=output_size, samples=sampling_ratio)
    if sampling_ratio == 0:
        return align_by_matrix(*places, output_size=output_size)
    return align_by_crop(*places, output_size=output_size, samples=sampling_ratio)
