"""ImageNet weights of ResNet-50 and -101 from `keras.applications` (downloaded by Keras on first use).

These are the original Caffe weights: stride in the first 1x1 convolution, convolutions with biases, images in BGR with the mean
subtracted and not scaled.
"""

from __future__ import annotations

import keras

from mrcnn_tf.config import imagenet_preprocessing
from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.weights.assign import (
    Assignments,
    NormArrays,
    Parameters,
    PretrainedWeightsError,
    assign_all,
    conv_norm_arrays,
    layer_assignments,
)

STRIDE_IN = "1x1"
"""The convolution of a bottleneck that carries the stride in these weights."""
SOURCE_EPSILON = 1.001e-5
MODELS = {"resnet50": "ResNet50", "resnet101": "ResNet101"}
_NORM_PARTS = ("gamma", "beta", "moving_mean", "moving_variance")
_CLASSIFIER = ("predictions/", "probs/")
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
    arrays = {
        f"{layer.name}/{weight.name}": keras.ops.convert_to_numpy(weight) for layer in source.layers for weight in layer.weights
    }
    used = {name: array for name, array in arrays.items() if not name.startswith(_CLASSIFIER)}
    parameters = Parameters(used, source.name)
    assignments = trunk_assignments(parameters, backbone)
    parameters.finish()
    assign_all(assignments)


def trunk_assignments(parameters: Parameters, backbone: keras.Model) -> Assignments:
    """What goes into a trunk of `build_backbone` from parameters named "layer/weight"."""
    assignments: Assignments = []
    for layer in backbone.layers:
        if isinstance(layer, ConvNorm):
            conv, norm = _source_names(layer.name)
            filters = (layer.kernel.shape[-1],)
            kernel, bias = parameters.take(f"{conv}/kernel", layer.kernel.shape), parameters.take(f"{conv}/bias", filters)
            statistics = NormArrays(*(parameters.take(f"{norm}/{part}", filters) for part in _NORM_PARTS))
            arrays = conv_norm_arrays(layer, kernel, statistics, epsilon=SOURCE_EPSILON, bias=bias)
            assignments += layer_assignments(layer, arrays)
    return assignments


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
