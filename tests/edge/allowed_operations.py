"""What may stand in a file that is to run where there is nothing newer than tflite-runtime 2.14.

Two conditions, since the runtime refuses at load what it does not know, but computes some of what it loads wrongly:

* `ALLOWED`: an operation that occurs in the bundles of `make_cases`, whose every stage `test_tflite_runtime.py` compares with
  LiteRT and the model; up to the newest version that the runtime has. That version was found by writing files of one operation
  with the versions 1, 2, .. and having tflite-runtime 2.14.0 load them: it has one kernel for all versions of an operation, and
  refuses a file with a version above that ("Didn't find op for builtin opcode").
* `unreadable`: the version says nothing of where 16-bit constants stand and which types are mixed. Constants in float16 are read
  rightly as weights of `WEIGHTED` only: elsewhere (anchors, factors) 2.14 answers garbage. Integer weights need integer inputs:
  on float ones, quantised as they come, 2.14 has wrong fully connected layers and refuses transposed convolutions. And an integer
  fully connected layer needs a bias: without one, 2.14 crashes on 64-bit ARM.
"""

from __future__ import annotations

from collections.abc import Iterator

from ai_edge_litert import schema_py_generated as schema

from mrcnn_tf.export.tflite_convert import operations

ALLOWED = {
    "ABS": 5,
    "ADD": 5,
    "ARG_MAX": 3,
    "AVERAGE_POOL_2D": 3,
    "BATCH_MATMUL": 4,
    "CAST": 5,
    "CEIL": 1,
    "CONCATENATION": 4,
    "CONV_2D": 7,
    "DEPTHWISE_CONV_2D": 7,
    "DEQUANTIZE": 5,
    "EQUAL": 4,
    "EXP": 2,
    "FLOOR": 1,
    "FULLY_CONNECTED": 10,
    "GATHER": 6,
    "GREATER": 2,
    "GREATER_EQUAL": 3,
    "LEAKY_RELU": 2,
    "LESS": 3,
    "LESS_EQUAL": 2,
    "LOGICAL_AND": 1,
    "LOGISTIC": 3,
    "MAXIMUM": 4,
    "MAX_POOL_2D": 3,
    "MEAN": 3,
    "MINIMUM": 4,
    "MUL": 7,
    "NON_MAX_SUPPRESSION_V4": 1,
    "NOT_EQUAL": 3,
    "PACK": 4,
    "PAD": 4,
    "QUANTIZE": 3,
    "REDUCE_ALL": 1,
    "REDUCE_ANY": 1,
    "REDUCE_MAX": 3,
    "REDUCE_MIN": 3,
    "RELU": 3,
    "RESHAPE": 1,
    "RESIZE_NEAREST_NEIGHBOR": 4,
    "REVERSE_V2": 3,
    "RSQRT": 2,
    "SELECT_V2": 2,
    "SOFTMAX": 3,
    "SPLIT": 4,
    "SQRT": 1,
    "SQUARED_DIFFERENCE": 2,
    "STRIDED_SLICE": 8,
    "SUB": 5,
    "TOPK_V2": 3,
    "TRANSPOSE_CONV": 4,
    "UNPACK": 4,
}
"""Operations, and the newest version of each."""
WEIGHTED = {
    schema.BuiltinOperator.CONV_2D: 1,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D: 1,
    schema.BuiltinOperator.FULLY_CONNECTED: 1,
    schema.BuiltinOperator.TRANSPOSE_CONV: 1,
}
"""Operations with weights, and which of their inputs those are."""
_DATA = {**dict.fromkeys(WEIGHTED, 0), schema.BuiltinOperator.TRANSPOSE_CONV: 2}
_INTEGERS = (schema.TensorType.INT8, schema.TensorType.INT4)


def unknown(content: bytes) -> list[str]:
    """Operations of a file that are not `ALLOWED`."""
    return [f"{name} version {version}" for name, version in sorted(operations(content)) if version > ALLOWED.get(name, 0)]


def unreadable(content: bytes) -> list[str]:
    """Float16 constants that are no weights, integer weights beside float inputs, integer layers without a bias."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    return [fault for graph in model.subgraphs for fault in _faults(graph, codes)]


def _faults(graph: schema.SubGraphT, codes: list[int]) -> Iterator[str]:
    weights = set()
    for operator in graph.operators:
        code = codes[operator.opcodeIndex]
        if code not in WEIGHTED:
            continue
        # The bias, too: it stands where there are as many numbers as output channels.
        weights |= {operator.inputs[place] for place in range(WEIGHTED[code], len(operator.inputs)) if place != _DATA[code]}
        data, weight = (graph.tensors[operator.inputs[place]] for place in (_DATA[code], WEIGHTED[code]))
        if weight.type in _INTEGERS and data.type == schema.TensorType.FLOAT32:
            yield f"{_name(weight)}: integer weights beside float inputs"
        elif weight.type in _INTEGERS and code == schema.BuiltinOperator.FULLY_CONNECTED and (*operator.inputs, -1)[2] < 0:
            yield f"{_name(weight)}: integer weights without a bias"
    for operator in graph.operators:
        first = graph.tensors[operator.inputs[0]]
        if first.type == schema.TensorType.FLOAT16 and operator.outputs[0] not in weights:
            yield f"{_name(first)}: a float16 constant that is no weight"


def _name(tensor: schema.TensorT) -> str:
    return tensor.name.decode()
