"""EfficientNet-Lite0, 1 and 2: EfficientNet (Tan & Le, 2019) for small devices.

After Google's description of EfficientNet-Lite (2020): no squeeze-and-excitation, ReLU6 for swish, and a stem, a head and first
and last stages that do not grow with the model. Padding is TensorFlow's SAME, which the published weights were trained with.

Layer names, onto which importers map: `stem`; per block i, counted through the trunk, `block{i}_expand` (1x1; not in block
0), `block{i}_depthwise`, `block{i}_project` (1x1, no activation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras

from mrcnn_tf.modeling.layers import ConvNorm, DepthwiseConvNorm, StopGradient

STEM_WIDTH = 32
NORM_EPSILON = 1e-3
WIDTH_DIVISOR = 8
SCALES = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}
"""Name to (width multiplier, depth multiplier)."""


@dataclass(frozen=True)
class Group:
    """Blocks of one width. `stage` is the trunk's: 1 ends at stride 2, 2..5 end at C2..C5."""

    stage: int
    num_blocks: int
    kernel_size: int
    stride: int
    expansion: int
    width: int


# EfficientNet-B0 (Tan & Le, 2019, table 1).
B0 = (
    Group(1, 1, 3, 1, 1, 16),
    Group(2, 2, 3, 2, 6, 24),
    Group(3, 2, 5, 2, 6, 40),
    Group(4, 3, 3, 2, 6, 80),
    Group(4, 3, 5, 1, 6, 112),
    Group(5, 4, 5, 2, 6, 192),
    Group(5, 1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class Block:
    """One inverted bottleneck."""

    stage: int
    kernel_size: int
    stride: int
    expansion: int
    in_width: int
    width: int

    @property
    def residual(self) -> bool:
        """The input is added to the output."""
        return self.stride == 1 and self.in_width == self.width


def lite_blocks(name: str) -> list[Block]:
    """The blocks of a trunk, scaled."""
    width_multiplier, depth_multiplier = SCALES[name]
    blocks, in_width = [], STEM_WIDTH
    for group in B0:
        width = _round_width(group.width * width_multiplier)
        depth = group.num_blocks if group in (B0[0], B0[-1]) else math.ceil(group.num_blocks * depth_multiplier)
        for index in range(depth):
            stride = group.stride if index == 0 else 1
            blocks.append(Block(group.stage, group.kernel_size, stride, group.expansion, in_width, width))
            in_width = width
    return blocks


def build_efficientnet_lite(
    name: str, *, norm: str = "frozen", norm_epsilon: float = NORM_EPSILON, frozen_stages: int = 0
) -> keras.Model:
    """Build a trunk; see `backbones.build_backbone` for arguments and result."""
    blocks = lite_blocks(name)
    options: dict[str, Any] = {"norm": norm, "norm_epsilon": norm_epsilon, "padding": "same"}
    inputs = keras.Input((None, None, 3), dtype=keras.config.dtype_policy().compute_dtype, name="images")
    stem = ConvNorm(STEM_WIDTH, 3, strides=2, activation="relu6", name="stem", trainable=frozen_stages < 1, **options)
    features = stem(inputs)
    stages = {}
    for index, block in enumerate(blocks):
        frozen = frozen_stages >= block.stage
        features = _inverted_bottleneck(features, block, f"block{index}", len(blocks), {**options, "trainable": not frozen})
        last_of_stage = index + 1 == len(blocks) or blocks[index + 1].stage != block.stage
        if frozen and last_of_stage:
            features = StopGradient(name=f"stage{block.stage}_stop")(features)
        stages[block.stage] = features
    return keras.Model(inputs, {f"c{stage}": stages[stage] for stage in (2, 3, 4, 5)}, name=name)


def _round_width(width: float) -> int:
    """To the nearest multiple of 8, but never down by more than a tenth."""
    rounded = max(WIDTH_DIVISOR, int(width + WIDTH_DIVISOR / 2) // WIDTH_DIVISOR * WIDTH_DIVISOR)
    return rounded + WIDTH_DIVISOR if rounded < 0.9 * width else rounded


def _inverted_bottleneck(
    inputs: keras.KerasTensor, block: Block, name: str, num_blocks: int, options: dict[str, Any]
) -> keras.KerasTensor:
    features = inputs
    if block.expansion > 1:
        features = ConvNorm(block.in_width * block.expansion, 1, activation="relu6", name=f"{name}_expand", **options)(features)
    features = DepthwiseConvNorm(
        block.kernel_size, strides=block.stride, activation="relu6", name=f"{name}_depthwise", **options
    )(features)
    gamma = keras.initializers.Constant(_project_gamma(block, num_blocks, options["norm"]))
    features = ConvNorm(block.width, 1, gamma_initializer=gamma, name=f"{name}_project", **options)(features)
    return keras.layers.Add(name=f"{name}_add")([features, inputs]) if block.residual else features


def _project_gamma(block: Block, num_blocks: int, norm: str) -> float:
    """Initial scale of a block's last norm: as in `resnet`, a frozen norm must keep the variance from growing with depth."""
    if norm != "frozen":
        return 1.0
    return (2 * num_blocks) ** -0.5 if block.residual else 2**-0.5
