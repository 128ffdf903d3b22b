"""From a traced model to the bytes of a TFLite file, and what may stand in one."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from mrcnn_tf.export.edge_graph import EdgeGraph
from mrcnn_tf.export.quiet import without_warnings

LABELS = "labels.txt"


def convert(graph: EdgeGraph, signatures: Mapping[str, Any]) -> bytes:
    """Convert all signatures into one float32 file that shares the weights.

    Args:
        graph: the model.
        signatures: what `graph.signatures()` gives.

    Returns:
        The file, built-in operations only.
    """
    with tempfile.TemporaryDirectory() as folder, without_warnings():
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(graph, folder, signatures=signatures, options=options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        return bytes(converter.convert())


def with_labels(content: bytes, names: Sequence[str]) -> bytes:
    """Append `labels.txt` as a zip, where tools that read metadata of TFLite files look for it."""
    # The offsets in a zip count from the start of the file it stands in.
    combined = io.BytesIO(content)
    combined.seek(0, io.SEEK_END)
    with zipfile.ZipFile(combined, "a") as archive:
        # ZipInfo has a fixed date, so that two exports of one model do not differ.
        archive.writestr(zipfile.ZipInfo(LABELS), "".join(f"{name}\n" for name in names))
    return combined.getvalue()


def operations(content: bytes) -> Counter[tuple[str, int]]:
    """How often each operation stands in a file, by name and version."""
    from ai_edge_litert import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    model = schema.Model.GetRootAs(content, 0)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    kinds = [(names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())], code.Version()) for code in codes]
    found: Counter[tuple[str, int]] = Counter()
    for number in range(model.SubgraphsLength()):
        subgraph = model.Subgraphs(number)
        found.update(kinds[subgraph.Operators(i).OpcodeIndex()] for i in range(subgraph.OperatorsLength()))
    return found
