"""What an importer recognises in a checkpoint, from names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrcnn_tf.weights.assign import PretrainedWeightsError

Arrays = Mapping[str, np.ndarray]

RESNET_DEPTHS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}
_RESNEXT_GROUPS = 32


@dataclass(frozen=True)
class Found:
    """A recognised checkpoint.

    Attributes:
        architecture: for the user, as "torchvision maskrcnn_resnet50_fpn".
        model: values of the configuration's `model` section, without categories.
        num_classes: K.
        categories: `{"id", "name"}` in class order, or None where the checkpoint's number of classes tells nothing.
        notes: what was assumed, because names and shapes cannot tell it, and how to say otherwise.
    """

    architecture: str
    model: dict[str, Any]
    num_classes: int
    categories: tuple[dict[str, Any], ...] | None
    notes: tuple[str, ...] = ()


def refuse(arrays: Arrays, marks: Mapping[str, str], source: str) -> None:
    """Stop at a parameter that belongs to an architecture which this project does not have.

    Args:
        arrays: of the checkpoint.
        marks: part of a parameter's name to what it is a mark of.
        source: for the message.

    Raises:
        PretrainedWeightsError: names the architecture and the parameter.
    """
    for mark, what in marks.items():
        name = next((name for name in arrays if mark in name), None)
        if name is not None:
            raise PretrainedWeightsError(
                f"{source} holds {what} (it has {name}), which is not Mask R-CNN or Faster R-CNN with FPN"
            )


def count(arrays: Arrays, pattern: str) -> int:
    """How many of pattern.format(0), pattern.format(1), ... there are in a row."""
    number = 0
    while pattern.format(number) in arrays:
        number += 1
    return number


def resnet_name(arrays: Arrays, block: str, first_stage: int, source: str) -> str:
    """The name of a trunk with bottleneck blocks.

    Args:
        arrays: of the checkpoint, convolutions in torch's layout.
        block: name of a block with places for its stage and for its number there, as "layer{stage}.{block}".
        first_stage: number of the first of the four stages.
        source: for messages.

    Returns:
        A `model.backbone.name`.

    Raises:
        PretrainedWeightsError: a trunk that this project does not have.
    """
    stages = range(first_stage, first_stage + 4)
    depths = tuple(count(arrays, block.format(stage=stage, block="{}") + ".conv3.weight") for stage in stages)
    if depths not in RESNET_DEPTHS:
        known = ", ".join(f"{name} {blocks}" for blocks, name in RESNET_DEPTHS.items())
        raise PretrainedWeightsError(f"{source}: the trunk has {depths} bottleneck blocks; known are {known}")
    width, per_group = arrays[block.format(stage=first_stage, block=0) + ".conv2.weight"].shape[:2]
    groups = width // per_group
    if groups == 1 and width == 64:
        return RESNET_DEPTHS[depths]
    if (groups, width, depths) == (_RESNEXT_GROUPS, 256, (3, 4, 23, 3)):
        return "resnext101_32x8d"
    raise PretrainedWeightsError(
        f"{source}: the trunk's first 3x3 convolution has {groups} groups of {per_group} channels; known are ResNet-50 and -101 "
        "(1 x 64) and ResNeXt-101 32x8d (32 x 8)"
    )


def shape_of(arrays: Arrays, name: str, source: str) -> tuple[int, ...]:
    """Shape of a parameter that the architecture hangs on.

    Raises:
        PretrainedWeightsError: it is not there.
    """
    if name not in arrays:
        raise PretrainedWeightsError(f"{source}: {name} is missing, so that the architecture cannot be told")
    return arrays[name].shape
