"""TensorFlow checkpoints of Model Garden's Mask R-CNN and Faster R-CNN with ResNet and FPN (`maskrcnn_resnetfpn_coco`).

A checkpoint names its arrays by the way from its root to them. That of the trainer starts at the model's parts (`backbone/...`),
that of `tf.train.Checkpoint(model=model)` at the model (`model/backbone/...`); both are read.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from mrcnn_tf.data.coco_labels import TORCHVISION_CATEGORIES
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.weights import model_garden_parts as parts
from mrcnn_tf.weights.assign import Parameters, PretrainedWeightsError, assign_all
from mrcnn_tf.weights.checkpoint import Checkpoint
from mrcnn_tf.weights.found import RESNET_DEPTHS, Arrays, Found, count, refuse

NORM_EPSILON = 1e-4
"""Of `maskrcnn_resnetfpn_coco`; Model Garden's own default for other experiments is 1e-3."""
_NOT_THE_MODEL = re.compile(r"^(?:optimizer/.*|global_step|save_counter|_CHECKPOINTABLE_OBJECT_GRAPH|.*/\.OPTIMIZER_SLOT/.*)$")
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_ROOTS = re.compile(r"^(?:model/)?(?:_config_dict/)?")
_ONLY_HEAD = re.compile(r"^detection_head/0/")
"""The trainer has a list of heads, of which a cascade has several."""
_NOT_OURS = {
    "detection_head/1/": "a Cascade R-CNN",
    "_squeeze_excitation": "a ResNet-RS trunk",
    "_shortcut1": "a ResNet-D trunk",
    "depthwise_kernel": "a network of separable convolutions",
}
_SETTINGS_NOTE = (
    "the settings of maskrcnn_resnetfpn_coco are taken for what the checkpoint does not hold: images fitted into 1024 x 1024, "
    "anchors of 8 strides, detections above 0.05; give those of your own training as model.preprocessing.max_size=..., "
    "model.anchors.sizes=..., model.box_head.score_threshold=..."
)
_EPSILON_NOTE = "norm eps 1e-4, that of maskrcnn_resnetfpn_coco; for another norm_activation.norm_epsilon give --norm-eps"


def matches(checkpoint: Checkpoint) -> bool:
    """Whether the names are those of Model Garden's two-stage detectors."""
    return checkpoint.kind == "tensorflow" and "rpn_head/_convs/0/kernel" in current_names(checkpoint.arrays)


def describe(checkpoint: Checkpoint, *, norm_epsilon: float | None = None) -> Found:
    """Recognise the network.

    Args:
        checkpoint: that `matches`.
        norm_epsilon: of all norms; None: that of `maskrcnn_resnetfpn_coco`, 1e-4.

    Returns:
        What it is.

    Raises:
        PretrainedWeightsError: another trunk or head than this project has, or a layer is missing whose shape is needed here.
    """
    arrays, source = current_names(checkpoint.arrays), str(checkpoint.path)
    refuse(arrays, _NOT_OURS, source)
    backbone = _backbone_name(arrays, source)
    epsilon = NORM_EPSILON if norm_epsilon is None else norm_epsilon
    norm = {"norm": "frozen", "norm_epsilon": epsilon}
    num_classes = _outputs(arrays, "detection_head/_classifier", source) - 1
    has_masks = "mask_head/_mask_regressor/kernel" in arrays
    model: dict[str, Any] = {
        "preset": "model_garden",
        "backbone": {"name": backbone, "weights": None, **norm},
        "fpn": {"width": _outputs(arrays, parts.DECODER.format(0), source), **norm},
        "rpn": {
            "width": _outputs(arrays, "rpn_head/_convs/0", source),
            "num_convs": count(arrays, "rpn_head/_convs/{}/kernel"),
            **norm,
        },
        "box_head": {**_box_head_shape(arrays, source), **norm},
        "mask_head": {**_mask_head_shape(arrays, source), **norm} if has_masks else {"enabled": False},
    }
    notes = (_SETTINGS_NOTE,) if norm_epsilon is not None else (_EPSILON_NOTE, _SETTINGS_NOTE)
    categories = TORCHVISION_CATEGORIES if num_classes == len(TORCHVISION_CATEGORIES) else None
    name = f"Model Garden {'Mask' if has_masks else 'Faster'} R-CNN, {backbone} with FPN"
    return Found(name, model, num_classes, categories, notes)


def assign(model: MaskRCNN, checkpoint: Checkpoint) -> None:
    """Put the checkpoint into a model of its `describe`. What it has for the background's box and mask is not used.

    Raises:
        PretrainedWeightsError: a parameter is missing, superfluous or misshapen; nothing is assigned then.
    """
    parameters = Parameters(current_names(checkpoint.arrays), str(checkpoint.path))
    assignments = parts.trunk_assignments(parameters, model.backbone) + parts.fpn_assignments(parameters, model.fpn)
    assignments += parts.rpn_assignments(parameters, model) + parts.box_head_assignments(parameters, model)
    if model.mask_head is not None:
        assignments += parts.mask_head_assignments(parameters, model)
    parameters.finish()
    assign_all(assignments)


def current_names(arrays: Arrays) -> dict[str, np.ndarray]:
    """The model's arrays by the names that a trainer's checkpoint gives them, without optimizer and counters."""
    short = {_ROOTS.sub("", name.removesuffix(_VALUE)): array for name, array in arrays.items()}
    return {_ONLY_HEAD.sub("detection_head/", name): array for name, array in short.items() if not _NOT_THE_MODEL.match(name)}


def _backbone_name(arrays: Arrays, source: str) -> str:
    num_blocks, starts = 0, []
    while f"{(place := parts.BACKBONE.format(parts.FIRST_BLOCK + num_blocks))}/_conv3/kernel" in arrays:
        starts += [num_blocks] if f"{place}/_shortcut/kernel" in arrays else []
        num_blocks += 1
    depths = tuple(int(depth) for depth in np.diff([*starts, num_blocks]))
    if depths not in RESNET_DEPTHS:
        known = ", ".join(f"{name} {depth}" for depth, name in RESNET_DEPTHS.items())
        raise PretrainedWeightsError(f"{source}: the trunk has {depths} bottleneck blocks; known are {known}")
    return RESNET_DEPTHS[depths]


def _box_head_shape(arrays: Arrays, source: str) -> dict[str, Any]:
    layers = tuple(count(arrays, f"detection_head/{kind}/{{}}/kernel") for kind in ("_convs", "_fcs"))
    if layers not in parts.HEAD_KINDS:
        raise PretrainedWeightsError(
            f"{source}: the box head has {layers[0]} convolutions and {layers[1]} fully connected layers; known are 0 and 2, "
            "and 4 and 1"
        )
    shape = {"kind": parts.HEAD_KINDS[layers], "fc_width": _outputs(arrays, "detection_head/_fcs/0", source)}
    shape["class_agnostic_boxes"] = _outputs(arrays, "detection_head/_box_regressor", source) == 4
    return {**shape, "conv_width": _outputs(arrays, "detection_head/_convs/0", source)} if layers[0] else shape


def _mask_head_shape(arrays: Arrays, source: str) -> dict[str, Any]:
    return {
        "num_convs": count(arrays, "mask_head/_convs/{}/kernel"),
        "width": arrays["mask_head/_mask_regressor/kernel"].shape[-2],
        "class_agnostic": _outputs(arrays, "mask_head/_mask_regressor", source) == 1,
    }


def _outputs(arrays: Arrays, layer: str, source: str) -> int:
    name = f"{layer}/kernel"
    if name not in arrays:
        raise PretrainedWeightsError(f"{source}: {name} is missing")
    return int(arrays[name].shape[-1])
