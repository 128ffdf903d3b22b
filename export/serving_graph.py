"""A model as the signatures of a SavedModel: encoded pictures in, detections in their pixels out.

Pictures of one batch may differ in size. Each is decoded, resized and padded for itself, as `Predictor` does it, and those whose
padded sizes are equal go through the network together. So what is found in a picture does not depend on its neighbours in the
batch, which a server chooses; and pictures of one camera are still one batch.

Shape legend: B pictures, D rows of detections, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mrcnn_tf.inference import Inference
from mrcnn_tf.modeling.mask_rcnn import MASK_OUTPUT_SIZE, MaskRCNN
from mrcnn_tf.ops.decode import decode_picture
from mrcnn_tf.ops.mask_rle import encode_masks
from mrcnn_tf.ops.nms import nms_on

SIGNATURES = ("serving_default", "image", "full_masks")
_DECODED_AT_ONCE = 4
"""A picture of 12 megapixels takes 180 MB while it is resized."""

Signature = Callable[..., dict[str, tf.Tensor]]


class ServingGraph(tf.Module):
    """Holds the weights and the signatures of docs/serving.md.

    Args:
        model: the network.
        min_size: shortest edge in pixels; None: that of the model's configuration.
        max_size: bound of the longest edge in pixels; None: that of the model's configuration.
        xla: compile the convolutions before the proposals, once for each padded size and number of pictures.
        nms_device: where non-maximum suppression is pinned to, "" for wherever TensorFlow has its inputs.
    """

    def __init__(
        self,
        model: MaskRCNN,
        *,
        min_size: int | None = None,
        max_size: int | None = None,
        xla: bool = False,
        nms_device: str = "",
    ) -> None:
        super().__init__(name="mask_rcnn")
        config = model.config
        self.weights = [variable.value for variable in model.variables]
        self._inference = Inference(_Compiled(model) if xla else model, min_size=min_size, max_size=max_size)
        sizes = tf.TensorSpec([None, 2], tf.int32)
        # A function of its own, so that the signatures share one trace of the network.
        self._detect = tf.function(
            self._inference.detect, input_signature=[tf.TensorSpec([None, None, None, 3]), sizes, sizes], autograph=False
        )
        self._nms_device = nms_device
        self._paste = config.mask_head.paste
        self._names = tf.constant(["", *(category.name for category in config.categories)])
        self._ids = tf.constant([0, *(category.id for category in config.categories)], tf.int64)
        rows = config.box_head.max_detections
        self._values = {
            "detection_boxes": tf.TensorSpec([rows, 4], tf.float32),
            "detection_classes": tf.TensorSpec([rows], tf.int32),
            "detection_scores": tf.TensorSpec([rows], tf.float32),
            "num_detections": tf.TensorSpec([], tf.int32),
        }
        self._has_masks = config.mask_head.enabled
        if self._has_masks:
            self._values["detection_masks"] = tf.TensorSpec([rows, MASK_OUTPUT_SIZE, MASK_OUTPUT_SIZE], tf.float32)

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """The traced functions by name; `full_masks` only where the model has masks."""
        encoded = tf.TensorSpec([None], tf.string, name="image_bytes")
        images = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
        found = {"serving_default": self._traced(self._encoded, encoded), "image": self._traced(self._decoded, images)}
        return {**found, "full_masks": self._traced(self._with_full_masks, encoded)} if self._has_masks else found

    def _traced(self, function: Signature, spec: tf.TensorSpec) -> tf.types.experimental.ConcreteFunction:
        with nms_on(self._nms_device):
            return tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()

    def _encoded(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        count = tf.size(image_bytes)

        def picture(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return decode_picture(image_bytes[number])

        outputs, errors = self._found_in(picture, count)
        return {**outputs, "image_errors": errors}

    def _decoded(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        size = tf.shape(images)
        has_pixels = tf.debugging.Assert((size[1] > 0) & (size[2] > 0), ["expected images of at least one pixel, got", size])

        def picture(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return images[number], tf.constant("")

        with tf.control_dependencies([has_pixels]):
            count = tf.identity(size[0])
        return self._found_in(picture, count)[0]

    def _with_full_masks(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = self._encoded(image_bytes)
        rows = tf.where(outputs["detection_classes"] > 0)
        boxes, masks = (tf.gather_nd(outputs[name], rows) for name in ("detection_boxes", "detection_masks"))
        counts = encode_masks(masks, boxes, tf.gather(outputs["image_size"], rows[:, 0]), rule=self._paste)
        empty = tf.fill(tf.shape(outputs["detection_classes"]), "")
        return {**outputs, "detection_masks_rle_bytes": tf.tensor_scatter_nd_update(empty, rows, counts)}

    def _found_in(self, picture: Callable, count: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Outputs of all pictures, and what is wrong with each; `picture` maps a number to ([h, w, 3] uint8, error)."""
        prepared, sizes, padded_sizes, picture_sizes, errors = self._prepare(picture, count)
        fine = tf.where(errors == "")[:, 0]
        fine_sizes = tf.gather(padded_sizes, fine)
        # Both sides in one number: pictures with the same one go together.
        different, group_of = tf.unique(fine_sizes[:, 0] * 2**15 + fine_sizes[:, 1])
        arrays = tuple(
            tf.TensorArray(spec.dtype, count, element_shape=spec.shape, name=name) for name, spec in self._values.items()
        )

        def detect(group: tf.Tensor, arrays: tuple[tf.TensorArray, ...]) -> tuple[tf.Tensor, tuple[tf.TensorArray, ...]]:
            rows = tf.cast(tf.boolean_mask(fine, group_of == group), tf.int32)
            found = self._detect(prepared.gather(rows), tf.gather(sizes, rows), tf.gather(picture_sizes, rows))
            filled = tuple(array.scatter(rows, found[name]) for name, array in zip(self._values, arrays, strict=True))
            return group + 1, filled

        _, arrays = tf.while_loop(
            lambda group, _: group < tf.size(different), detect, (tf.constant(0), arrays), parallel_iterations=1
        )
        # What was never written, rows of broken pictures, is stacked as zeros.
        outputs = {name: array.stack() for name, array in zip(self._values, arrays, strict=True)}
        outputs["image_size"] = tf.where((errors == "")[:, None], picture_sizes, 0)
        outputs["detection_class_names"] = tf.gather(self._names, outputs["detection_classes"])
        outputs["detection_category_ids"] = tf.gather(self._ids, outputs["detection_classes"])
        if self._has_masks:
            outputs["mask_paste"] = tf.fill([count], self._paste)
        return outputs, errors

    def _prepare(self, picture: Callable, count: tf.Tensor) -> tuple[tf.TensorArray, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Network inputs (an array of [H, W, 3]), their three sizes [B, 2], and errors [B] of all pictures."""
        sizes = tuple(tf.TensorArray(tf.int32, count, element_shape=[2]) for _ in range(3))
        state = (
            tf.TensorArray(tf.float32, count, element_shape=[None, None, 3], infer_shape=False),
            sizes,
            tf.TensorArray(tf.string, count, element_shape=[]),
        )

        def prepare(number: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
            prepared, sizes, errors = state
            image, error = picture(number)
            picture_size = tf.shape(image)[:2]
            size, padded_size = self._inference.sizes(picture_size)
            values = (size, padded_size, picture_size)
            return number + 1, (
                prepared.write(number, self._inference.prepare(image, size, padded_size)),
                tuple(array.write(number, value) for array, value in zip(sizes, values, strict=True)),
                errors.write(number, error),
            )

        _, (prepared, sizes, errors) = tf.while_loop(
            lambda number, _: number < count, prepare, (tf.constant(0), state), parallel_iterations=_DECODED_AT_ONCE
        )
        return prepared, *(array.stack() for array in sizes), errors.stack()


class _Compiled:
    """A model whose trunk runs through XLA."""

    def __init__(self, model: MaskRCNN) -> None:
        self.config = model.config
        trunk, self._rest = model.split()
        self._trunk = tf.function(lambda inputs: trunk(inputs, training=False), jit_compile=True, autograph=False)

    def __call__(self, inputs: dict[str, tf.Tensor], training: bool) -> dict[str, tf.Tensor]:
        return self._rest({**inputs, "trunk": self._trunk(inputs)}, training=training)
