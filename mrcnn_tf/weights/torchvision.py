"""Checkpoints of torchvision's `maskrcnn_resnet50_fpn`, `maskrcnn_resnet50_fpn_v2` and `fasterrcnn_resnet50_fpn`, `_v2`.

Both spellings of the parameters are read, that of torchvision 0.13 and later and that of before, which the published files of
the first versions have.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from mrcnn_tf.data.coco_labels import TORCHVISION_CATEGORIES
from mrcnn_tf.modeling.mask_rcnn import BOX_POOL_SIZE, MaskRCNN
from mrcnn_tf.weights import torch_layout
from mrcnn_tf.weights.assign import Assignments, Parameters, assign_all
from mrcnn_tf.weights.checkpoint import Checkpoint
from mrcnn_tf.weights.found import Arrays, Found, count, refuse, resnet_name, shape_of
from mrcnn_tf.weights.torch_resnet import trunk_assignments

_BODY = "backbone.body."
_NOT_OURS = {
    "keypoint_head": "Keypoint R-CNN",
    "classification_head": "a one-stage detector",
    "backbone.body.0.0.": "a MobileNet trunk",
}
_RENAMED = (
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
    (re.compile(r"^roi_heads\.mask_head\.mask_fcn1\."), "roi_heads.mask_head.0.0."),
    (re.compile(r"^roi_heads\.mask_head\.mask_fcn2\."), "roi_heads.mask_head.1.0."),
    (re.compile(r"^roi_heads\.mask_head\.mask_fcn3\."), "roi_heads.mask_head.2.0."),
    (re.compile(r"^roi_heads\.mask_head\.mask_fcn4\."), "roi_heads.mask_head.3.0."),
)
_PUBLISHED_V1_EPSILON, _BATCH_NORM_EPSILON = 0.0, 1e-5


def matches(checkpoint: Checkpoint) -> bool:
    """Whether the names are torchvision's."""
    return any(name.startswith(_BODY) for name in checkpoint.arrays)


def describe(checkpoint: Checkpoint, *, norm_epsilon: float | None = None) -> Found:
    """Recognise the network.

    Args:
        checkpoint: that `matches`.
        norm_epsilon: of all norms; None: 0 for frozen norms, with which the published weights of the first versions were
            trained, 1e-5 for batch norms.

    Returns:
        What it is.

    Raises:
        PretrainedWeightsError: another network of torchvision's, or a trunk that this project does not have.
    """
    arrays, source = current_names(checkpoint.arrays), str(checkpoint.path)
    refuse(arrays, _NOT_OURS, source)
    backbone = resnet_name(arrays, _BODY + "layer{stage}.{block}", 1, source)
    trunk_norm = torch_layout.norm_kind(arrays, f"{_BODY}bn1")
    epsilon, notes = _epsilon(trunk_norm, norm_epsilon)
    num_classes = shape_of(arrays, "roi_heads.box_predictor.cls_score.weight", source)[0] - 1
    has_masks = "roi_heads.mask_predictor.mask_fcn_logits.weight" in arrays
    num_convs = count(arrays, "roi_heads.box_head.{}.0.weight")
    model: dict[str, Any] = {
        "preset": "torchvision",
        "backbone": {"name": backbone, "stride_in": "3x3", "norm": trunk_norm, "norm_epsilon": epsilon, "weights": None},
        "fpn": {
            "width": shape_of(arrays, "backbone.fpn.inner_blocks.0.0.weight", source)[0],
            "norm": torch_layout.norm_kind(arrays, "backbone.fpn.inner_blocks.0.1"),
            "norm_epsilon": epsilon,
        },
        "rpn": {
            "num_convs": count(arrays, "rpn.head.conv.{}.0.weight"),
            "width": shape_of(arrays, "rpn.head.conv.0.0.weight", source)[0],
        },
        "box_head": {
            "kind": "4conv1fc" if num_convs else "2fc",
            "conv_width": shape_of(arrays, "roi_heads.box_head.0.0.weight", source)[0] if num_convs else 256,
            "fc_width": shape_of(arrays, "roi_heads.box_predictor.cls_score.weight", source)[1],
            "norm": torch_layout.norm_kind(arrays, "roi_heads.box_head.0.1"),
            "norm_epsilon": epsilon,
        },
        "mask_head": {"enabled": has_masks, **(_mask_head_values(arrays, epsilon, source) if has_masks else {})},
    }
    version = "_v2" if num_convs else ""
    name = f"torchvision {'maskrcnn' if has_masks else 'fasterrcnn'}_{backbone}_fpn{version}"
    categories = TORCHVISION_CATEGORIES if num_classes == len(TORCHVISION_CATEGORIES) else None
    return Found(name, model, num_classes, categories, notes)


def assign(model: MaskRCNN, checkpoint: Checkpoint) -> None:
    """Put the checkpoint into a model of its `describe`.

    Raises:
        PretrainedWeightsError: a parameter is missing, superfluous or misshapen; nothing is assigned then.
    """
    arrays = {n: a for n, a in current_names(checkpoint.arrays).items() if not n.endswith(torch_layout.COUNTER)}
    parameters = Parameters(arrays, str(checkpoint.path))
    assignments = trunk_assignments(parameters, model.backbone, _BODY)
    assignments += _fpn(parameters, model) + _rpn(parameters, model) + _box_head(parameters, model)
    if model.mask_head is not None:
        assignments += _mask_head(parameters, model)
    parameters.finish()
    assign_all(assignments)


def current_names(arrays: Arrays) -> dict[str, np.ndarray]:
    """The arrays by the names of torchvision 0.13 and later."""
    return {_current_name(name): array for name, array in arrays.items()}


def _current_name(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _mask_head_values(arrays: Arrays, epsilon: float, source: str) -> dict[str, Any]:
    return {
        "num_convs": count(arrays, "roi_heads.mask_head.{}.0.weight"),
        "width": shape_of(arrays, "roi_heads.mask_head.0.0.weight", source)[0],
        "norm": torch_layout.norm_kind(arrays, "roi_heads.mask_head.0.1"),
        "norm_epsilon": epsilon,
    }


def _epsilon(trunk_norm: str, given: float | None) -> tuple[float, tuple[str, ...]]:
    if given is not None:
        return given, ()
    if trunk_norm != "frozen":
        return _BATCH_NORM_EPSILON, ()
    return _PUBLISHED_V1_EPSILON, (
        "norm eps 0: torchvision's published COCO_V1 weights were trained with it; for a network of your own training, whose "
        "frozen norms have torch's eps, give --norm-eps 1e-5",
    )


def _fpn(parameters: Parameters, model: MaskRCNN) -> Assignments:
    assignments: Assignments = []
    for kind, blocks in (("lateral", "inner_blocks"), ("output", "layer_blocks")):
        for index, level in enumerate((2, 3, 4, 5)):
            name = f"backbone.fpn.{blocks}.{index}"
            assignments += _conv_norm(parameters, model.fpn.get_layer(f"{kind}{level}"), name)
    return assignments


def _rpn(parameters: Parameters, model: MaskRCNN) -> Assignments:
    head, assignments = model.rpn_head, []
    for index in range(model.config.rpn.num_convs):
        assignments += torch_layout.conv(parameters, head.get_layer(f"conv{index}"), f"rpn.head.conv.{index}.0")
    assignments += torch_layout.conv(parameters, head.get_layer("objectness"), "rpn.head.cls_logits")
    return assignments + torch_layout.rpn_deltas(parameters, head.get_layer("deltas"), "rpn.head.bbox_pred")


def _box_head(parameters: Parameters, model: MaskRCNN) -> Assignments:
    head, name = model.box_head, "roi_heads.box_head"
    if model.config.box_head.kind == "2fc":
        assignments = torch_layout.linear_on_map(parameters, head.get_layer("fc0"), f"{name}.fc6", BOX_POOL_SIZE)
        assignments += torch_layout.linear(parameters, head.get_layer("fc1"), f"{name}.fc7")
    else:
        assignments = []
        for index in range(4):
            assignments += _conv_norm(parameters, head.get_layer(f"conv{index}"), f"{name}.{index}")
        # The layer after four convolutions and the flattening.
        assignments += torch_layout.linear_on_map(parameters, head.get_layer("fc0"), f"{name}.5", BOX_POOL_SIZE)
    num_rows = model.config.num_classes + 1
    predictor = "roi_heads.box_predictor"
    assignments += torch_layout.linear(parameters, head.get_layer("class_logits"), f"{predictor}.cls_score")
    # The background has a box, too, that nothing is done with.
    box_rows = [4 + row for row in torch_layout.swapped_axes(model.config.num_classes)]
    return assignments + torch_layout.rows_of_linear(
        parameters, head.get_layer("box_deltas"), f"{predictor}.bbox_pred", box_rows, 4 * num_rows
    )


def _mask_head(parameters: Parameters, model: MaskRCNN) -> Assignments:
    assignments: Assignments = []
    for index in range(model.config.mask_head.num_convs):
        assignments += _conv_norm(parameters, model.mask_head.get_layer(f"conv{index}"), f"roi_heads.mask_head.{index}")
    predictor, num_classes = "roi_heads.mask_predictor", model.config.num_classes
    assignments += torch_layout.transposed_conv(parameters, model.mask_head.get_layer("deconv"), f"{predictor}.conv5_mask")
    return assignments + torch_layout.mask_predictor(
        parameters, model.mask_predictor, f"{predictor}.mask_fcn_logits", range(1, num_classes + 1), num_classes + 1
    )


def _conv_norm(parameters: Parameters, layer: Any, name: str) -> Assignments:
    return torch_layout.conv(parameters, layer, f"{name}.0", None if layer.norm == "none" else f"{name}.1")
