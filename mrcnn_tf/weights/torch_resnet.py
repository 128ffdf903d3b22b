"""ResNets as torchvision and timm name them: `conv1`, `bn1`, `layer{1..4}.{block}.{conv1..3, bn1..3, downsample}`."""

from __future__ import annotations

import keras

from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.weights import torch_layout
from mrcnn_tf.weights.assign import Assignments, Parameters


def trunk_assignments(parameters: Parameters, backbone: keras.Model, prefix: str = "") -> Assignments:
    """What goes into a trunk of `build_backbone`.

    Args:
        parameters: of the checkpoint.
        backbone: a ResNet or ResNeXt.
        prefix: of the trunk's names.

    Returns:
        The pairs.
    """
    assignments: Assignments = []
    for layer in backbone.layers:
        if isinstance(layer, ConvNorm):
            conv, norm = _source_names(layer.name)
            assignments += torch_layout.conv(parameters, layer, prefix + conv, prefix + norm)
    return assignments


def _source_names(layer_name: str) -> tuple[str, str]:
    if layer_name == "stem":
        return "conv1", "bn1"
    stage, block, part = layer_name.removeprefix("res").split("_")
    name = f"layer{int(stage) - 1}.{block}"
    if part == "shortcut":
        return f"{name}.downsample.0", f"{name}.downsample.1"
    return f"{name}.{part}", f"{name}.bn{part.removeprefix('conv')}"
