"""The trunk C2..C5 by name."""

from __future__ import annotations

import keras

from mrcnn_tf.modeling import efficientnet_lite, resnet


def build_backbone(
    name: str,
    *,
    stride_in: str = "3x3",
    padding: str = "symmetric",
    pool_padding: str = "symmetric",
    norm: str = "frozen",
    norm_epsilon: float | None = None,
    frozen_stages: int = 0,
) -> keras.Model:
    """Build a trunk with random weights.

    Args:
        name: "resnet50", "resnet101", "resnext101_32x8d", "efficientnet_lite0", "efficientnet_lite1" or "efficientnet_lite2".
        stride_in: "1x1" or "3x3", which convolution of a ResNet bottleneck carries the stride. EfficientNet-Lite has no choice.
        padding: of a ResNet's convolutions, "symmetric" or "same", as in `layers.ConvNorm`. EfficientNet-Lite always has "same".
        pool_padding: the same of a ResNet's max pooling.
        norm: "frozen", "batch", "sync_batch", "group" or "none", as in `layers.ConvNorm`.
        norm_epsilon: None for the architecture's own: 1e-5 for ResNets, 1e-3 for EfficientNet-Lite.
        frozen_stages: 0 trains everything, 1 freezes the stem, 2 the stem and C2, ... 5 all. Frozen layers are not trainable, and
            no gradient is computed for or below them.

    Returns:
        A functional model: [B, H, W, 3] normalised images in the compute dtype, H and W multiples of 32, to the dict
        c2..c5 of [B, H / 4, W / 4, C2] .. [B, H / 32, W / 32, C5]. The layers' names are in `resnet` and `efficientnet_lite`.

    Raises:
        ValueError: an unknown name, stride_in, padding or norm, or frozen_stages outside 0..5.
    """
    if frozen_stages not in range(6):
        raise ValueError(f"frozen_stages must be 0..5, got {frozen_stages}")
    if stride_in not in ("1x1", "3x3"):
        raise ValueError(f"stride_in must be 1x1 or 3x3, got {stride_in!r}")
    for kind, value in (("padding", padding), ("pool_padding", pool_padding)):
        if value not in ("symmetric", "same"):
            raise ValueError(f"{kind} must be symmetric or same, got {value!r}")
    if name in resnet.RESNETS:
        epsilon = resnet.NORM_EPSILON if norm_epsilon is None else norm_epsilon
        return resnet.build_resnet(
            name,
            stride_in=stride_in,
            padding=padding,
            pool_padding=pool_padding,
            norm=norm,
            norm_epsilon=epsilon,
            frozen_stages=frozen_stages,
        )
    if name in efficientnet_lite.SCALES:
        epsilon = efficientnet_lite.NORM_EPSILON if norm_epsilon is None else norm_epsilon
        return efficientnet_lite.build_efficientnet_lite(name, norm=norm, norm_epsilon=epsilon, frozen_stages=frozen_stages)
    known = ", ".join([*resnet.RESNETS, *efficientnet_lite.SCALES])
    raise ValueError(f"unknown backbone {name!r}; known: {known}")


def stage_of(backbone: keras.Model, layer: keras.layers.Layer) -> int:
    """The stage that a layer of a trunk belongs to, counted as `frozen_stages` counts: 1 the stem, 2 C2, ... 5 C5."""
    kind, _, rest = layer.name.partition("_")
    if kind.startswith("res"):
        return int(kind.removeprefix("res"))
    if kind.startswith("block") and rest:
        return efficientnet_lite.lite_blocks(backbone.name)[int(kind.removeprefix("block"))].stage
    return int(kind.removeprefix("stage")) if kind.startswith("stage") else 1


def output_channels(backbone: keras.Model) -> dict[str, int]:
    """Channels of c2..c5."""
    return {level: tensor.shape[-1] for level, tensor in backbone.output.items()}
