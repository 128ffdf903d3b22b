"""The ImageNet trunks of other systems by the names of their parameters, and what belongs to each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from mrcnn_tf.config import imagenet_preprocessing
from mrcnn_tf.presets import IMAGENET_MEAN_BGR, IMAGENET_MEAN_RGB, IMAGENET_STD_BGR, IMAGENET_STD_RGB
from mrcnn_tf.weights import detectron2, keras_applications, torch_layout, torch_resnet
from mrcnn_tf.weights.assign import Assignments, Parameters, assign_all
from mrcnn_tf.weights.caffe2_names import caffe2_trunk
from mrcnn_tf.weights.found import Arrays, resnet_name

TORCH_EPSILON = 1e-5
_TORCHVISION_PIXELS = {"pixel_mean": IMAGENET_MEAN_RGB, "pixel_std": IMAGENET_STD_RGB, "channel_order": "rgb"}
_MSRA_PIXELS = {"pixel_mean": IMAGENET_MEAN_BGR, "pixel_std": (1.0, 1.0, 1.0), "channel_order": "bgr"}
_X101_PIXELS = {**_MSRA_PIXELS, "pixel_std": IMAGENET_STD_BGR}
_CLASSIFIER = re.compile(r"^(fc|head|classifier|linear|stem\.fc|fc1000|pred|probs|predictions)[._/]")


@dataclass(frozen=True)
class Trunk:
    """A trunk in a file.

    Attributes:
        description: for the user.
        backbone: values of `model.backbone` that belong to it: name, norm_epsilon and, of ResNets, stride_in and paddings.
        norm: that its statistics are for: "frozen" (any batch norm) or "group".
        preprocessing: pixel statistics and channel order that it was trained with.
        assignments: what goes into a trunk of `build_backbone`.
    """

    description: str
    backbone: dict[str, Any]
    norm: str
    preprocessing: dict[str, Any]
    assignments: Callable[[keras.Model], Assignments] = field(repr=False)

    def load_into(self, backbone: keras.Model) -> None:
        """Fill a trunk of the same architecture; nothing is assigned unless all fits."""
        assign_all(self.assignments(backbone))


def recognise(arrays: Arrays, path: Path) -> Trunk | None:
    """The trunk that the parameters make, also as part of a whole model of torchvision or detectron2; None if it is none of ours.

    Raises:
        PretrainedWeightsError: the names are known, but the architecture is not one of this project's.
    """
    for prefix, of_format in _FORMATS:
        inner = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        trunk = of_format({name: array for name, array in inner.items() if not _CLASSIFIER.match(name)}, path)
        if trunk is not None:
            return trunk
    return None


def _of_torchvision(arrays: Arrays, path: Path) -> Trunk | None:
    if not {"layer1.0.conv1.weight", "conv1.weight"} <= arrays.keys():
        return None
    name = resnet_name(arrays, "layer{stage}.{block}", 1, str(path))
    values = {"name": name, "stride_in": "3x3", "norm_epsilon": TORCH_EPSILON}
    assignments = _assigner(arrays, path, torch_resnet.trunk_assignments)
    return Trunk(f"{name} as of torchvision or timm", values, "frozen", _TORCHVISION_PIXELS, assignments)


def _of_torchvision_for_detectron2(arrays: Arrays, path: Path) -> Trunk | None:
    """Torchvision's names within a block, detectron2's around it: what its conversion script makes of a classifier."""
    if "stem.conv1.norm.num_batches_tracked" not in arrays:
        return None
    return _named_as_detectron2(arrays, path, "torchvision, converted for detectron2", "3x3", _TORCHVISION_PIXELS)


def _of_detectron2(arrays: Arrays, path: Path) -> Trunk | None:
    if not {"res2.0.conv1.weight", "stem.conv1.weight"} <= arrays.keys():
        return None
    is_group = torch_layout.norm_kind(arrays, "stem.conv1.norm") == "group"
    if _is_resnext(arrays):
        return _named_as_detectron2(arrays, path, "detectron2", "3x3", _X101_PIXELS)
    return _named_as_detectron2(arrays, path, "detectron2", "3x3" if is_group else "1x1", _MSRA_PIXELS)


def _of_caffe2(arrays: Arrays, path: Path) -> Trunk | None:
    return _of_detectron2(caffe2_trunk(arrays, TORCH_EPSILON), path) if "res2_0_branch2a_w" in arrays else None


def _of_keras_applications(arrays: Arrays, path: Path) -> Trunk | None:
    if "conv2_block1_1_conv/kernel" not in arrays:
        return None
    name = "resnet101" if "conv4_block23_1_conv/kernel" in arrays else "resnet50"
    values = {"name": name, "stride_in": keras_applications.STRIDE_IN, "norm_epsilon": TORCH_EPSILON}
    assignments = _assigner(arrays, path, keras_applications.trunk_assignments)
    return Trunk(f"{name} as of keras.applications", values, "frozen", imagenet_preprocessing(name), assignments)


def _named_as_detectron2(arrays: Arrays, path: Path, origin: str, stride_in: str, pixels: dict[str, Any]) -> Trunk:
    name = resnet_name(arrays, "res{stage}.{block}", 2, str(path))
    norm = "group" if torch_layout.norm_kind(arrays, "stem.conv1.norm") == "group" else "frozen"
    values = {"name": name, "stride_in": stride_in, "norm_epsilon": TORCH_EPSILON}
    return Trunk(f"{name} as of {origin}", values, norm, pixels, _assigner(arrays, path, detectron2.trunk_assignments))


def _is_resnext(arrays: Arrays) -> bool:
    kernel = arrays["res2.0.conv2.weight"].shape
    return kernel[0] != kernel[1]


def _assigner(
    arrays: Arrays, path: Path, pair: Callable[[Parameters, keras.Model], Assignments]
) -> Callable[[keras.Model], Assignments]:
    used = {name: array for name, array in arrays.items() if not name.endswith(torch_layout.COUNTER)}

    def assignments(backbone: keras.Model) -> Assignments:
        parameters = Parameters(used, str(path))
        pairs = pair(parameters, backbone)
        parameters.finish()
        return pairs

    return assignments


_FORMATS = (
    ("", _of_torchvision),
    ("", _of_torchvision_for_detectron2),
    ("", _of_detectron2),
    ("", _of_caffe2),
    ("", _of_keras_applications),
    ("backbone.body.", _of_torchvision),
    ("backbone.bottom_up.", _of_detectron2),
)
