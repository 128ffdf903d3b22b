"""The `model` section: architecture, preprocessing and categories, everything that a `.keras` file keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from mrcnn_tf.config.validation import Section
from mrcnn_tf.presets import PRESETS, merge

NormName = Literal["frozen", "batch", "sync_batch", "group", "none"]
PresetName = Literal["detectron2", "torchvision", "model_garden", "matterport"]
BackboneName = Literal[
    "resnet50",
    "resnet101",
    "resnext101_32x8d",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
]
MAX_LOG_SCALE = math.log(1000 / 16)
"""Bound of a box's growth (log), as in Detectron, detectron2, torchvision and Model Garden."""
MASK_SIZE = 56
"""Side of the ground-truth mask crops in the batch."""


class Category(Section):
    """One class of the data set: its own id there and its name."""

    id: int
    name: str


def imagenet_preprocessing(backbone: str) -> dict[str, Any]:
    """`pixel_mean`, `pixel_std` and `channel_order` that the ImageNet weights of a trunk were trained with.

    EfficientNet-Lite: its authors' constants. ResNets: those of keras.applications (and, but for decimals, of detectron2).
    """
    if backbone.startswith("efficientnet_lite"):
        return {"pixel_mean": (127.0, 127.0, 127.0), "pixel_std": (128.0, 128.0, 128.0), "channel_order": "rgb"}
    return {"pixel_mean": (103.939, 116.779, 123.68), "pixel_std": (1.0, 1.0, 1.0), "channel_order": "bgr"}


class PreprocessingConfig(Section):
    """How an image becomes the network's input.

    Where a configuration does not give mean, std and channel order they are `imagenet_preprocessing` of its trunk.
    """

    pixel_mean: tuple[float, float, float] = (103.939, 116.779, 123.68)
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_order: Literal["rgb", "bgr"] = "bgr"
    """Order in which the network sees the channels; mean and std are given in this order."""
    min_size: int = Field(800, ge=1)
    """Shortest edge at inference, pixels."""
    max_size: int = Field(1333, ge=1)
    """Upper bound of the longest edge at inference, pixels."""
    antialias: bool = True
    """Low-pass when shrinking, as Pillow does. torchvision does not."""
    resize_rounding: Literal["half_up", "floor", "half_even"] = "half_up"
    """How the size of the resized image is made whole: detectron2, torchvision, Model Garden and matterport."""
    quantize: bool = True
    """Round the resized image to whole grey levels, as Pillow does (detectron2). torchvision resizes floating-point images."""
    enlarge_only: bool = False
    """Never shrink an image to min_size, only to max_size (matterport)."""
    padding: Literal["multiple", "square"] = "multiple"
    """Up to multiples of 32 (detectron2, torchvision), or to max_size x max_size (Model Garden, matterport)."""
    placement: Literal["top_left", "centre"] = "top_left"
    """Where the image lies in the padded input; centre is matterport's."""
    padding_value: Literal["mean", "black"] = "mean"
    """Padding with zeros after the normalisation, or before it (matterport)."""


class BackboneConfig(Section):
    """The trunk C2..C5."""

    name: BackboneName = "resnet50"
    stride_in: Literal["1x1", "3x3"] = "1x1"
    """Which convolution of a ResNet bottleneck carries the stride (ignored by EfficientNet-Lite). keras.applications and the
    original ResNets: 1x1; torchvision and ResNeXt: 3x3."""
    norm: Literal["frozen", "batch", "sync_batch", "group"] = "frozen"
    norm_epsilon: float | None = Field(None, ge=0)
    """None: the architecture's own (1e-5 for ResNets, 1e-3 for EfficientNet-Lite)."""
    padding: Literal["symmetric", "same"] = "symmetric"
    """Of a ResNet's convolutions: on all sides alike, or TensorFlow's "same", which pads the bottom and the right more where the
    stride is 2 (Model Garden). EfficientNet-Lite always has "same"."""
    pool_padding: Literal["symmetric", "same"] = "symmetric"
    """Of a ResNet's max pooling (Model Garden and matterport: same)."""
    frozen_stages: int = Field(2, ge=0, le=5)
    """0 trains everything, 1 freezes the stem, 2 the stem and C2, ... 5 the whole trunk."""
    weights: str | None = "imagenet"
    """"imagenet", the path of a checkpoint with an ImageNet trunk, or None for random weights."""


class FpnConfig(Section):
    """The feature pyramid (Lin et al., CVPR 2017)."""

    width: int = Field(256, ge=1)
    norm: NormName = "none"
    norm_epsilon: float = Field(1e-5, ge=0)
    p6: Literal["pool", "conv"] = "pool"
    """P6 by subsampling P5, or by a 3x3 convolution of stride 2 on P5 before its norm (Model Garden)."""


class AnchorConfig(Section):
    """Reference boxes, one tuple of sizes per level P2..P6."""

    sizes: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    """Square roots of the areas, pixels."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    rounded: bool = False
    """Round half sizes to whole pixels, as torchvision does."""
    offset: float = Field(0.0, ge=0, lt=1)
    """Centre of the first cell's anchors in strides: 0 (detectron2, torchvision, matterport) or 0.5 (Model Garden)."""
    stride: Literal["nominal", "measured"] = "nominal"
    """Distance of the cells: the level's stride, or input size // feature size (torchvision), which differs on P6 of an input
    that is no multiple of 64."""

    @model_validator(mode="after")
    def _check(self) -> AnchorConfig:
        if len(self.sizes) != 5:
            raise ValueError(f"sizes needs one tuple for each of the 5 levels P2..P6, got {len(self.sizes)}")
        if len({len(level) for level in self.sizes}) != 1 or not self.sizes[0]:
            raise ValueError("sizes needs the same number (at least one) of sizes on every level")
        if min(min(level) for level in self.sizes) <= 0 or not self.aspect_ratios or min(self.aspect_ratios) <= 0:
            raise ValueError("sizes and aspect_ratios must be positive and not empty")
        return self


class RpnConfig(Section):
    """The region proposal network (Ren et al., 2015)."""

    width: int | None = None
    """Channels of the hidden convolutions; None: the pyramid's width."""
    num_convs: int = Field(1, ge=1)
    norm: NormName = "none"
    """Of the hidden convolutions, one for each level of the pyramid (Model Garden)."""
    norm_epsilon: float = Field(1e-5, ge=0)
    foreground_iou_threshold: float = Field(0.7, ge=0, le=1)
    background_iou_threshold: float = Field(0.3, ge=0, le=1)
    num_samples: int = Field(256, ge=1)
    positive_fraction: float = Field(0.5, gt=0, le=1)
    pre_nms_top_k_train: int = Field(2000, ge=1)
    pre_nms_top_k_test: int = Field(1000, ge=1)
    post_nms_top_k_train: int = Field(1000, ge=1)
    post_nms_top_k_test: int = Field(1000, ge=1)
    nms_iou_threshold: float = Field(0.7, ge=0, le=1)
    joint_levels: bool = False
    """The pre-NMS top k and NMS over all levels together instead of each by itself (matterport)."""
    clip_to: Literal["image", "input"] = "image"
    """Proposals are cut at the image, or at the padded input (Model Garden, matterport)."""
    ranking: Literal["logit", "probability"] = "logit"
    """What anchors are ordered by. They differ where float32 rounds two probabilities to the same number; then the anchor that
    comes first wins (Model Garden)."""
    min_box_size: float = Field(0.0, ge=0)
    box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    """Scale of (dy, dx, dh, dw)."""
    box_loss: Literal["l1", "smooth_l1"] = "l1"
    smooth_l1_beta: float = Field(1 / 9, gt=0)
    loss_normaliser: Literal["num_samples", "drawn"] = "num_samples"
    """Losses are divided by num_samples times the images (detectron2), or by the anchors that were drawn (torchvision)."""
    class_loss_weight: float = Field(1.0, ge=0)
    box_loss_weight: float = Field(1.0, ge=0)


class RoiAlignConfig(Section):
    """How features are pooled at a box."""

    kind: Literal["align", "pool", "crop"] = "align"
    """ROIAlign, the RoIPool of Fast R-CNN (the paper's ablation; not under XLA), or one bilinear sample a bin from edge to edge
    of the box, as `tf.image.crop_and_resize` takes them (matterport)."""
    sampling_ratio: Literal[0, 1, 2, 4] = 2
    """Samples per bin and axis; 0 is detectron2's adaptive ceil(roi / bins) (not under XLA)."""
    aligned: bool = True
    """Shift by half a pixel so that bins are centred (detectron2); False is torchvision's."""
    minimum_size: float = Field(1.0, ge=0)
    """Smallest side of a region in feature pixels when `aligned` is false: 1 in torchvision, 0 in Model Garden."""
    level_epsilon: float = 1e-8
    """Added to the relative box size inside log2, so that sizes on the border of two levels take the upper one."""
    level_rounding: Literal["floor", "nearest"] = "floor"
    """Of the logarithm; nearest is matterport's."""
    max_level: Literal[5, 6] = 5
    """Coarsest level that regions are pooled from; Model Garden takes P6, too."""


class BoxHeadConfig(Section):
    """Classification and box regression of the proposals."""

    kind: Literal["2fc", "4conv1fc"] = "2fc"
    norm: NormName = "none"
    """Of the convolutions of 4conv1fc."""
    norm_epsilon: float = Field(1e-5, ge=0)
    conv_width: int = Field(256, ge=1)
    fc_width: int = Field(1024, ge=1)
    class_agnostic_boxes: bool = False
    num_samples: int = Field(512, ge=1)
    positive_fraction: float = Field(0.25, gt=0, le=1)
    foreground_iou_threshold: float = Field(0.5, ge=0, le=1)
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """Scale of (dy, dx, dh, dw)."""
    box_loss: Literal["l1", "smooth_l1"] = "l1"
    smooth_l1_beta: float = Field(1.0, gt=0)
    score_threshold: float = Field(0.05, ge=0, lt=1)
    nms: Literal["hard", "soft_linear", "soft_gaussian"] = "hard"
    """Greedy NMS, or Soft-NMS, which lowers the scores of boxes that overlap a better one: by 1 - IoU from nms_iou_threshold on,
    or by exp(-IoU^2 / soft_nms_sigma)."""
    nms_iou_threshold: float = Field(0.5, ge=0, le=1)
    soft_nms_sigma: float = Field(0.5, gt=0)
    soft_nms_min_score: float = Field(0.001, gt=0, lt=1)
    """Soft-NMS drops a box whose score falls below it."""
    max_detections: int = Field(100, ge=1)
    pre_nms_top_k: int | None = Field(5000, ge=1)
    """Scored (region, class) pairs of an image that enter NMS, the best first, far more than a trained model gives; None: no
    bound (detectron2, torchvision; Model Garden has 5000 for each class, which 1000 regions do not reach)."""
    best_class_only: bool = False
    """A region is a detection of its best class only (matterport)."""
    clip_to: Literal["image", "input"] = "image"
    """Detections are cut at the image, or at the padded input (Model Garden)."""
    min_box_size: float = Field(0.0, ge=0)
    """Detections with a side below this many pixels are dropped (torchvision: 0.01)."""
    class_loss_weight: float = Field(1.0, ge=0)
    box_loss_weight: float = Field(1.0, ge=0)


class MaskHeadConfig(Section):
    """Fully convolutional mask branch."""

    enabled: bool = True
    """False is Faster R-CNN."""
    num_convs: int = Field(4, ge=0)
    width: int = Field(256, ge=1)
    norm: NormName = "none"
    norm_epsilon: float = Field(1e-5, ge=0)
    class_agnostic: bool = False
    soft_targets: bool = False
    """Train against coverage (torchvision) instead of coverage >= 0.5 (detectron2)."""
    loss_weight: float = Field(1.0, ge=0)
    paste: Literal["centred", "expanded", "stretched"] = "centred"
    """How a mask is laid over its box: interpolated at pixel centres (detectron2), expanded by a border of one cell and resized
    to whole pixels (torchvision, Model Garden), or resized to the box's whole pixels (matterport)."""


class ModelConfig(Section):
    """Everything the `.keras` file keeps."""

    preset: PresetName | None = None
    """The system whose constants stand in for the values that are not given (`mrcnn_tf.presets`)."""
    weights: str | None = None
    """Path of a `.keras` file to start from. What the configuration does not give itself is then taken from that model."""
    categories: tuple[Category, ...] = ()
    """Position i is class i + 1. Empty in a YAML file: taken from the training annotations."""
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    backbone: BackboneConfig = BackboneConfig()
    fpn: FpnConfig = FpnConfig()
    anchors: AnchorConfig = AnchorConfig()
    rpn: RpnConfig = RpnConfig()
    roi_align: RoiAlignConfig = RoiAlignConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    mask_head: MaskHeadConfig = MaskHeadConfig()
    max_log_scale: float | None = MAX_LOG_SCALE
    """Upper bound of (dh, dw) before exponentiation; None: no bound (matterport)."""
    box_ends: Literal["exclusive", "inclusive"] = "exclusive"
    """Whether (y2, x2) of a box inside of the network is the pixel after its last one, or the last one itself (matterport).
    Inputs and outputs are exclusive."""
    crowd_overlap_threshold: float = Field(0.7, ge=0, le=1)
    """No negative is drawn where a crowd region covers more than this part of the anchor or proposal (Detectron)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Where they are not given: the values of the preset and the pixel statistics of the trunk."""
        if not isinstance(values, Mapping):
            return values
        preset = values.get("preset")
        if preset in PRESETS:
            values = merge(PRESETS[preset], {key: _as_mapping(value) for key, value in values.items()})
        backbone, preprocessing = values.get("backbone", {}), values.get("preprocessing", {})
        if not isinstance(preprocessing, Mapping):
            return values
        name = backbone.get("name", "") if isinstance(backbone, Mapping) else getattr(backbone, "name", "")
        constants = imagenet_preprocessing(str(name))
        return {**values, "preprocessing": {**constants, **preprocessing}}

    @property
    def num_classes(self) -> int:
        """Foreground classes K."""
        return len(self.categories)


def _as_mapping(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value
