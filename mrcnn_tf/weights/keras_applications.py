"""ImageNet weights of ResNet-50 and -101 from `keras.applications` (downloaded by Keras on first use).

These are the original Caffe weights: stride in the first 1x1 convolution, convolutions with biases, images in BGR with the mean
subtracted and not scaled.
"""

from __future__ import annotations

import keras
import numpy as np

from mrcnn_tf.config import imagenet_preprocessing
from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.weights.assign import NormArrays, PretrainedWeightsError, assign_layers, conv_norm_arrays

STRIDE_IN = "1x1"
"""The convolution of a bottleneck that carries the stride in these weights."""
SOURCE_EPSILON = 1.001e-5
MODELS = {"resnet50": "ResNet50", "resnet101": "ResNet101"}
DOWNLOADS = "https://storage.googleapis.com/tensorflow/keras-applications/resnet"


def load_imagenet(backbone: keras.Model, name: str) -> None:
    """Fill a trunk of `build_backbone(name, stride_in="1x1")` with ImageNet weights.

    Args:
        backbone: with norm "frozen", "batch" or "sync_batch".
        name: "resnet50" or "resnet101".

    Raises:
        PretrainedWeightsError: there are none for `name`, the stride is elsewhere, or the download failed.
    """
    if name not in MODELS:
        raise PretrainedWeightsError(
            f"keras.applications has no ImageNet weights for {name}; set model.backbone.weights to null, "
            f"or use one of {', '.join(MODELS)}"
        )
    _check_stride(backbone)
    try:
        source = getattr(keras.applications, MODELS[name])(include_top=False, weights="imagenet")
    except Exception as error:  # Keras raises a bare Exception when a download fails.
        file = f"{name}_weights_tf_dim_ordering_tf_kernels_notop.h5"
        raise PretrainedWeightsError(
            f"The ImageNet weights of {name} could not be loaded ({error}). Put {DOWNLOADS}/{file} into "
            "~/.keras/models yourself, or set model.backbone.weights to null to start from random weights."
        ) from error
    copy_resnet(source, backbone)


def copy_resnet(source: keras.Model, backbone: keras.Model) -> None:
    """Copy the weights of a `keras.applications` ResNet with bottlenecks onto a trunk of the same depth.

    Args:
        source: `keras.applications.ResNet50` or `ResNet101`, with or without top.
        backbone: of `build_backbone`, stride in the 1x1 convolution.

    Raises:
        PretrainedWeightsError: the two do not fit; nothing is assigned then.
    """
    _check_stride(backbone)
    layers = {layer.name: layer for layer in source.layers}
    arrays = {}
    for layer in backbone.layers:
        if isinstance(layer, ConvNorm):
            conv, norm = _source_names(layer.name)
            if conv not in layers:
                raise PretrainedWeightsError(f"{source.name} has no layer {conv} for {layer.name}")
            arrays[layer.name] = _translate(layer, layers[conv], layers[norm])
    assign_layers(backbone, arrays, source.name)


def _check_stride(backbone: keras.Model) -> None:
    if backbone.get_layer("res3_0_conv1").strides != 2:
        raise PretrainedWeightsError(
            "The ResNet weights of keras.applications have the stride in the 1x1 convolution; set "
            f"model.backbone.stride_in to {STRIDE_IN} and model.preprocessing to "
            + ", ".join(f"{key}={value}" for key, value in imagenet_preprocessing("resnet50").items())
        )


def _source_names(layer_name: str) -> tuple[str, str]:
    if layer_name == "stem":
        return "conv1_conv", "conv1_bn"
    stage, block, part = layer_name.removeprefix("res").split("_")
    number = 0 if part == "shortcut" else int(part.removeprefix("conv"))
    prefix = f"conv{stage}_block{int(block) + 1}_{number}"
    return f"{prefix}_conv", f"{prefix}_bn"


def _translate(layer: ConvNorm, conv: keras.layers.Layer, norm: keras.layers.Layer) -> dict[str, np.ndarray]:
    kernel, bias = (keras.ops.convert_to_numpy(weight) for weight in (conv.kernel, conv.bias))
    statistics = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    arrays = [keras.ops.convert_to_numpy(weight) for weight in statistics]
    return conv_norm_arrays(layer, kernel, NormArrays(*arrays), epsilon=SOURCE_EPSILON, bias=bias)
