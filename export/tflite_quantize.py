"""int8 or float16 for the convolutions and the box head, float32 for the geometry: recipes for ai-edge-quantizer.

Everything in int8 destroys the boxes: their sides are differences of large numbers, and where ROIAlign samples is a number, too.
So only what `trunk`, `box` and `mask` compute is quantised, statically, with ranges measured on real pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from mrcnn_tf.export.quiet import without_chatter
from mrcnn_tf.export.tflite_channels import make_room_for_biases

Inputs = dict[str, NDArray[Any]]

BITS = 8
_HEADS = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "FULLY_CONNECTED")
"""Geometry has none of these."""
_BETWEEN = ("ADD", "MAX_POOL_2D", "RESIZE_NEAREST_NEIGHBOR", "RELU", "PAD")
"""They stand between the trunk's convolutions: left in float, each would cost two conversions."""
_TRUNK = "trunk"
"""Starts the names of the trunk's tensors; the quantiser matches names of an operation's output."""


def halve(content: bytes) -> bytes:
    """Keep the weights of convolutions and heads in float16; they are widened when a device loads the file.

    The converter's own float16 would take the constants of the geometry, too: tflite-runtime 2.14 reads those wrong, and the GPU
    refuses some.

    Args:
        content: a float32 file, without labels.
    """
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer

    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    cast = qtyping.OpQuantizationConfig(
        weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
    )
    work = quantizer.Quantizer(bytearray(content))
    for kind in _HEADS:
        work.update_quantization_recipe(
            ".*",
            qtyping.TFLOperationName[kind],
            op_config=cast,
            algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
        )
    with without_chatter():
        halved = work.quantize().quantized_model
    assert halved is not None
    return bytes(halved)


def quantize(content: bytes, samples: Mapping[str, Sequence[Inputs]]) -> bytes:
    """Quantise a float32 file.

    Args:
        content: the file, without labels.
        samples: inputs of each signature that has quantised operations.

    Returns:
        The quantised file; the types of its inputs and outputs are those of the float one.
    """
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.qtyping import TFLOperationName

    work = quantizer.Quantizer(bytearray(make_room_for_biases(content)))
    for kinds, names in ((_HEADS, ".*"), (_BETWEEN, _TRUNK)):
        for kind in kinds:
            work.add_static_config(names, TFLOperationName[kind], activation_num_bits=BITS, weight_num_bits=BITS)
    with without_chatter():
        ranges = work.calibrate({name: list(inputs) for name, inputs in samples.items()})
        quantised = work.quantize(ranges).quantized_model
    assert quantised is not None
    return bytes(quantised)
