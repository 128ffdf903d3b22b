"""ImageNet trunks of other systems: which one a checkpoint holds, what belongs to it, and its weights.

Read are detectron2's `.pkl` (MSRA R-50 and R-101, X-101-32x8d, group norm, converted from torchvision), classifiers of
torchvision and timm, keras.applications' `.h5`, the trunk of a whole torchvision or detectron2 model, and `.keras` files of this
project.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from mrcnn_tf.config import BackboneConfig, ModelConfig, imagenet_preprocessing
from mrcnn_tf.modeling.backbones import build_backbone
from mrcnn_tf.modeling.layers import Normalize
from mrcnn_tf.weights.assign import Assignments, Parameters, PretrainedWeightsError
from mrcnn_tf.weights.checkpoint import read_checkpoint
from mrcnn_tf.weights.trunk_formats import Trunk, recognise


def read_trunk(path: str | Path) -> Trunk:
    """Recognise the trunk in a file.

    Args:
        path: of a checkpoint, or of a `.keras` file of this project (a whole model, or the trunk of `import_trunk`).

    Returns:
        The trunk.

    Raises:
        PretrainedWeightsError: there is none that this project has.
        CheckpointError: the file is broken or dangerous.
    """
    path = Path(path).expanduser()
    if not path.exists() and not path.with_name(f"{path.name}.index").exists():
        raise PretrainedWeightsError(f'model.backbone.weights must be "imagenet", null or a file; there is no file {path}')
    if _is_keras_file(path):
        return _of_keras_file(path)
    arrays = read_checkpoint(path).arrays
    trunk = recognise(arrays, path)
    if trunk is not None:
        return trunk
    raise PretrainedWeightsError(
        f"{path}: no ResNet-50, ResNet-101 or ResNeXt-101 32x8d is recognised in the names of the parameters: "
        f"{', '.join(list(arrays)[:8])}, ..."
    )


def follow_trunk(config: ModelConfig) -> ModelConfig:
    """The configuration with what belongs to the trunk's file: stride, eps and pixel statistics, where it does not say otherwise.

    Args:
        config: whose `backbone.weights` is a file.

    Returns:
        The completed configuration.

    Raises:
        PretrainedWeightsError: the file holds another trunk than `backbone.name`.
    """
    trunk = read_trunk(str(config.backbone.weights))
    if trunk.backbone["name"] != config.backbone.name:
        raise PretrainedWeightsError(
            f"{config.backbone.weights} holds {trunk.description}; set model.backbone.name to {trunk.backbone['name']} "
            f"(it is {config.backbone.name})"
        )
    given = config.backbone.model_fields_set
    backbone = config.backbone.model_copy(update={k: v for k, v in trunk.backbone.items() if k not in given})
    preprocessing = config.preprocessing
    default = imagenet_preprocessing(config.backbone.name)
    if all(getattr(preprocessing, key) == value for key, value in default.items()):
        preprocessing = preprocessing.model_copy(update=trunk.preprocessing)
    return config.model_copy(update={"backbone": backbone, "preprocessing": preprocessing})


def load_file(backbone: keras.Model, config: BackboneConfig) -> None:
    """Fill a trunk with the weights of the file that `config.weights` names.

    Raises:
        PretrainedWeightsError: the file does not fit the configuration.
    """
    trunk = read_trunk(str(config.weights))
    if trunk.backbone["name"] != config.name:
        raise PretrainedWeightsError(f"{config.weights} holds {trunk.description}, model.backbone.name is {config.name}")
    if not config.name.startswith("efficientnet") and trunk.backbone["stride_in"] != config.stride_in:
        raise PretrainedWeightsError(
            f"{config.weights} holds {trunk.description} with the stride in the {trunk.backbone['stride_in']} convolution; set "
            f"model.backbone.stride_in to it (it is {config.stride_in})"
        )
    if (trunk.norm == "group") != (config.norm == "group"):
        raise PretrainedWeightsError(
            f"{config.weights} holds {trunk.description} with {trunk.norm} norm, model.backbone.norm is {config.norm}"
        )
    trunk.load_into(backbone)


def import_trunk(source: str | Path) -> tuple[keras.Model, Trunk]:
    """A trunk as a model of its own.

    Args:
        source: see `read_trunk`.

    Returns:
        A functional model from `{"images": [B, H, W, 3] 0..255 RGB, "windows": [B, 4]}` (the part of each image that is not
        padding, yxyx) to the dict c2..c5, pixel statistics included, and what was found.
    """
    trunk = read_trunk(source)
    backbone = build_backbone(**trunk.backbone, norm=trunk.norm)
    trunk.load_into(backbone)
    images, windows = keras.Input((None, None, 3), name="images"), keras.Input((4,), name="windows")
    normalize = Normalize(**trunk.preprocessing, name="normalize")
    inputs = {"images": images, "windows": windows}
    return keras.Model(inputs, backbone(normalize(images, windows)), name=f"{trunk.backbone['name']}_features"), trunk


def _is_keras_file(path: Path) -> bool:
    return path.is_file() and zipfile.is_zipfile(path) and "model.weights.h5" in zipfile.ZipFile(path).namelist()


def _of_keras_file(path: Path) -> Trunk:
    from mrcnn_tf.modeling.mask_rcnn import MaskRCNN

    try:
        model = keras.saving.load_model(path, compile=False)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise PretrainedWeightsError(f"{path} cannot be read as a .keras file: {error}") from error
    if isinstance(model, MaskRCNN):
        return _built(model.backbone, model.config.preprocessing, f"a MaskRCNN with {model.backbone.name}")
    return _of_feature_model(model, path)


def _of_feature_model(model: keras.Model, path: Path) -> Trunk:
    """The trunk of a file that `import_trunk` made."""
    try:
        normalize = model.get_layer("normalize")
        backbone = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    except (ValueError, StopIteration) as error:
        raise PretrainedWeightsError(
            f"{path} holds {type(model).__name__} {model.name!r}, neither a MaskRCNN nor a trunk"
        ) from error
    return _built(backbone, normalize, f"the trunk {backbone.name}")


def _built(backbone: keras.Model, pixels: Any, description: str) -> Trunk:
    """A trunk of `build_backbone`; `pixels` has pixel_mean, pixel_std and channel_order."""
    layers = {layer.name: layer for layer in backbone.layers}
    stem = layers["stem"]
    values = {"name": backbone.name, "norm_epsilon": stem.norm_epsilon}
    if "res3_0_conv1" in layers:
        values["stride_in"] = "1x1" if layers["res3_0_conv1"].strides == 2 else "3x3"
        values["padding"] = stem.padding
        values["pool_padding"] = "symmetric" if "stem_pad" in layers else "same"
    preprocessing = {key: getattr(pixels, key) for key in ("pixel_mean", "pixel_std", "channel_order")}
    norm = "group" if stem.norm == "group" else "frozen"
    return Trunk(description, values, norm, preprocessing, _copy_of(backbone))


def _copy_of(source: keras.Model) -> Callable[[keras.Model], Assignments]:
    def assignments(backbone: keras.Model) -> Assignments:
        arrays = {_path(source, weight): keras.ops.convert_to_numpy(weight) for weight in source.weights}
        parameters = Parameters(arrays, f"the trunk {source.name}")
        pairs = [(weight, parameters.take(_path(backbone, weight), weight.shape)) for weight in backbone.weights]
        parameters.finish()
        return pairs

    return assignments


def _path(model: keras.Model, weight: keras.Variable) -> str:
    """Layer and weight, without the sub-layer that holds a trained norm."""
    parts = weight.path.removeprefix(f"{model.name}/").split("/")
    return f"{parts[0]}/{parts[-1]}"
