"""The convolutions of a model for an Edge TPU: all in int8, one signature, the operations that its compiler takes.

What follows, proposals and heads, stays in `model.tflite`. Edge TPUs take static shapes and 8-bit tensors only, and a batch of
regions does not map, so box and mask head run on the CPU. The compiler, `edgetpu_compiler`, is in no package registry and was not
run.

Source of the requirements: coral.ai/docs/edgetpu/models-intro, "Model requirements" and "Supported operations".
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from mrcnn_tf.export.edge_graph import EdgeGraph
from mrcnn_tf.export.edge_inputs import EdgeInput
from mrcnn_tf.export.folders import ExportError
from mrcnn_tf.export.quiet import without_warnings
from mrcnn_tf.export.tflite_convert import operations
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN

FILE = "trunk_edgetpu.tflite"
_NEWEST = {
    "ADD": 2,
    "CONV_2D": 5,
    "DEPTHWISE_CONV_2D": 6,
    "MAX_POOL_2D": 2,
    "MUL": 2,
    "PAD": 2,
    "QUANTIZE": 2,
    "RELU": 2,
    "RELU6": 2,
    "RESIZE_NEAREST_NEIGHBOR": 3,
    "SUB": 3,
}
"""Operations of a trunk that the compiler maps, and the newest version of each that it reads."""


class _Trunk(tf.Module):
    """The trunk of an image that fills the input: a mask of what is padding would not map."""

    def __init__(self, graph: EdgeGraph, image_size: tuple[int, int]) -> None:
        super().__init__(name="trunk")
        self.weights = graph.weights
        size = tf.constant([image_size], tf.int32)
        # Float here: the converter makes it the quantised input that it says it is.
        image = tf.TensorSpec([1, *image_size, 3], tf.float32, name="image")
        self.signature = tf.function(
            lambda image: graph.trunk(image, size), input_signature=[image], autograph=False
        ).get_concrete_function()


def write_edgetpu_trunk(
    model: MaskRCNN, folder: Path, image_size: tuple[int, int], inputs: Sequence[EdgeInput]
) -> dict[str, Any]:
    """Write `trunk_edgetpu.tflite`.

    Args:
        model: the network, float32.
        folder: of the bundle.
        image_size: (height, width) of the padded input.
        inputs: real pictures, on which ranges are measured.

    Returns:
        For `model.json`: the file, and name, shape, dtype, scale and zero point of its input and outputs. A value is
        `(number - zero_point) * scale`.

    Raises:
        ExportError: an operation that an Edge TPU does not take.
    """
    content = _converted(_Trunk(EdgeGraph(model, image_size), image_size), inputs)
    refused = sorted(f"{name} version {version}" for name, version in operations(content) if version > _NEWEST.get(name, 0))
    if refused:
        raise ExportError(f"an Edge TPU does not take {', '.join(refused)}, which the trunk of this model has")
    (folder / FILE).write_bytes(content)
    return {"file": FILE, **_tensors(content)}


def _converted(trunk: _Trunk, inputs: Sequence[EdgeInput]) -> bytes:
    def pictures() -> Iterator[list[NDArray[Any]]]:
        for picture in inputs:
            yield [picture.image.astype(np.float32)]

    with tempfile.TemporaryDirectory() as folder, without_warnings():
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(trunk, folder, signatures={"trunk": trunk.signature}, options=options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["trunk"])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = pictures
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.int8
        return bytes(converter.convert())


def _tensors(content: bytes) -> dict[str, dict[str, Any]]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content).get_signature_runner("trunk")
    sides = {"inputs": runner.get_input_details(), "outputs": runner.get_output_details()}
    return {
        side: {
            name: {
                "shape": detail["shape"].tolist(),
                "dtype": np.dtype(detail["dtype"]).name,
                "scale": float(detail["quantization"][0]),
                "zero_point": int(detail["quantization"][1]),
            }
            for name, detail in details.items()
        }
        for side, details in sides.items()
    }
