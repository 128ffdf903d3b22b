"""From pictures to detections in their own pixels, and to drawings and `detections.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from mrcnn_tf.data.images import load_image
from mrcnn_tf.detections import Detections, Detector
from mrcnn_tf.inference import Inference
from mrcnn_tf.prediction_files import write_predictions


class Predictor:
    """A model as a function from a picture to `Detections`, all sizes in one trace.

    The picture is resized, padded, and what is found is brought back into its pixels, as `mrcnn_tf.inference.Inference` does it.

    Args:
        model: a `MaskRCNN`, or any callable with a `config` that keeps the contract of docs/contracts.md.
        min_size: shortest edge in pixels; None: that of the model's configuration.
        max_size: bound of the longest edge in pixels; None: that of the model's configuration.
        score_threshold: detections with a lower score are left out.
    """

    def __init__(
        self, model: Any, *, min_size: int | None = None, max_size: int | None = None, score_threshold: float = 0.0
    ) -> None:
        self._inference = Inference(model, min_size=min_size, max_size=max_size)
        self.min_size, self.max_size = self._inference.min_size, self._inference.max_size
        self.score_threshold = score_threshold
        self.categories = tuple({"id": category.id, "name": category.name} for category in model.config.categories)
        self._paste = model.config.mask_head.paste
        # There are no Python branches on tensors to be converted, and looking for them takes half of the tracing's time.
        signature = [tf.TensorSpec([None, None, 3], tf.uint8)]
        self._detect = tf.function(self._resize_and_detect, input_signature=signature, autograph=False)

    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        """Find the objects of one picture.

        Args:
            image: uint8 RGB [h, w, 3], or grey [h, w] or [h, w, 1].

        Returns:
            The detections in pixels of the picture, clipped to it unless `config.box_head.clip_to` is "input"; boxes without area
            in the picture are left out.

        Raises:
            ValueError: not a uint8 picture of at least one pixel.
        """
        image = as_rgb(image)
        outputs = {name: value[0].numpy() for name, value in self._detect(image).items()}
        valid = slice(0, int(outputs["num_detections"]))
        masks = outputs.get("detection_masks")
        return Detections(
            boxes=outputs["detection_boxes"][valid].astype(np.float32),
            classes=outputs["detection_classes"][valid].astype(np.int32),
            scores=outputs["detection_scores"][valid].astype(np.float32),
            mask_probs=None if masks is None else masks[valid].astype(np.float32),
            image_size=(image.shape[0], image.shape[1]),
            categories=self.categories,
            paste=self._paste,
        ).above(self.score_threshold)

    def _resize_and_detect(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        picture_size = tf.shape(image)[:2]
        size, padded_size = self._inference.sizes(picture_size)
        prepared = self._inference.prepare(image, size, padded_size)
        return self._inference.detect(prepared[None], size[None], picture_size[None])


def predict_files(
    detector: Detector,
    paths: Sequence[str | Path],
    output_dir: str | Path,
    *,
    score_threshold: float = 0.5,
    progress: bool = True,
) -> dict[str, Any]:
    """Draw what a detector finds in pictures, and write it down, as `write_predictions` does.

    Args:
        detector: any callable from a uint8 RGB picture [h, w, 3] to `Detections`.
        paths: the pictures.
        output_dir: made if it is not there.
        score_threshold: detections with a lower score are neither drawn nor written.
        progress: show a progress bar on stderr.

    Returns:
        What `write_predictions` returns.
    """

    def find(path: Path) -> tuple[NDArray[np.uint8], Detections]:
        image = load_image(path)
        return image, detector(image)

    return write_predictions(find, paths, output_dir, score_threshold=score_threshold, progress=progress)


def as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture [h, w], [h, w, 1] or [h, w, 3] as [h, w, 3].

    Raises:
        ValueError: not a uint8 picture of at least one pixel.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or image.size == 0:
        raise ValueError(f"expected a uint8 picture [h, w, 3] of at least one pixel, got {image.dtype} {image.shape}")
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
