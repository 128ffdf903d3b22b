"""The parts of Model Garden's Mask R-CNN and what of them goes where; `mrcnn_tf.weights.model_garden` reads the whole.

Layers of the trunk and of the pyramid have no names but numbers, in the order in which Keras computes them.

Layouts, the order of box coordinates and that of features are ours. Norms are frozen: where a layer here has none, its norm goes
into kernel and bias, and a convolution without a norm gets one that does nothing but add the bias. Both are exact.

All functions take the parameters of a checkpoint by the names of `model_garden.current_names`, and give the pairs.
"""

from __future__ import annotations

import keras
import numpy as np

from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.weights import keras_layout
from mrcnn_tf.weights.assign import Assignments, NormArrays, Parameters, conv_norm_arrays, layer_assignments

BACKBONE, DECODER = "backbone/layer_with_weights-{}", "decoder/layer_with_weights-{}"
FIRST_BLOCK = 2
"""Number of the trunk's first block: the stem is 0, its norm 1."""
HEAD_KINDS = {(0, 2): "2fc", (4, 1): "4conv1fc"}
"""Numbers of convolutions and of fully connected layers of the box head."""
_LATERALS = {5: 0, 4: 1, 3: 2, 2: 3}
"""Level to number of its layer in the pyramid."""
_OUTPUTS = {5: 4, 2: 5, 3: 6, 4: 7, 6: 8}
_NORMS = {2: 9, 3: 10, 4: 11, 5: 12, 6: 13}


def trunk_assignments(parameters: Parameters, backbone: keras.Model) -> Assignments:
    """What goes into a ResNet of `build_backbone`.

    Args:
        parameters: of the checkpoint.
        backbone: of the depth that the checkpoint has.

    Returns:
        The pairs.
    """
    convs = [layer for layer in backbone.layers if isinstance(layer, ConvNorm)]
    blocks = list(dict.fromkeys(layer.name.rsplit("_", 1)[0] for layer in convs if layer.name != "stem"))
    assignments: Assignments = []
    for layer in convs:
        names = _trunk_names(layer.name, blocks)
        assignments += keras_layout.conv_norm(parameters, layer, *names, has_bias=False)
    return assignments


def _trunk_names(layer_name: str, blocks: list[str]) -> tuple[str, str]:
    """Names of a layer's convolution and norm."""
    if layer_name == "stem":
        return BACKBONE.format(0), BACKBONE.format(1)
    block, part = layer_name.rsplit("_", 1)
    place = BACKBONE.format(FIRST_BLOCK + blocks.index(block))
    number = 0 if part == "shortcut" else int(part.removeprefix("conv"))
    return f"{place}/_{part}", f"{place}/_norm{number}"


def fpn_assignments(parameters: Parameters, fpn: keras.Model) -> Assignments:
    """What goes into a pyramid of `build_fpn` with a norm and `p6="conv"`."""
    assignments: Assignments = []
    for level, number in _LATERALS.items():
        assignments += _conv_without_norm(parameters, fpn.get_layer(f"lateral{level}"), DECODER.format(number))
    layers = {level: fpn.get_layer("p6" if level == 6 else f"output{level}") for level in _NORMS}
    for level in (2, 3, 4, 6):
        names = DECODER.format(_OUTPUTS[level]), DECODER.format(_NORMS[level])
        assignments += keras_layout.conv_norm(parameters, layers[level], *names)
    assignments += keras_layout.with_bias(parameters, layers[5], DECODER.format(_OUTPUTS[5]))
    return assignments + _norm_alone(parameters, fpn.get_layer("norm5"), DECODER.format(_NORMS[5]))


def rpn_assignments(parameters: Parameters, model: MaskRCNN) -> Assignments:
    """What goes into the head of the region proposals, which has a norm for each level."""
    head, assignments = model.rpn_head, []
    for index in range(model.config.rpn.num_convs):
        layer = head.get_layer(f"conv{index}")
        kernel, bias = keras_layout.kernel_and_bias(parameters, f"rpn_head/_convs/{index}", layer.kernel.shape)
        assignments += layer_assignments(layer, {"kernel": kernel})
        for number, level in enumerate(_NORMS):
            norm, name = head.get_layer(f"conv{index}_norm{level}"), f"rpn_head/_norms/{number}/{index}"
            assignments += _norm_alone(parameters, norm, name, bias)
    assignments += keras_layout.with_bias(parameters, head.get_layer("objectness"), "rpn_head/_classifier")
    return assignments + keras_layout.with_bias(parameters, head.get_layer("deltas"), "rpn_head/_box_regressor")


def box_head_assignments(parameters: Parameters, model: MaskRCNN) -> Assignments:
    """What goes into the box head; the background's box stays behind."""
    config, head, name = model.config.box_head, model.box_head, "detection_head"
    num_convs, num_fcs = next(layers for layers, kind in HEAD_KINDS.items() if kind == config.kind)
    assignments: Assignments = []
    for i in range(num_convs):
        layer = head.get_layer(f"conv{i}")
        assignments += keras_layout.conv_norm(parameters, layer, f"{name}/_convs/{i}", f"{name}/_conv_norms/{i}")
    for i in range(num_fcs):
        layer = head.get_layer(f"fc{i}")
        kernel, bias = keras_layout.kernel_and_bias(parameters, f"{name}/_fcs/{i}", layer.kernel.shape)
        norm = keras_layout.norm(parameters, f"{name}/_fc_norms/{i}", kernel.shape[-1])
        assignments += layer_assignments(layer, keras_layout.fold(kernel, bias, norm, epsilon=config.norm_epsilon))
    assignments += keras_layout.with_bias(parameters, head.get_layer("class_logits"), f"{name}/_classifier")
    deltas = head.get_layer("box_deltas")
    background = 0 if config.class_agnostic_boxes else 4
    inputs, outputs = deltas.kernel.shape
    kernel, bias = keras_layout.kernel_and_bias(parameters, f"{name}/_box_regressor", (inputs, outputs + background))
    return assignments + layer_assignments(deltas, {"kernel": kernel[:, background:], "bias": bias[background:]})


def mask_head_assignments(parameters: Parameters, model: MaskRCNN) -> Assignments:
    """What goes into the mask head and its last layer; the background's mask stays behind."""
    config, head, name = model.config.mask_head, model.mask_head, "mask_head"
    assignments: Assignments = []
    for i in range(config.num_convs):
        layer = head.get_layer(f"conv{i}")
        assignments += keras_layout.conv_norm(parameters, layer, f"{name}/_convs/{i}", f"{name}/_conv_norms/{i}")
    deconv = head.get_layer("deconv")
    kernel, bias = keras_layout.kernel_and_bias(parameters, f"{name}/_deconv", deconv.kernel.shape, deconv.bias.shape[0])
    norm = keras_layout.norm(parameters, f"{name}/_deconv_bn", deconv.bias.shape[0])
    # The kernel of a transposed convolution is [height, width, out, in].
    assignments += layer_assignments(deconv, keras_layout.fold(kernel, bias, norm, epsilon=config.norm_epsilon, axis=-2))
    background = 0 if config.class_agnostic else 1
    channels, num_masks = model.mask_predictor.kernel.shape
    kernel, bias = keras_layout.kernel_and_bias(parameters, f"{name}/_mask_regressor", (1, 1, channels, num_masks + background))
    arrays = {"kernel": kernel[0, 0, :, background:], "bias": bias[background:]}
    return assignments + layer_assignments(model.mask_predictor, arrays)


def _conv_without_norm(parameters: Parameters, layer: ConvNorm, name: str) -> Assignments:
    """A convolution with bias onto a layer that has a norm: one that adds the bias."""
    kernel, bias = keras_layout.kernel_and_bias(parameters, name, layer.kernel.shape)
    one = np.ones_like(bias)
    adds_bias = NormArrays(gamma=one, beta=bias, mean=np.zeros_like(bias), variance=one)
    return layer_assignments(layer, conv_norm_arrays(layer, kernel, adds_bias, epsilon=0.0))


def _norm_alone(parameters: Parameters, layer: keras.layers.Layer, name: str, bias: np.ndarray | float = 0.0) -> Assignments:
    """A norm, and the bias that the convolution before it has in the checkpoint."""
    channels = layer.weights[0].shape[0]
    statistics = keras_layout.norm(parameters, name, channels)
    arrays = {
        "gamma": statistics.gamma,
        "beta": statistics.beta,
        "moving_mean": (statistics.mean - bias).astype(np.float32),
        "moving_variance": statistics.variance,
    }
    return layer_assignments(layer, arrays)
