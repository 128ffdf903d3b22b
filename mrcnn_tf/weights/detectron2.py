"""Checkpoints of detectron2's Mask R-CNN and Faster R-CNN with a feature pyramid: its model zoo and own training.

COCO-InstanceSegmentation and COCO-Detection (R_50_FPN, R_101_FPN, X_101_32x8d_FPN), their group-norm variants, class-agnostic
ones, and the new baselines (batch norm, two convolutions in the RPN, four in the box head).
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from mrcnn_tf.data.coco_labels import COCO_CATEGORIES
from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.modeling.mask_rcnn import BOX_POOL_SIZE, MaskRCNN
from mrcnn_tf.presets import IMAGENET_STD_BGR
from mrcnn_tf.weights import torch_layout
from mrcnn_tf.weights.assign import Assignments, Parameters, PretrainedWeightsError, assign_all
from mrcnn_tf.weights.checkpoint import Checkpoint
from mrcnn_tf.weights.found import Arrays, Found, count, refuse, resnet_name, shape_of

_TRUNK, _RPN, _HEADS = "backbone.bottom_up.", "proposal_generator.rpn_head.", "roi_heads."
_NOT_OURS = {
    "sem_seg_head": "Panoptic FPN",
    "keypoint_head": "Keypoint R-CNN",
    "roi_heads.box_predictor.0.": "Cascade R-CNN",
    "roi_heads.res5": "a C4 network without a feature pyramid",
    "conv2_offset": "deformable convolutions",
    "backbone.bottom_up.s1.": "a RegNet trunk",
    "backbone.res2": "a network without a feature pyramid",
    "head.cls_subnet": "RetinaNet",
}
# The values of these buffers are checked against the configuration; nothing is computed with them.
_BUFFERS = ("cell_anchors", "pixel_mean", "pixel_std", torch_layout.COUNTER)
_NORM_EPSILON = 1e-5
_STRIDE_NOTE = (
    "stride in the {stride} convolution of a block, as in detectron2's {kind} models; the parameters cannot tell it. For other "
    "training settings give model.backbone.stride_in"
)


def matches(checkpoint: Checkpoint) -> bool:
    """Whether the names are detectron2's."""
    return any(name.startswith(("backbone.bottom_up.", "proposal_generator.", "backbone.res2.")) for name in checkpoint.arrays)


def describe(checkpoint: Checkpoint, *, norm_epsilon: float | None = None) -> Found:
    """Recognise the network.

    Args:
        checkpoint: that `matches`.
        norm_epsilon: of all norms; None: 1e-5.

    Returns:
        What it is.

    Raises:
        PretrainedWeightsError: another network of detectron2's, or a trunk that this project does not have.
    """
    arrays, source = checkpoint.arrays, str(checkpoint.path)
    refuse(arrays, _NOT_OURS, source)
    backbone = resnet_name(arrays, _TRUNK + "res{stage}.{block}", 2, source)
    norm = torch_layout.norm_kind(arrays, f"{_TRUNK}stem.conv1.norm")
    stride_in, note = _stride(backbone, norm)
    epsilon = _NORM_EPSILON if norm_epsilon is None else norm_epsilon
    num_classes = shape_of(arrays, f"{_HEADS}box_predictor.cls_score.weight", source)[0] - 1
    has_masks = f"{_HEADS}mask_head.predictor.weight" in arrays
    model: dict[str, Any] = {
        "preset": "detectron2",
        "preprocessing": _pixel_statistics(arrays, backbone),
        "backbone": {"name": backbone, "stride_in": stride_in, "norm": norm, "norm_epsilon": epsilon, "weights": None},
        "fpn": {
            "width": shape_of(arrays, "backbone.fpn_lateral2.weight", source)[0],
            "norm": torch_layout.norm_kind(arrays, "backbone.fpn_lateral2.norm"),
            "norm_epsilon": epsilon,
        },
        "rpn": {
            "num_convs": count(arrays, f"{_RPN}conv.conv{{}}.weight") or 1,
            "width": shape_of(arrays, f"{_RPN}objectness_logits.weight", source)[1],
        },
        "box_head": _box_head_values(arrays, epsilon, num_classes, source),
        "mask_head": {"enabled": has_masks, **(_mask_head_values(arrays, epsilon, num_classes) if has_masks else {})},
    }
    kind = "mask_rcnn" if has_masks else "faster_rcnn"
    norms = {"group": "_gn", "batch": "_bn"}.get(norm, "")
    short = {"resnet50": "R_50", "resnet101": "R_101", "resnext101_32x8d": "X_101_32x8d"}[backbone]
    categories = COCO_CATEGORIES if num_classes == len(COCO_CATEGORIES) else None
    return Found(f"detectron2 {kind}_{short}_FPN{norms}", model, num_classes, categories, (note,))


def assign(model: MaskRCNN, checkpoint: Checkpoint) -> None:
    """Put the checkpoint into a model of its `describe`.

    Raises:
        PretrainedWeightsError: a parameter is missing, superfluous or misshapen, or the checkpoint is for other anchors; nothing
            is assigned then.
    """
    _check_anchors(model, checkpoint)
    arrays = {name: array for name, array in checkpoint.arrays.items() if not any(part in name for part in _BUFFERS)}
    parameters = Parameters(arrays, str(checkpoint.path))
    assignments = trunk_assignments(parameters, model.backbone, _TRUNK)
    assignments += _fpn(parameters, model) + _rpn(parameters, model) + _box_head(parameters, model)
    if model.mask_head is not None:
        assignments += _mask_head(parameters, model)
    parameters.finish()
    assign_all(assignments)


def trunk_assignments(parameters: Parameters, backbone: keras.Model, prefix: str = "") -> Assignments:
    """What goes into a trunk of `build_backbone`; `prefix` is that of the trunk's names."""
    assignments: Assignments = []
    for layer in backbone.layers:
        if isinstance(layer, ConvNorm):
            name = prefix + ("stem.conv1" if layer.name == "stem" else layer.name.replace("_", "."))
            assignments += torch_layout.conv(parameters, layer, name, f"{name}.norm")
    return assignments


def _stride(backbone: str, norm: str) -> tuple[str, str]:
    if backbone.startswith("resnext"):
        return "3x3", _STRIDE_NOTE.format(stride="3x3", kind="ResNeXt")
    if norm == "group":
        return "3x3", _STRIDE_NOTE.format(stride="3x3", kind="group-norm")
    return "1x1", _STRIDE_NOTE.format(stride="1x1", kind="ResNet")


def _pixel_statistics(arrays: Arrays, backbone: str) -> dict[str, Any]:
    """Those of the file, which old ones hold, else those of the trunk's ImageNet weights."""
    found = {key: tuple(arrays[key].ravel().tolist()) for key in ("pixel_mean", "pixel_std") if key in arrays}
    default = {"pixel_std": IMAGENET_STD_BGR} if backbone.startswith("resnext") else {}
    return {**default, **found}


def _box_head_values(arrays: Arrays, epsilon: float, num_classes: int, source: str) -> dict[str, Any]:
    num_convs = sum(f"{_HEADS}box_head.conv{index}.weight" in arrays for index in range(1, 5))
    num_fcs = sum(f"{_HEADS}box_head.fc{index}.weight" in arrays for index in range(1, 3))
    kinds = {(0, 2): "2fc", (4, 1): "4conv1fc"}
    if (num_convs, num_fcs) not in kinds:
        raise PretrainedWeightsError(
            f"{source}: the box head has {num_convs} convolutions and {num_fcs} fully connected ones, expected 0 and 2 or 4 and 1"
        )
    num_deltas = shape_of(arrays, f"{_HEADS}box_predictor.bbox_pred.weight", source)[0]
    return {
        "kind": kinds[num_convs, num_fcs],
        "norm": torch_layout.norm_kind(arrays, f"{_HEADS}box_head.conv1.norm"),
        "norm_epsilon": epsilon,
        "conv_width": shape_of(arrays, f"{_HEADS}box_head.conv1.weight", source)[0] if num_convs else 256,
        "fc_width": shape_of(arrays, f"{_HEADS}box_predictor.cls_score.weight", source)[1],
        "class_agnostic_boxes": num_deltas == 4 and num_classes > 1,
    }


def _mask_head_values(arrays: Arrays, epsilon: float, num_classes: int) -> dict[str, Any]:
    return {
        "width": arrays[f"{_HEADS}mask_head.predictor.weight"].shape[1],
        "num_convs": sum(f"{_HEADS}mask_head.mask_fcn{index}.weight" in arrays for index in range(1, 9)),
        "norm": torch_layout.norm_kind(arrays, f"{_HEADS}mask_head.mask_fcn1.norm"),
        "norm_epsilon": epsilon,
        "class_agnostic": arrays[f"{_HEADS}mask_head.predictor.weight"].shape[0] == 1 and num_classes > 1,
    }


def _check_anchors(model: MaskRCNN, checkpoint: Checkpoint) -> None:
    """Old files hold the anchors of one location of each level; they must be the model's."""
    for level, cell in enumerate(model.cell_anchors):
        name = f"proposal_generator.anchor_generator.cell_anchors.{level}"
        if name in checkpoint.arrays:
            expected, found = cell[:, [1, 0, 3, 2]], checkpoint.arrays[name]
            if expected.shape != found.shape or not np.allclose(expected, found, atol=1e-3):
                raise PretrainedWeightsError(
                    f"{checkpoint.path}: {name} (x1, y1, x2, y2) is {found.tolist()}, the model has {expected.tolist()}; "
                    "give model.anchors.sizes and model.anchors.aspect_ratios"
                )


def _fpn(parameters: Parameters, model: MaskRCNN) -> Assignments:
    assignments: Assignments = []
    for kind in ("lateral", "output"):
        for level in (2, 3, 4, 5):
            assignments += _conv_norm(parameters, model.fpn.get_layer(f"{kind}{level}"), f"backbone.fpn_{kind}{level}")
    return assignments


def _rpn(parameters: Parameters, model: MaskRCNN) -> Assignments:
    head, num_convs = model.rpn_head, model.config.rpn.num_convs
    assignments: Assignments = []
    for index in range(num_convs):
        name = f"{_RPN}conv" if num_convs == 1 else f"{_RPN}conv.conv{index}"
        assignments += torch_layout.conv(parameters, head.get_layer(f"conv{index}"), name)
    assignments += torch_layout.conv(parameters, head.get_layer("objectness"), f"{_RPN}objectness_logits")
    return assignments + torch_layout.rpn_deltas(parameters, head.get_layer("deltas"), f"{_RPN}anchor_deltas")


def _box_head(parameters: Parameters, model: MaskRCNN) -> Assignments:
    head, config = model.box_head, model.config.box_head
    num_convs, num_fcs = (0, 2) if config.kind == "2fc" else (4, 1)
    assignments: Assignments = []
    for index in range(num_convs):
        assignments += _conv_norm(parameters, head.get_layer(f"conv{index}"), f"{_HEADS}box_head.conv{index + 1}")
    assignments += torch_layout.linear_on_map(parameters, head.get_layer("fc0"), f"{_HEADS}box_head.fc1", BOX_POOL_SIZE)
    for index in range(1, num_fcs):
        assignments += torch_layout.linear(parameters, head.get_layer(f"fc{index}"), f"{_HEADS}box_head.fc{index + 1}")
    num_classes = model.config.num_classes
    predictor, num_boxes = f"{_HEADS}box_predictor", 1 if config.class_agnostic_boxes else num_classes
    # detectron2's background is the last class.
    assignments += torch_layout.rows_of_linear(
        parameters, head.get_layer("class_logits"), f"{predictor}.cls_score", [num_classes, *range(num_classes)], num_classes + 1
    )
    return assignments + torch_layout.rows_of_linear(
        parameters, head.get_layer("box_deltas"), f"{predictor}.bbox_pred", torch_layout.swapped_axes(num_boxes), 4 * num_boxes
    )


def _mask_head(parameters: Parameters, model: MaskRCNN) -> Assignments:
    name, config = f"{_HEADS}mask_head", model.config.mask_head
    assignments: Assignments = []
    for index in range(config.num_convs):
        assignments += _conv_norm(parameters, model.mask_head.get_layer(f"conv{index}"), f"{name}.mask_fcn{index + 1}")
    assignments += torch_layout.transposed_conv(parameters, model.mask_head.get_layer("deconv"), f"{name}.deconv")
    num_masks = 1 if config.class_agnostic else model.config.num_classes
    return assignments + torch_layout.mask_predictor(
        parameters, model.mask_predictor, f"{name}.predictor", range(num_masks), num_masks
    )


def _conv_norm(parameters: Parameters, layer: Any, name: str) -> Assignments:
    return torch_layout.conv(parameters, layer, name, None if layer.norm == "none" else f"{name}.norm")
