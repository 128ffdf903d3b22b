"""The feature pyramid (Lin et al., CVPR 2017), with P6 by subsampling P5 (He et al., 2017) or by a convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from mrcnn_tf.modeling.layers import ConvNorm, Upsample2x
from mrcnn_tf.modeling.norms import Norm

LEVELS = (2, 3, 4, 5)


def build_fpn(
    in_channels: Mapping[str, int], *, width: int = 256, norm: str = "none", norm_epsilon: float = 1e-5, p6: str = "pool"
) -> keras.Model:
    """Build the pyramid.

    Layers: `lateral2`..`lateral5` (1x1), `output2`..`output5` (3x3), both `ConvNorm` without activation and, when `norm` is
    "none", with bias; `upsample2`..`upsample4`, `merge2`..`merge4`, `p6`. Kernels start uniform with variance
    1 / (3 fan_in) * 3 = 1 / fan_in, which is Caffe2's XavierFill, detectron2's initialisation.

    Args:
        in_channels: channels of "c2", "c3", "c4" and "c5".
        width: channels of every level.
        norm: as in `ConvNorm`.
        norm_epsilon: added to the variance.
        p6: "pool" subsamples P5; "conv" is a 3x3 convolution of stride 2 on P5 before its norm (Model Garden), with TensorFlow's
            "same" padding. `output5` then has a bias and no norm, `norm5` is the norm, and `p6` is a `ConvNorm`.

    Returns:
        A functional model: dict c2..c5 of [B, H / 4, W / 4, C2] .. [B, H / 32, W / 32, C5], H and W multiples of 32, to dict
        p2..p6 of [B, H / 2**l, W / 2**l, width], all in the compute dtype. P6 has ceil(H / 64) rows.

    Raises:
        ValueError: `in_channels` has not exactly the keys c2..c5.
    """
    if sorted(in_channels) != [f"c{level}" for level in LEVELS]:
        raise ValueError(f"in_channels needs exactly c2, c3, c4 and c5; got {sorted(in_channels)}")
    # An input of another dtype would be cast to it, a pass over the largest features.
    dtype = keras.config.dtype_policy().compute_dtype
    inputs = {f"c{level}": keras.Input((None, None, in_channels[f"c{level}"]), dtype=dtype, name=f"c{level}") for level in LEVELS}
    conv = {"norm": norm, "norm_epsilon": norm_epsilon}
    merged = {5: _conv(width, 1, name="lateral5", **conv)(inputs["c5"])}
    for level in (4, 3, 2):
        lateral = _conv(width, 1, name=f"lateral{level}", **conv)(inputs[f"c{level}"])
        coarser = Upsample2x(name=f"upsample{level}")(merged[level + 1])
        merged[level] = keras.layers.Add(name=f"merge{level}")([lateral, coarser])
    outputs = {f"p{level}": _conv(width, 3, name=f"output{level}", **conv)(merged[level]) for level in LEVELS[:-1]}
    outputs["p5"], outputs["p6"] = {"pool": _pooled_top, "conv": _convolved_top}[p6](merged[5], width, conv)
    return keras.Model(inputs, outputs, name="fpn")


def _pooled_top(merged: keras.KerasTensor, width: int, conv: dict[str, Any]) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """P5, and P6 by subsampling it."""
    p5 = _conv(width, 3, name="output5", **conv)(merged)
    return p5, keras.layers.MaxPooling2D(1, 2, name="p6")(p5)


def _convolved_top(merged: keras.KerasTensor, width: int, conv: dict[str, Any]) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """P5, and P6 by a convolution on what the norm of P5 is given."""
    plain = _conv(width, 3, name="output5", **{**conv, "norm": "none"})(merged)
    p6 = _conv(width, 3, strides=2, padding="same", name="p6", **conv)(plain)
    if conv["norm"] == "none":
        return plain, p6
    return Norm(conv["norm"], norm_epsilon=conv["norm_epsilon"], name="norm5")(plain), p6


def _conv(width: int, kernel_size: int, **options: Any) -> ConvNorm:
    # A new initializer each time: Keras draws its seed when it is made, and then always the same numbers.
    return ConvNorm(width, kernel_size, kernel_initializer=xavier_fill(), **options)


def xavier_fill() -> keras.initializers.Initializer:
    """Uniform in +-sqrt(3 / fan_in): Caffe2's XavierFill, which Detectron and detectron2 use."""
    return keras.initializers.VarianceScaling(scale=1.0, mode="fan_in", distribution="uniform")
