"""From pictures to detections in their own pixels, and to drawings and `detections.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from mrcnn_tf.data.images import load_image
from mrcnn_tf.detections import Detections, Detector
from mrcnn_tf.ops.images import image_window, pad_image, resize_image, resized_size
from mrcnn_tf.paste import PasteRule
from mrcnn_tf.prediction_files import write_predictions

PAD_MULTIPLE = 32
"""The stride of P5, the coarsest level that is not made by pooling."""


class Predictor:
    """A model as a function from a picture to `Detections`, all sizes in one trace.

    The picture is resized so that its shortest edge is `min_size` (or less, where the longest would exceed `max_size`) and padded
    to multiples of 32, in the way of `config.preprocessing`. What is found is moved and scaled back by the true ratio of each
    axis.

    Args:
        model: a `MaskRCNN`, or any callable with a `config` that keeps the contract of docs/contracts.md.
        min_size: shortest edge in pixels; None: that of the model's configuration.
        max_size: bound of the longest edge in pixels; None: that of the model's configuration.
        score_threshold: detections with a lower score are left out.
    """

    def __init__(
        self, model: Any, *, min_size: int | None = None, max_size: int | None = None, score_threshold: float = 0.0
    ) -> None:
        preprocessing = model.config.preprocessing
        self.min_size = preprocessing.min_size if min_size is None else min_size
        self.max_size = preprocessing.max_size if max_size is None else max_size
        self.score_threshold = score_threshold
        self.categories = tuple({"id": category.id, "name": category.name} for category in model.config.categories)
        self._model = model
        self._preprocessing = preprocessing
        self._paste = model.config.mask_head.paste
        self._inclusive = model.config.box_ends == "inclusive"
        self._clip = model.config.box_head.clip_to == "image"
        image = tf.TensorSpec([None, None, 3], tf.uint8)
        self._detect = tf.function(self._resize_and_detect, input_signature=[image, tf.TensorSpec([2], tf.int32)])

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
        image = _as_rgb(image)
        image_size = (image.shape[0], image.shape[1])
        size = resized_size(
            *image_size,
            min_size=self.min_size,
            max_size=self.max_size,
            rounding=self._preprocessing.resize_rounding,
            enlarge_only=self._preprocessing.enlarge_only,
        )
        outputs, window = self._detect(image, np.array(size, np.int32))
        return to_detections(
            {name: value[0].numpy() for name, value in outputs.items()},
            window=window.numpy(),
            image_size=image_size,
            categories=self.categories,
            paste=self._paste,
            inclusive=self._inclusive,
            clip=self._clip,
        ).above(self.score_threshold)

    def _resize_and_detect(self, image: tf.Tensor, size: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        how = self._preprocessing
        resized = resize_image(image, size, antialias=how.antialias, quantize=how.quantize)
        padded_size = _whole_multiples(size if how.padding == "multiple" else tf.fill([2], self.max_size))
        padded = pad_image(resized, padded_size, how.placement)
        outputs = self._model({"images": padded[None], "image_sizes": size[None]}, training=False)
        return outputs, image_window(size, padded_size, how.placement)


def to_detections(
    outputs: Mapping[str, NDArray[Any]],
    *,
    window: NDArray[Any],
    image_size: tuple[int, int],
    categories: tuple[Mapping[str, Any], ...],
    paste: PasteRule = "centred",
    inclusive: bool = False,
    clip: bool = True,
) -> Detections:
    """The valid rows of the detections of one image, in pixels of the original picture.

    Args:
        outputs: the detections of docs/contracts.md without the batch axis, as numpy arrays.
        window: [4] `y1, x1, y2, x2` of the resized picture in the network's input, pixels.
        image_size: (height, width) of the picture.
        categories: `{"id", "name"}` of the model.
        paste: how masks are laid over their boxes.
        inclusive: scale from first pixel to last pixel, as matterport does, and not from edge to edge.
        clip: cut the boxes at the picture. Masks are in the frames of the boxes, so where the network does not cut its boxes
            before it looks for masks (Model Garden) they must stay whole.

    Returns:
        Detections without those that have no area in the picture.
    """
    valid = slice(0, int(outputs["num_detections"]))
    scaled = _scale_back(outputs["detection_boxes"][valid], np.asarray(window, np.float32), image_size, last=int(inclusive))
    inside = np.clip(scaled, 0, np.array([*image_size, *image_size], np.float32))
    masks = outputs.get("detection_masks")
    found = Detections(
        boxes=(inside if clip else scaled).astype(np.float32),
        classes=outputs["detection_classes"][valid].astype(np.int32),
        scores=outputs["detection_scores"][valid].astype(np.float32),
        mask_probs=None if masks is None else masks[valid].astype(np.float32),
        image_size=image_size,
        categories=categories,
        paste=paste,
    )
    return found.select((inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1]))


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


def _whole_multiples(size: tf.Tensor) -> tf.Tensor:
    return (size + PAD_MULTIPLE - 1) // PAD_MULTIPLE * PAD_MULTIPLE


def _scale_back(
    boxes: NDArray[np.float32], window: NDArray[np.float32], image_size: tuple[int, int], *, last: int
) -> NDArray[np.float32]:
    """Boxes [N, 4] of the network's input in pixels of the picture; `last` is 1 where a box ends at its last pixel, else 0."""
    ends = np.array([0, 0, last, last], np.float32)
    # A side of one pixel has its first pixel for its last one.
    new, old = (np.maximum(size - last, 1) for size in (np.array(image_size, np.float32), window[2:] - window[:2]))
    # Multiplied before divided: a box that ends at the edge of the input then still does.
    return (boxes - ends - np.tile(window[:2], 2)) * np.tile(new, 2) / np.tile(old, 2) + ends


def _as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or image.size == 0:
        raise ValueError(f"expected a uint8 picture [h, w, 3] of at least one pixel, got {image.dtype} {image.shape}")
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
