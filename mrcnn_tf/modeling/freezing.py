"""Freezing parts of a model that is already built, as fine-tuning by stages does."""

from __future__ import annotations

from collections.abc import Collection

from mrcnn_tf.modeling.backbones import stage_of
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN


def freeze(model: MaskRCNN, *, frozen_stages: int, parts: Collection[str] = ()) -> None:
    """Choose what is trained from now on; an optimizer that knows all weights keeps its state.

    Args:
        model: built with at most as many frozen stages.
        frozen_stages: of the trunk, as in `backbones.build_backbone`.
        parts: of "fpn", "rpn_head", "box_head" and "mask_head", those that are not trained.

    Raises:
        ValueError: the model was built with more frozen stages; no gradient reaches those.
    """
    built = model.config.backbone.frozen_stages
    if frozen_stages < built:
        raise ValueError(f"frozen_stages must be at least the {built} that the model was built with, got {frozen_stages}")
    for layer in model.backbone.layers:
        layer.trainable = stage_of(model.backbone, layer) > frozen_stages
    for name in ("fpn", "rpn_head", "box_head", "mask_head", "mask_predictor"):
        part = getattr(model, name)
        if part is not None:
            part.trainable = (name if name != "mask_predictor" else "mask_head") not in parts
    if model.compiled:
        model.forget_traces()
