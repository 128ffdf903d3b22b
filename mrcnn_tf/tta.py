"""Test-time augmentation: a picture is looked at in several sizes and mirrored, and what is found is put together.

As detectron2's `GeneralizedRCNNWithTTA` does it: the boxes of all variants are merged by the model's own NMS. Masks are then
asked for at the merged boxes in the features of every variant, turned back, and averaged as probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from mrcnn_tf.detections import Detections
from mrcnn_tf.inference import Inference
from mrcnn_tf.ops.boxes import image_windows
from mrcnn_tf.ops.restore import restore_detections, scale_into
from mrcnn_tf.ops.suppression import Suppression
from mrcnn_tf.predict import as_rgb


class _Look(NamedTuple):
    """One variant of a picture: its features, where it lies in the network's input, and whether it is mirrored."""

    features: list[tf.Tensor]
    window: tf.Tensor
    is_mirrored: bool


class AugmentedPredictor:
    """A model as a function from a picture to `Detections`, each picture seen in several variants.

    The features of all variants of a picture are held at once. With one variant nothing is merged, and what is found is what
    `Predictor` finds.

    Args:
        model: a `MaskRCNN`.
        scales: shortest edges in pixels; none: that of the model's configuration.
        flip: see each size mirrored from left to right, too.
        max_size: bound of the longest edge in pixels; None: that of the model's configuration, times the scale over the
            configuration's shortest edge.
        score_threshold: detections with a lower score are left out.

    Raises:
        ValueError: a size is below 1, or named twice.
    """

    def __init__(
        self,
        model: Any,
        *,
        scales: Sequence[int] = (),
        flip: bool = False,
        max_size: int | None = None,
        score_threshold: float = 0.0,
    ) -> None:
        how = model.config.preprocessing
        scales = tuple(scales) or (how.min_size,)
        if min(scales) < 1 or len(set(scales)) < len(scales):
            raise ValueError(f"the sizes of test-time augmentation must be different and at least 1, got {list(scales)}")
        bounds = [max_size or max(scale, round(how.max_size * scale / how.min_size)) for scale in scales]
        sizes = [Inference(model, min_size=scale, max_size=bound) for scale, bound in zip(scales, bounds, strict=True)]
        self._variants = [
            (inference, is_mirrored) for inference in sizes for is_mirrored in ((False, True) if flip else (False,))
        ]
        self.score_threshold = score_threshold
        self.categories = tuple({"id": category.id, "name": category.name} for category in model.config.categories)
        self._config = model.config
        self._last = int(model.config.box_ends == "inclusive")
        self._boxes, self._masks = model.halves()
        box = model.config.box_head
        self._suppression = Suppression(box.nms, box.nms_iou_threshold, box.soft_nms_sigma, box.soft_nms_min_score)
        # One trace for all variants and all sizes.
        self._find = tf.function(
            lambda images, sizes: self._boxes({"images": images, "image_sizes": sizes}, training=False),
            input_signature=[tf.TensorSpec([1, None, None, 3]), tf.TensorSpec([1, 2], tf.int32)],
        )
        self._masks_at = tf.function(
            lambda features, boxes, classes: self._masks(
                {"features": features, "boxes": boxes, "classes": classes}, training=False
            ),
            reduce_retracing=True,
        )

    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        """Find the objects of one picture.

        Args:
            image: uint8 RGB [h, w, 3], or grey [h, w] or [h, w, 1].

        Returns:
            The detections, as those of `Predictor`.

        Raises:
            ValueError: not a uint8 picture of at least one pixel.
        """
        image = as_rgb(image)
        picture_size = tf.constant([image.shape[:2]], tf.int32)
        looks, found = zip(*(self._look(image, picture_size, *variant) for variant in self._variants), strict=True)
        boxes, classes, scores = self._merge(found)
        masks = None if self._masks is None else self._average_masks(looks, boxes, classes, picture_size)
        return Detections(
            boxes=boxes,
            classes=classes,
            scores=scores,
            mask_probs=masks,
            image_size=(image.shape[0], image.shape[1]),
            categories=self.categories,
            paste=self._config.mask_head.paste,
        ).above(self.score_threshold)

    def _look(
        self, image: NDArray[np.uint8], picture_size: tf.Tensor, inference: Inference, is_mirrored: bool
    ) -> tuple[_Look, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """What is kept of a variant, and (boxes, classes, scores) of what is found in it, in pixels of the picture."""
        size, padded_size = inference.sizes(picture_size[0])
        picture = np.ascontiguousarray(image[:, ::-1]) if is_mirrored else image
        outputs = dict(self._find(inference.prepare(tf.constant(picture), size, padded_size)[None], size[None]))
        features = outputs.pop("features")
        window = image_windows(size[None], padded_size, self._config.preprocessing.placement == "centre")
        clip = self._config.box_head.clip_to == "image"
        restored = restore_detections(outputs, window, picture_size, inclusive=bool(self._last), clip=clip)
        valid = slice(0, int(restored["num_detections"][0]))
        boxes, classes, scores = (restored[f"detection_{name}"][0, valid].numpy() for name in ("boxes", "classes", "scores"))
        return _Look(features, window, is_mirrored), (_mirror(boxes, image.shape[1]) if is_mirrored else boxes, classes, scores)

    def _merge(self, found: Sequence[tuple[NDArray[Any], ...]]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        boxes, classes, scores = (np.concatenate(values) for values in zip(*found, strict=True))
        if len(found) == 1 or not len(boxes):
            return boxes, classes, scores
        kept, merged_scores, count = self._suppression(
            boxes[None],
            classes[None] - 1,
            scores[None],
            num_classes=self._config.num_classes,
            max_output_size=self._config.box_head.max_detections,
        )
        rows = kept[0, : int(count[0])].numpy()
        return boxes[rows], classes[rows], merged_scores[0, : len(rows)].numpy()

    def _average_masks(
        self, looks: Sequence[_Look], boxes: NDArray[Any], classes: NDArray[Any], picture_size: tf.Tensor
    ) -> NDArray[np.float32]:
        padding = self._config.box_head.max_detections - len(boxes)
        rows = np.pad(classes, (0, padding))[None]
        total: Any = 0.0
        for look in looks:
            there = _mirror(boxes, int(picture_size[0, 1])) if look.is_mirrored else boxes
            there = np.pad(there, ((0, padding), (0, 0)))[None]
            there = scale_into(tf.constant(there), look.window, picture_size, last=self._last)
            masks = self._masks_at(look.features, there, tf.constant(rows))[0, : len(boxes)].numpy()
            total = total + (masks[:, :, ::-1] if look.is_mirrored else masks)
        return np.asarray(total / len(looks), np.float32)


def _mirror(boxes: NDArray[Any], width: int) -> NDArray[Any]:
    """Boxes [N, 4] in a picture that is mirrored from left to right."""
    return np.stack([boxes[:, 0], width - boxes[:, 3], boxes[:, 2], width - boxes[:, 1]], axis=1)
