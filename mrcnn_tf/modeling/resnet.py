"""ResNet (He et al., 2016) and ResNeXt (Xie et al., 2017) trunks with bottleneck blocks.

Layer names, onto which importers map: `stem`; per stage s in 2..5 and block b from 0 `res{s}_{b}_conv1` (1x1),
`res{s}_{b}_conv2` (3x3), `res{s}_{b}_conv3` (1x1), and for b = 0 `res{s}_{b}_shortcut` (1x1); all are `ConvNorm`.
Padding is symmetric, as in torch, unless TensorFlow's "same" is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from mrcnn_tf.modeling.layers import ConvNorm, StopGradient

STAGES = (2, 3, 4, 5)
STEM_WIDTH = 64
EXPANSION = 4
"""Output channels of a block over ResNet's inner channels."""
NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class ResNetShape:
    """Blocks per stage, groups of the 3x3 convolutions, inner channels of stage 2 (they double with each stage)."""

    blocks: tuple[int, int, int, int]
    groups: int = 1
    inner_width: int = 64


RESNETS = {
    "resnet50": ResNetShape((3, 4, 6, 3)),
    "resnet101": ResNetShape((3, 4, 23, 3)),
    "resnext101_32x8d": ResNetShape((3, 4, 23, 3), groups=32, inner_width=32 * 8),
}


@dataclass(frozen=True)
class _Block:
    """One bottleneck: its name, its widths and the options of its layers."""

    name: str
    inner_width: int
    out_width: int
    strides: tuple[int, int]
    """Of conv1 and conv2."""
    groups: int
    branch_gamma: float
    options: dict[str, Any]


def build_resnet(
    name: str,
    *,
    stride_in: str = "3x3",
    padding: str = "symmetric",
    pool_padding: str = "symmetric",
    norm: str = "frozen",
    norm_epsilon: float = NORM_EPSILON,
    frozen_stages: int = 0,
) -> keras.Model:
    """Build a trunk; see `backbones.build_backbone` for arguments and result."""
    shape = RESNETS[name]
    options = {"padding": padding, "norm": norm, "norm_epsilon": norm_epsilon}
    inputs = keras.Input((None, None, 3), dtype=keras.config.dtype_policy().compute_dtype, name="images")
    features = _stem(inputs, frozen_stages >= 1, pool_padding, options)
    outputs = {}
    for stage, num_blocks in zip(STAGES, shape.blocks, strict=True):
        frozen = frozen_stages >= stage
        for index in range(num_blocks):
            block = _describe(shape, stage, index, stride_in, {**options, "trainable": not frozen})
            features = _bottleneck(features, block, project=index == 0)
        if frozen:
            features = StopGradient(name=f"res{stage}_stop")(features)
        outputs[f"c{stage}"] = features
    return keras.Model(inputs, outputs, name=name)


def _stem(inputs: keras.KerasTensor, frozen: bool, pool_padding: str, options: dict[str, Any]) -> keras.KerasTensor:
    features = ConvNorm(STEM_WIDTH, 7, strides=2, activation="relu", name="stem", trainable=not frozen, **options)(inputs)
    if pool_padding == "symmetric":
        # Zeros pad as well as -inf would: nothing after a ReLU is smaller.
        features = keras.layers.ZeroPadding2D(1, name="stem_pad")(features)
    features = keras.layers.MaxPooling2D(3, 2, padding="valid" if pool_padding == "symmetric" else "same", name="stem_pool")(
        features
    )
    return StopGradient(name="stem_stop")(features) if frozen else features


def _describe(shape: ResNetShape, stage: int, index: int, stride_in: str, options: dict[str, Any]) -> _Block:
    scale = 2 ** (stage - STAGES[0])
    stride = 2 if index == 0 and stage > STAGES[0] else 1
    return _Block(
        name=f"res{stage}_{index}",
        inner_width=shape.inner_width * scale,
        out_width=STEM_WIDTH * EXPANSION * scale,
        strides=(stride, 1) if stride_in == "1x1" else (1, stride),
        groups=shape.groups,
        branch_gamma=_branch_gamma(options["norm"], sum(shape.blocks)),
        options=options,
    )


def _branch_gamma(norm: str, num_blocks: int) -> float:
    """Initial scale of the last norm of a block.

    With the He initialisation a plain bottleneck branch doubles the variance of its input and the sum triples it, 3**33 in
    ResNet-101. A norm that measures its input undoes that; a frozen one with its initial statistics cannot. With this scale the
    branch adds 1 / num_blocks of the variance, so that depth multiplies it by e at most.
    """
    return (2 * num_blocks) ** -0.5 if norm == "frozen" else 1.0


def _bottleneck(inputs: keras.KerasTensor, block: _Block, project: bool) -> keras.KerasTensor:
    name, options = block.name, block.options
    gamma = keras.initializers.Constant(block.branch_gamma)
    first, second = block.strides
    branch = ConvNorm(block.inner_width, 1, strides=first, activation="relu", name=f"{name}_conv1", **options)(inputs)
    branch = ConvNorm(
        block.inner_width, 3, strides=second, groups=block.groups, activation="relu", name=f"{name}_conv2", **options
    )(branch)
    branch = ConvNorm(block.out_width, 1, gamma_initializer=gamma, name=f"{name}_conv3", **options)(branch)
    shortcut = inputs
    if project:
        shortcut = ConvNorm(block.out_width, 1, strides=first * second, name=f"{name}_shortcut", **options)(inputs)
    total = keras.layers.Add(name=f"{name}_add")([branch, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu")(total)
