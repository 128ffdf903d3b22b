"""The constants by which existing systems differ, as values of the configuration's `model` section.

`model.preset: NAME` fills in whatever the configuration does not give itself. A preset is about how a system computes: images,
padding, anchors, pooling, filters, losses, pasting. What the networks of one system differ in (trunk, norms, heads) is not part
of it; importers read that from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IMAGENET_MEAN_RGB, IMAGENET_STD_RGB = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""torchvision's constants times 255."""
IMAGENET_MEAN_BGR, IMAGENET_STD_BGR = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
"""detectron2's; its own ResNets use the mean only."""

# torchvision adds 1e-6 after the logarithm to the base 2, which is this much inside it for a region of the canonical size.
_LEVEL_EPSILON_TORCHVISION = 6.9e-7

PRESETS: dict[str, dict[str, Any]] = {
    "detectron2": {
        "preprocessing": {
            "pixel_mean": IMAGENET_MEAN_BGR,
            "pixel_std": (1.0, 1.0, 1.0),
            "channel_order": "bgr",
            "min_size": 800,
            "max_size": 1333,
            "antialias": True,
            "quantize": True,
            "resize_rounding": "half_up",
        },
        "backbone": {"stride_in": "1x1", "norm_epsilon": 1e-5},
        "roi_align": {"sampling_ratio": 0, "aligned": True, "level_epsilon": 1e-8},
        "box_head": {"pre_nms_top_k": None},
        "mask_head": {"paste": "centred"},
    },
    "torchvision": {
        "preprocessing": {
            "pixel_mean": IMAGENET_MEAN_RGB,
            "pixel_std": IMAGENET_STD_RGB,
            "channel_order": "rgb",
            "min_size": 800,
            "max_size": 1333,
            "antialias": False,
            "quantize": False,
            "resize_rounding": "floor",
        },
        "backbone": {"stride_in": "3x3"},
        "anchors": {"rounded": True, "stride": "measured"},
        "rpn": {
            "post_nms_top_k_train": 2000,
            "min_box_size": 1e-3,
            "box_loss": "smooth_l1",
            "smooth_l1_beta": 1 / 9,
            "loss_normaliser": "drawn",
        },
        "roi_align": {
            "sampling_ratio": 2,
            "aligned": False,
            "minimum_size": 1.0,
            "level_epsilon": _LEVEL_EPSILON_TORCHVISION,
        },
        "box_head": {"box_loss": "smooth_l1", "smooth_l1_beta": 1 / 9, "min_box_size": 0.01, "pre_nms_top_k": None},
        "mask_head": {"soft_targets": True, "paste": "expanded"},
    },
    "model_garden": {
        "preprocessing": {
            "pixel_mean": IMAGENET_MEAN_RGB,
            "pixel_std": IMAGENET_STD_RGB,
            "channel_order": "rgb",
            "min_size": 1024,
            "max_size": 1024,
            "antialias": False,
            "quantize": False,
            "resize_rounding": "half_even",
            "padding": "square",
        },
        "backbone": {"stride_in": "3x3", "padding": "same", "pool_padding": "same", "norm_epsilon": 1e-4},
        "fpn": {"p6": "conv", "norm_epsilon": 1e-4},
        # Its ratios are width over height.
        "anchors": {"aspect_ratios": (2.0, 1.0, 0.5), "offset": 0.5},
        "rpn": {
            "norm_epsilon": 1e-4,
            "ranking": "probability",
            "clip_to": "input",
            "box_loss": "smooth_l1",
            "smooth_l1_beta": 1 / 9,
        },
        "roi_align": {"sampling_ratio": 1, "aligned": False, "minimum_size": 0.0, "level_epsilon": 0.0, "max_level": 6},
        "box_head": {
            "norm_epsilon": 1e-4,
            "box_loss": "smooth_l1",
            "smooth_l1_beta": 1.0,
            "pre_nms_top_k": None,
            "clip_to": "input",
        },
        "mask_head": {"norm_epsilon": 1e-4, "paste": "expanded"},
    },
    "matterport": {
        "preprocessing": {
            "pixel_mean": (123.7, 116.8, 103.9),
            "pixel_std": (1.0, 1.0, 1.0),
            "channel_order": "rgb",
            "min_size": 800,
            "max_size": 1024,
            "antialias": False,
            "quantize": True,
            "resize_rounding": "half_even",
            "enlarge_only": True,
            "padding": "square",
            "placement": "centre",
            "padding_value": "black",
        },
        "backbone": {"stride_in": "1x1", "pool_padding": "same", "norm_epsilon": 1e-3},
        # Its ratios are width over height.
        "anchors": {"aspect_ratios": (2.0, 1.0, 0.5)},
        "rpn": {
            "pre_nms_top_k_train": 6000,
            "pre_nms_top_k_test": 6000,
            "post_nms_top_k_train": 2000,
            "joint_levels": True,
            "ranking": "probability",
            "clip_to": "input",
            "box_weights": (10.0, 10.0, 5.0, 5.0),
            "box_loss": "smooth_l1",
            "smooth_l1_beta": 1.0,
            "loss_normaliser": "drawn",
        },
        "roi_align": {"kind": "crop", "level_epsilon": 0.0, "level_rounding": "nearest"},
        "box_head": {
            "num_samples": 200,
            "positive_fraction": 0.33,
            "box_loss": "smooth_l1",
            "smooth_l1_beta": 1.0,
            "score_threshold": 0.7,
            "nms_iou_threshold": 0.3,
            "best_class_only": True,
        },
        "mask_head": {"norm_epsilon": 1e-3, "paste": "stretched"},
        "max_log_scale": None,
        "box_ends": "inclusive",
    },
}


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, section by section; neither is touched."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
