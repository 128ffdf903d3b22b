"""A foreign checkpoint as a `MaskRCNN`: `mrcnn-tf import-weights`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mrcnn_tf.config import Config, ConfigError, overridden, parse
from mrcnn_tf.files import replacing
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.weights.assign import PretrainedWeightsError
from mrcnn_tf.weights.checkpoint import Checkpoint, read_checkpoint
from mrcnn_tf.weights.found import Found
from mrcnn_tf.weights.trunks import import_trunk

FORMATS = {"torchvision": "torchvision", "detectron2": "detectron2", "model-garden": "model_garden", "matterport": "matterport"}
"""Name of a format to its module in `mrcnn_tf.weights`."""
_CAFFE2_MARKS = ("conv_rpn_fpn2_w", "conv_rpn_w", "bbox_pred_w", "mask_fcn_logits_w")


@dataclass(frozen=True)
class Imported:
    """A model made of a checkpoint, and what was recognised in it."""

    model: MaskRCNN
    found: Found


def import_weights(
    source: str | Path,
    *,
    format: str = "auto",
    norm_epsilon: float | None = None,
    categories: Sequence[Mapping[str, Any]] | None = None,
    overrides: Iterable[str] = (),
) -> Imported:
    """Read a checkpoint of another system and make the model that computes what the original computes.

    Args:
        source: a file of torchvision, detectron2 or matterport, or a TensorFlow checkpoint of Model Garden.
        format: "auto" (by the names of the parameters), "torchvision", "detectron2", "model-garden" or "matterport".
        norm_epsilon: of all norms; None: the architecture's own.
        categories: `{"id", "name"}` in class order; None: COCO's where the number of classes is that of the format's COCO models,
            else `{"id": i, "name": "class i"}`.
        overrides: `model.section.key=value` strings, for what names and shapes cannot tell.

    Returns:
        The model and what was found.

    Raises:
        PretrainedWeightsError: the checkpoint is not recognised, is of an architecture that this project lacks, or does not fit;
            lists names and shapes.
        CheckpointError: the file is broken or dangerous.
        ConfigError: a wrong override, or another number of categories than of classes.
    """
    checkpoint = read_checkpoint(source)
    importer = choose_importer(checkpoint, format)
    found = importer.describe(checkpoint, norm_epsilon=norm_epsilon)
    chosen = categories or found.categories or _numbered(found.num_classes)
    if len(chosen) != found.num_classes:
        raise ConfigError(f"{source} has {found.num_classes} classes, got {len(chosen)} names")
    values = {**found.model, "categories": [dict(category) for category in chosen]}
    config = parse(Config, overridden({"model": values}, overrides), str(source))
    model = MaskRCNN(config, pretrained=False)
    importer.assign(model, checkpoint)
    return Imported(model, found)


def write_model(source: str | Path, output: str | Path, **options: Any) -> list[str]:
    """`import_weights` into a `.keras` file.

    Args:
        source: the checkpoint.
        output: the file; it appears complete or not at all.
        **options: of `import_weights`.

    Returns:
        For the user: what was found, what was assumed, and where it is.
    """
    imported = import_weights(source, **options)
    with replacing(output) as temporary:
        imported.model.save(temporary)
    found, model = imported.found, imported.model
    return [
        f"found {found.architecture}, {found.num_classes} classes, {model.count_params():,} parameters",
        *(f"note: {note}" for note in found.notes),
        f"wrote {output}",
    ]


def write_trunk(source: str | Path, output: str | Path) -> list[str]:
    """`import_trunk` into a `.keras` file; arguments and result as of `write_model`."""
    model, trunk = import_trunk(source)
    with replacing(output) as temporary:
        model.save(temporary)
    constants = ", ".join(f"{key} {value}" for key, value in {**trunk.backbone, **trunk.preprocessing}.items())
    return [f"found {trunk.description} ({constants})", f"wrote {output}; train with model.backbone.weights={output}"]


def choose_importer(checkpoint: Checkpoint, format: str = "auto") -> ModuleType:
    """The module that reads a checkpoint; see `import_weights` for arguments and errors."""
    if format != "auto" and format not in FORMATS:
        raise PretrainedWeightsError(f"format must be auto, {', '.join(FORMATS)}; got {format!r}")
    if any(mark in checkpoint.arrays for mark in _CAFFE2_MARKS):
        raise PretrainedWeightsError(
            f"{checkpoint.path} is a model of Detectron (Caffe2). Its boxes are a pixel wider (+1) and its anchors "
            "are quantised, so it would be silently wrong here; use detectron2's model of the same name"
        )
    modules = {name: importlib.import_module(f"mrcnn_tf.weights.{module}") for name, module in FORMATS.items()}
    matching = [name for name, module in modules.items() if module.matches(checkpoint)]
    if format == "auto" and not matching:
        some = ", ".join(list(checkpoint.arrays)[:8])
        raise PretrainedWeightsError(
            f"{checkpoint.path}: the {len(checkpoint.arrays)} parameters have names of none of {', '.join(FORMATS)}: {some}, ... "
            "(for an ImageNet trunk use --part backbone)"
        )
    if format not in ("auto", *matching):
        seem = f"; they look like {matching[0]}'s" if matching else ""
        raise PretrainedWeightsError(f"{checkpoint.path}: the names of the parameters are not {format}'s{seem}")
    return modules[matching[0] if format == "auto" else format]


def _numbered(num_classes: int) -> list[dict[str, Any]]:
    return [{"id": number, "name": f"class {number}"} for number in range(1, num_classes + 1)]
