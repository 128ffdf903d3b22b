"""Checkpoints of matterport's Mask_RCNN: `mask_rcnn_coco.h5` and what was trained from it, ResNet-50 or ResNet-101.

The layouts are Keras's, as ours. Three things are put another way, all exactly: the RPN's two logits of an anchor become their
difference, whose sigmoid is the softmax's foreground; the convolutions of the box head, which see one 7x7 region, become fully
connected layers; and their batch norms, which matterport does not train, go into kernel and bias.
"""

from __future__ import annotations

import string

import keras

from mrcnn_tf.data.coco_labels import COCO_CATEGORIES
from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.modeling.mask_rcnn import BOX_POOL_SIZE, MaskRCNN
from mrcnn_tf.weights import keras_layout
from mrcnn_tf.weights.assign import Assignments, Parameters, PretrainedWeightsError, assign_all, layer_assignments
from mrcnn_tf.weights.checkpoint import Checkpoint
from mrcnn_tf.weights.found import Arrays, Found

NORM_EPSILON = 1e-3
"""Keras's default."""
_BLOCKS_OF_STAGE_4 = {6: "resnet50", 23: "resnet101"}
_BRANCHES = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
_MARK = "mrcnn_class_conv1/kernel"
_DEFAULT_ANCHORS = 3
_ANCHORS = "anchors/"
"""Ports to TensorFlow 2 keep the anchors among the weights."""
_DEFAULTS_NOTE = (
    "settings that the file does not hold are matterport's own: images enlarged to min_size 800 and padded to 1024 x 1024, "
    "anchors of 32 to 512 pixels, detections above 0.7; give those of your own training as model.preprocessing.max_size=..., "
    "model.anchors.sizes=..., model.box_head.score_threshold=..."
)


def matches(checkpoint: Checkpoint) -> bool:
    """Whether the names are matterport's."""
    return checkpoint.kind == "h5" and _MARK in checkpoint.arrays


def describe(checkpoint: Checkpoint, *, norm_epsilon: float | None = None) -> Found:
    """Recognise the network.

    Args:
        checkpoint: that `matches`.
        norm_epsilon: of all norms; None: Keras's 1e-3.

    Returns:
        What it is.

    Raises:
        PretrainedWeightsError: a trunk other than ResNet-50 and ResNet-101, or a layer is missing whose shape is needed here.
    """
    arrays, source = checkpoint.arrays, str(checkpoint.path)
    backbone = _backbone_name(arrays, source)
    epsilon = NORM_EPSILON if norm_epsilon is None else norm_epsilon
    num_classes = _outputs(arrays, "mrcnn_class_logits", source) - 1
    num_anchors = _outputs(arrays, "rpn_class_raw", source) // 2
    model = {
        "preset": "matterport",
        "backbone": {"name": backbone, "norm": "frozen", "norm_epsilon": epsilon, "weights": None},
        "fpn": {"width": _outputs(arrays, "fpn_p2", source), "norm": "none"},
        "rpn": {"width": _outputs(arrays, "rpn_conv_shared", source)},
        "box_head": {"kind": "2fc", "fc_width": _outputs(arrays, "mrcnn_class_conv1", source)},
        "mask_head": {"width": _outputs(arrays, "mrcnn_mask_conv1", source), "norm": "frozen", "norm_epsilon": epsilon},
    }
    notes: tuple[str, ...] = (_DEFAULTS_NOTE,)
    if num_anchors != _DEFAULT_ANCHORS:
        notes += (
            f"the RPN has {num_anchors} anchors at a place: give their heights over widths, which are one over the ratios of "
            "RPN_ANCHOR_RATIOS, as model.anchors.aspect_ratios=[...]",
        )
    categories = COCO_CATEGORIES if num_classes == len(COCO_CATEGORIES) else None
    return Found(f"matterport Mask R-CNN, {backbone}", model, num_classes, categories, notes)


def assign(model: MaskRCNN, checkpoint: Checkpoint) -> None:
    """Put the checkpoint into a model of its `describe`. What it has for the background's box and mask is not used.

    Raises:
        PretrainedWeightsError: a parameter is missing, superfluous or misshapen; nothing is assigned then.
    """
    arrays = {name: array for name, array in checkpoint.arrays.items() if not name.startswith(_ANCHORS)}
    parameters = Parameters(arrays, str(checkpoint.path))
    assignments = _trunk(parameters, model.backbone) + _fpn(parameters, model.fpn) + _rpn(parameters, model.rpn_head)
    assignments += _box_head(parameters, model) + _mask_head(parameters, model)
    parameters.finish()
    assign_all(assignments)


def _backbone_name(arrays: Arrays, source: str) -> str:
    count = sum(f"res4{letter}_branch2a/kernel" in arrays for letter in string.ascii_lowercase)
    if count not in _BLOCKS_OF_STAGE_4:
        raise PretrainedWeightsError(
            f"{source}: stage 4 of the trunk has {count} blocks res4a, res4b, ...; known are 6 (ResNet-50) and 23 (ResNet-101)"
        )
    return _BLOCKS_OF_STAGE_4[count]


def _outputs(arrays: Arrays, layer: str, source: str) -> int:
    name = f"{layer}/kernel"
    if name not in arrays:
        raise PretrainedWeightsError(f"{source}: {name} is missing")
    return int(arrays[name].shape[-1])


def _trunk(parameters: Parameters, backbone: keras.Model) -> Assignments:
    assignments: Assignments = []
    for layer in backbone.layers:
        if isinstance(layer, ConvNorm):
            assignments += keras_layout.conv_norm(parameters, layer, *_trunk_names(layer.name))
    return assignments


def _trunk_names(layer_name: str) -> tuple[str, str]:
    """Names of a layer's convolution and norm."""
    if layer_name == "stem":
        return "conv1", "bn_conv1"
    stage, block, part = layer_name.removeprefix("res").split("_")
    place = f"{stage}{string.ascii_lowercase[int(block)]}_{_BRANCHES[part]}"
    return f"res{place}", f"bn{place}"


def _fpn(parameters: Parameters, fpn: keras.Model) -> Assignments:
    assignments: Assignments = []
    for level in (2, 3, 4, 5):
        assignments += keras_layout.with_bias(parameters, fpn.get_layer(f"lateral{level}"), f"fpn_c{level}p{level}")
        assignments += keras_layout.with_bias(parameters, fpn.get_layer(f"output{level}"), f"fpn_p{level}")
    return assignments


def _rpn(parameters: Parameters, head: keras.Model) -> Assignments:
    assignments = keras_layout.with_bias(parameters, head.get_layer("conv0"), "rpn_conv_shared")
    objectness = head.get_layer("objectness")
    *rest, num_anchors = objectness.kernel.shape
    kernel, bias = keras_layout.kernel_and_bias(parameters, "rpn_class_raw", (*rest, 2 * num_anchors))
    # Background and foreground of each anchor in turn.
    folded = {"kernel": kernel[..., 1::2] - kernel[..., 0::2], "bias": bias[1::2] - bias[0::2]}
    assignments += layer_assignments(objectness, folded)
    return assignments + keras_layout.with_bias(parameters, head.get_layer("deltas"), "rpn_bbox_pred")


def _box_head(parameters: Parameters, model: MaskRCNN) -> Assignments:
    head, epsilon = model.box_head, model.config.mask_head.norm_epsilon
    assignments: Assignments = []
    for index, size in enumerate((BOX_POOL_SIZE, 1)):
        layer = head.get_layer(f"fc{index}")
        inputs, units = layer.kernel.shape
        shape = (size, size, inputs // size**2, units)
        kernel, bias = keras_layout.kernel_and_bias(parameters, f"mrcnn_class_conv{index + 1}", shape)
        norm = keras_layout.norm(parameters, f"mrcnn_class_bn{index + 1}", units)
        folded = keras_layout.fold(kernel.reshape(inputs, units), bias, norm, epsilon=epsilon)
        assignments += layer_assignments(layer, folded)
    logits, deltas = head.get_layer("class_logits"), head.get_layer("box_deltas")
    assignments += keras_layout.with_bias(parameters, logits, "mrcnn_class_logits")
    inputs, num_logits = logits.kernel.shape
    kernel, bias = keras_layout.kernel_and_bias(parameters, "mrcnn_bbox_fc", (inputs, 4 * num_logits))
    return assignments + layer_assignments(deltas, {"kernel": kernel[:, 4:], "bias": bias[4:]})


def _mask_head(parameters: Parameters, model: MaskRCNN) -> Assignments:
    assignments: Assignments = []
    for index in range(model.config.mask_head.num_convs):
        layer = model.mask_head.get_layer(f"conv{index}")
        names = f"mrcnn_mask_conv{index + 1}", f"mrcnn_mask_bn{index + 1}"
        assignments += keras_layout.conv_norm(parameters, layer, *names)
    assignments += keras_layout.with_bias(parameters, model.mask_head.get_layer("deconv"), "mrcnn_mask_deconv")
    channels, num_masks = model.mask_predictor.kernel.shape
    kernel, bias = keras_layout.kernel_and_bias(parameters, "mrcnn_mask", (1, 1, channels, num_masks + 1))
    return assignments + layer_assignments(model.mask_predictor, {"kernel": kernel[0, 0, :, 1:], "bias": bias[1:]})
