"""Whether a TFLite file finds what the model finds, on the same padded input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from mrcnn_tf.config import ModelConfig
from mrcnn_tf.detections import Detections
from mrcnn_tf.export.agreement import Agreement, agreement
from mrcnn_tf.export.edge_inputs import EdgeInput
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN

Reference = Callable[[EdgeInput], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Tolerance:
    """How far a file may be from the model; see `Agreement`.

    Attributes:
        score_threshold: objects with a lower score are not compared: int8 lets doubtful ones come and go.
        least: for `matched`.
        most: for the differences that are named.
    """

    score_threshold: float
    least: float
    most: Mapping[str, float]

    def holds(self, found: Agreement) -> bool:
        """The file may be written."""
        return found.matched >= self.least and all(getattr(found, name) <= limit for name, limit in self.most.items())

    def __str__(self) -> str:
        return f"at least {100 * self.least:g} % of the objects, " + ", ".join(
            f"{name} {limit:g}" for name, limit in self.most.items()
        )


TOLERANCES = {
    "float32": Tolerance(0.0, 0.985, {"boxes": 0.01, "scores": 1e-4, "masks": 1e-3}),
    # Of two boxes of one object with almost the same score another one may survive, so that a largest difference says nothing.
    "float16": Tolerance(0.05, 0.97, {"mean_boxes": 0.1, "mean_scores": 2e-3, "mean_masks": 2e-3}),
    "int8": Tolerance(0.5, 0.85, {"mean_boxes": 1.0, "mean_scores": 0.05, "mean_masks": 0.05}),
}


def reference(model: MaskRCNN) -> Reference:
    """The model itself on a padded input, as TensorFlow runs it: [1, H, W, 3] uint8 and [1, 2] int32 to its detections."""
    specs = [tf.TensorSpec([1, None, None, 3], tf.uint8), tf.TensorSpec([1, 2], tf.int32)]

    @tf.function(input_signature=specs)
    def detect(image: tf.Tensor, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        return model({"images": tf.cast(image, tf.float32), "image_sizes": image_size}, training=False)

    return lambda picture: {name: value.numpy() for name, value in detect(picture.image, picture.image_size).items()}


def compare_with_model(
    run: Callable[[EdgeInput], Mapping[str, NDArray[Any]]],
    expected_of: Reference,
    inputs: Sequence[EdgeInput],
    config: ModelConfig,
    score_threshold: float,
) -> Agreement:
    """Agreement over pictures.

    Args:
        run: signature `full` of the file.
        expected_of: `reference`.
        inputs: pictures.
        config: of the model.
        score_threshold: of the objects that are compared.
    """
    return agreement(
        tuple(detections_of(outputs, config).above(score_threshold) for outputs in (expected_of(picture), run(picture)))
        for picture in inputs
    )


def detections_of(outputs: Mapping[str, NDArray[Any]], config: ModelConfig) -> Detections:
    """The valid rows of the outputs for one padded input, in its pixels."""
    count = int(outputs["num_detections"][0])
    masks = outputs.get("detection_masks")
    return Detections(
        boxes=outputs["detection_boxes"][0, :count].astype(np.float32),
        classes=np.rint(outputs["detection_classes"][0, :count]).astype(np.int32),
        scores=outputs["detection_scores"][0, :count].astype(np.float32),
        mask_probs=None if masks is None else masks[0, :count].astype(np.float32),
        image_size=(1, 1),
        categories=tuple({"id": category.id, "name": category.name} for category in config.categories),
        paste=config.mask_head.paste,
    )
