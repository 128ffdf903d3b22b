"""A model as the signatures of a TFLite file: `full`, and the five stages of which it is made.

Everything is traced inside `static_graph()`: batch 1, shapes known, gathers for ROIAlign. Convolutions (`trunk`, `box`, `mask`)
and geometry (`propose`, `detect`) are signatures of their own, so that a device can run the first on an accelerator, which takes
them whole, and the second on its CPU, always in float.

Shape legend: H x W pixels of the padded input, C channels of the pyramid, P proposals, D rows of detections, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from mrcnn_tf.modeling.mask_rcnn import MASK_POOL_SIZE, MaskRCNN
from mrcnn_tf.ops.static_graph import static_graph

MASK_ROWS = 8
"""Regions of one call of `mask`: few, so that a picture of one object is cheap; enough to fill a processor's vectors."""
_SIZE_MULTIPLE = 64
_LEVELS = (2, 3, 4, 5, 6)

Tensors = dict[str, tf.Tensor]
Specs = dict[str, tf.TensorSpec]


class EdgeGraph(tf.Module):
    """Holds the weights and the signatures that docs/contracts.md lists for a bundle.

    Args:
        model: the network, float32.
        image_size: (height, width) of the padded input, multiples of 64.

    Raises:
        ValueError: a size that does not fit the pyramid.
    """

    def __init__(self, model: MaskRCNN, image_size: tuple[int, int]) -> None:
        super().__init__(name="mask_rcnn")
        if any(side < _SIZE_MULTIPLE or side % _SIZE_MULTIPLE for side in image_size):
            raise ValueError(
                f"the sides of the image must be multiples of {_SIZE_MULTIPLE}, got {image_size[0]} x {image_size[1]}"
            )
        # Tracked as plain variables: TensorFlow does not look into the layers of Keras 3.
        self.weights = [variable.value for variable in model.variables]
        self._model = model
        self._stages = model.stages()
        self._image_size = image_size
        self._has_masks = model.mask_head is not None

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """The traced functions by name; `mask` only where the model has masks."""
        size = {"image_size": tf.TensorSpec([1, 2], tf.int32)}
        image = {"image": tf.TensorSpec([1, *self._image_size, 3], tf.uint8), **size}
        found = {"full": _traced(self._full, image), "trunk": _traced(self._trunk, image)}
        seen = _outputs(found["trunk"])
        found["propose"] = _traced(self._propose, {**size, **seen})
        proposed = _outputs(found["propose"])
        found["box"] = _traced(self._box, {"regions": proposed.pop("regions")})
        features = {name: spec for name, spec in seen.items() if name in self._pooled()}
        found["detect"] = _traced(self._detect, {**size, **features, **proposed, **_outputs(found["box"])})
        if self._has_masks:
            regions = tf.TensorSpec([MASK_ROWS, MASK_POOL_SIZE, MASK_POOL_SIZE, seen["p2"].shape[-1]])
            found["mask"] = _traced(self._mask, {"regions": regions, "classes": tf.TensorSpec([MASK_ROWS], tf.int32)})
        return found

    def _full(self, image: tf.Tensor, image_size: tf.Tensor) -> Tensors:
        seen = self._trunk(image, image_size)
        proposed = self._propose(image_size, **seen)
        answered = self._box(proposed.pop("regions"))
        features = {name: seen[name] for name in self._pooled()}
        found = self._detect(image_size, **features, **proposed, **answered)
        if self._has_masks:
            regions = found.pop("mask_regions")
            classes = tf.cast(found["detection_classes"][0], tf.int32)
            masks = self._mask(regions, classes)["masks"]
            is_found = tf.reshape(tf.cast(classes > 0, tf.float32), [-1, 1, 1])
            found["detection_masks"] = (masks * is_found)[None]
        return found

    def trunk(self, image: tf.Tensor, image_size: tf.Tensor) -> Tensors:
        """What the signature `trunk` gives, for graphs of its own."""
        with static_graph():
            return self._trunk(image, image_size)

    def _trunk(self, image: tf.Tensor, image_size: tf.Tensor) -> Tensors:
        seen = self._stages["trunk"]({"images": image, "image_sizes": image_size}, training=False)
        features = dict(zip(self._pooled(), seen["features"], strict=False))
        heads = {
            f"{name}{level}": value for name in ("objectness", "deltas") for level, value in zip(_LEVELS, seen[name], strict=True)
        }
        return {**features, **heads}

    def _propose(self, image_size: tf.Tensor, **seen: tf.Tensor) -> Tensors:
        trunk = {name: [seen[f"{name}{level}"] for level in _LEVELS] for name in ("objectness", "deltas")}
        # Where P6 is not pooled from, its size is all that its anchors need.
        trunk["features"] = [seen.get(f"p{level}", seen[f"objectness{level}"]) for level in _LEVELS]
        found = self._stages["propose"]({**self._inputs(image_size), "trunk": trunk}, training=False)
        return {
            "rois": found["proposals"],
            "roi_scores": tf.cast(found["is_valid"], tf.float32),
            "regions": found["box_regions"],
        }

    def _box(self, regions: tf.Tensor) -> Tensors:
        class_logits, box_deltas = self._model.box_head(regions, training=False)
        return {"class_logits": class_logits, "box_deltas": tf.reshape(box_deltas, [box_deltas.shape[0], -1])}

    def _detect(self, image_size: tf.Tensor, **known: tf.Tensor) -> Tensors:
        deltas = tf.reshape(known["box_deltas"], [known["box_deltas"].shape[0], -1, 4])
        found = self._stages["detect"](
            {
                **self._inputs(image_size),
                "known": {
                    "features": [known[name] for name in self._pooled()],
                    "proposals": known["rois"],
                    "is_valid": known["roi_scores"] > 0.5,
                    "class_logits": known["class_logits"],
                    "box_deltas": deltas,
                },
            },
            training=False,
        )
        return {name: tf.cast(value, tf.float32) for name, value in found.items()}

    def _mask(self, regions: tf.Tensor, classes: tf.Tensor) -> Tensors:
        logits = self._model.mask_predictor(self._model.mask_head(regions, training=False), classes)
        return {"masks": tf.sigmoid(logits)}

    def _inputs(self, image_size: tf.Tensor) -> Tensors:
        """Geometry asks for the image's shape alone, so that nothing is left of this one."""
        return {"images": tf.zeros([1, *self._image_size, 3]), "image_sizes": image_size}

    def _pooled(self) -> list[str]:
        """Names of the maps that regions are pooled from."""
        last = int(self._model.config.roi_align.max_level)
        return [f"p{level}" for level in _LEVELS if level <= last]


def _traced(function: Callable[..., Tensors], specs: Mapping[str, tf.TensorSpec]) -> Any:
    def static(**inputs: tf.Tensor) -> Tensors:
        with static_graph():
            return function(**inputs)

    named = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in specs.items()}
    return tf.function(static, autograph=False).get_concrete_function(**named)


def _outputs(function: Any) -> Specs:
    return {name: tf.TensorSpec(value.shape, value.dtype) for name, value in function.structured_outputs.items()}
