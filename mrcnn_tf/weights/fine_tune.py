"""Starting from a trained `MaskRCNN`, with the same classes or with others (`model.weights` of a configuration)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import keras

from mrcnn_tf.weights.assign import Assignments, Parameters, PretrainedWeightsError, assign_all

if TYPE_CHECKING:
    from mrcnn_tf.modeling.mask_rcnn import MaskRCNN

_log = logging.getLogger("mrcnn_tf.weights")
_PARTS = ("backbone", "fpn", "rpn_head", "box_head", "mask_head", "mask_predictor")


def start_from(model: MaskRCNN, path: str | Path) -> tuple[str, ...]:
    """Take the weights of a `.keras` file.

    Where the classes are not the same, the layers that have an output per class keep their initial weights. A mask branch that
    only one of the two has is left as it is. Everything else must be there.

    Args:
        model: gets the weights.
        path: of the file.

    Returns:
        The layers that keep their initial weights; the logger `mrcnn_tf.weights` names them, too.

    Raises:
        PretrainedWeightsError: the file holds no `MaskRCNN`, or does not fit; nothing is assigned then.
    """
    source = _load(path)
    common, fresh = _common_parts(model, source), _per_class_layers(model, source)
    pairs: Assignments = []
    parameters = Parameters(_arrays(source, skip=fresh, parts=common), str(path))
    for name, weight in {name: weight for part in common for name, weight in _weights(model, part).items()}.items():
        if not name.startswith(fresh):
            pairs.append((weight, parameters.take(name, weight.shape)))
    parameters.finish()
    assign_all(pairs)
    new_parts = [part for part in _PARTS if part not in common and getattr(model, part) is not None]
    initial = (*(name.rstrip("/") for name in fresh), *new_parts)
    if initial:
        _log.warning("%s: other classes or another branch, so these start from random weights: %s", path, ", ".join(initial))
    return initial


def _load(path: str | Path) -> MaskRCNN:
    from mrcnn_tf.modeling.mask_rcnn import load_model

    if not Path(path).is_file():
        raise PretrainedWeightsError(f"model.weights: there is no file {path}")
    try:
        return load_model(path)
    except ValueError as error:
        raise PretrainedWeightsError(f"model.weights: {error}; expected a .keras file of a mrcnn_tf.MaskRCNN") from error


def _common_parts(model: MaskRCNN, source: MaskRCNN) -> list[str]:
    return [part for part in _PARTS if getattr(model, part) is not None and getattr(source, part) is not None]


def _per_class_layers(model: MaskRCNN, source: MaskRCNN) -> tuple[str, ...]:
    """Prefixes of the weights that mean other classes in the two models."""
    if model.config.categories == source.config.categories:
        return ()
    names = ["box_head/class_logits/"]
    if not (model.config.box_head.class_agnostic_boxes and source.config.box_head.class_agnostic_boxes):
        names.append("box_head/box_deltas/")
    has_masks = model.mask_predictor is not None and source.mask_predictor is not None
    if has_masks and not (model.config.mask_head.class_agnostic and source.config.mask_head.class_agnostic):
        names.append("mask_predictor/")
    return tuple(names)


def _weights(model: MaskRCNN, part: str) -> dict[str, keras.Variable]:
    """The weights of a part by part, layer and own name; a norm's count as those of its convolution."""
    owner = getattr(model, part)
    if not isinstance(owner, keras.Model):
        return {f"{part}/{weight.name}": weight for weight in owner.weights}
    return {f"{part}/{layer.name}/{weight.name}": weight for layer in owner.layers for weight in layer.weights}


def _arrays(source: MaskRCNN, *, skip: tuple[str, ...], parts: list[str]) -> dict:
    found = {name: weight for part in parts for name, weight in _weights(source, part).items()}
    return {name: keras.ops.convert_to_numpy(weight) for name, weight in found.items() if not name.startswith(skip)}
