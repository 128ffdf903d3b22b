"""What `model.json` says of each tensor of a bundle's signatures."""

from __future__ import annotations

import re
from typing import Any

import tensorflow as tf

_MEANINGS = {
    "image": "RGB picture, aspect kept, padded with 0",
    "image_size": "valid height and width of the picture in the input, pixels",
    "p": "feature map of stride 2**{level}",
    "objectness": "logit of each anchor of stride 2**{level}",
    "deltas": "(dy, dx, dh, dw) of each anchor of stride 2**{level}, channel 4 * anchor + component",
    "rois": "proposals, y1 x1 y2 x2 in pixels of the input; zeros in padding rows",
    "roi_scores": "1 for a proposal, 0 in padding rows",
    "regions": "features pooled from the boxes",
    "class_logits": "logit of each class, 0 is background",
    "box_deltas": "(dy, dx, dh, dw) of each foreground class, or of all together",
    "detection_boxes": "y1 x1 y2 x2 in pixels of the padded input; zeros in padding rows",
    "detection_classes": "1..K in the order of categories, 0 in padding rows",
    "detection_scores": "falling; 0 in padding rows",
    "num_detections": "how many rows are valid; they come first",
    "detection_masks": "probabilities in the frames of the boxes",
    "mask_regions": "features pooled from detection_boxes, for the signature mask",
    "classes": "class of each region, 1..K; anything in rows that are not needed",
    "masks": "probabilities in the frames of the boxes",
}


def described(functions: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Name, shape, dtype and meaning of every input and output.

    Args:
        functions: concrete functions by the name of their signature.

    Returns:
        `{signature: {"inputs" or "outputs": {name: {"shape", "dtype", "meaning"}}}}`.
    """
    return {
        name: {
            "inputs": {key: _tensor(key, spec) for key, spec in function.structured_input_signature[1].items()},
            "outputs": {key: _tensor(key, value) for key, value in function.structured_outputs.items()},
        }
        for name, function in functions.items()
    }


def _tensor(name: str, spec: tf.TensorSpec) -> dict[str, Any]:
    letters, level = re.fullmatch(r"(\D+)(\d?)", name).groups()  # type: ignore[union-attr]
    meaning = _MEANINGS[letters].format(level=level)
    return {"shape": spec.shape.as_list(), "dtype": spec.dtype.name, "meaning": meaning}
