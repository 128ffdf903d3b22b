"""Small SavedModels with every type, for the tests of the stand-in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2


class Toy(tf.Module):
    """`factor` tells versions apart; a table with an asset shows that initialisation is done."""

    def __init__(self, factor: float, words: Path):
        super().__init__()
        self.factor = tf.Variable(factor)
        lines = tf.lookup.TextFileInitializer(
            str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        )
        self.table = tf.lookup.StaticHashTable(lines, -1)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name="x")])
    def scale(self, x):
        return {"y": x * self.factor, "rows": tf.fill(tf.shape(x)[:1], tf.shape(x)[0])}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="f32"),
            tf.TensorSpec([None], tf.int32, name="i32"),
            tf.TensorSpec([None], tf.int64, name="i64"),
            tf.TensorSpec([None, 2], tf.uint8, name="u8"),
            tf.TensorSpec([None], tf.bool, name="flag"),
            tf.TensorSpec([None], tf.string, name="text"),
        ]
    )
    def types(self, f32, i32, i64, u8, flag, text):
        return {
            "f32": f32 + 0.5,
            "i32": i32 + 1,
            "i64": i64 + 1,
            "u8": u8 + tf.constant(1, tf.uint8),
            "flag": ~flag,
            "text": tf.strings.join([text, text]),
            "same": text,
            "raw_bytes": text,
            "line": self.table.lookup(text),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def positive(self, x):
        with tf.control_dependencies([tf.debugging.assert_positive(x, "only positive numbers, please")]):
            return {"y": tf.identity(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def uneven(self, x):
        return {"total": tf.reduce_sum(x), "twice": tf.concat([x, x], 0), "x": tf.identity(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="steps")])
    def slow(self, steps):
        counted = tf.while_loop(lambda step: step < tf.reduce_max(steps), lambda step: [step + 1], [0])[0]
        return {"counted": tf.fill(tf.shape(steps), counted)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def sizes(self, image_bytes):
        return {"size": tf.strings.length(image_bytes)}


def write_toy(folder: Path, factor: float = 2.0, warmup: list[prediction_log_pb2.PredictionLog] | None = None) -> Path:
    """Write a version of the toy; `serving_default` multiplies by `factor`. It appears under its name only when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = folder.with_name(f"building-{folder.name}")
    words = folder.with_name("words.txt")
    words.write_text("zero\none\ntwo\n")
    toy = Toy(factor, words)
    names = ("types", "positive", "uneven", "sizes", "slow")
    signatures = {"serving_default": toy.scale, **{name: getattr(toy, name) for name in names}}
    tf.saved_model.save(toy, str(building), signatures=signatures)
    words.unlink()
    if warmup is not None:
        (building / "assets.extra").mkdir()
        with tf.io.TFRecordWriter(str(building / "assets.extra" / "tf_serving_warmup_requests")) as writer:
            for log in warmup:
                writer.write(log.SerializeToString())
    return building.rename(folder)


def warmup_log(signature: str, **inputs: np.ndarray) -> prediction_log_pb2.PredictionLog:
    """A warm-up request to a signature of the toy."""
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    for name, value in inputs.items():
        log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log


TYPES_INPUTS = {
    "f32": np.array([0.25, -1.0], np.float32),
    "i32": np.array([-5, 7], np.int32),
    "i64": np.array([2**40, -1], np.int64),
    "u8": np.array([[1, 2], [253, 254]], np.uint8),
    "flag": np.array([True, False]),
    "text": np.array([b"two", b"\xff\x00" * 40], object),
}
"""Inputs of the signature `types`; one of the strings is short, one is long and no text."""

TYPES_OUTPUTS = {
    "f32": np.array([0.75, -0.5], np.float32),
    "i32": np.array([-4, 8], np.int32),
    "i64": np.array([2**40 + 1, 0], np.int64),
    "u8": np.array([[2, 3], [254, 255]], np.uint8),
    "flag": np.array([False, True]),
    "text": np.array([b"twotwo", b"\xff\x00" * 80], object),
    "same": TYPES_INPUTS["text"],
    "raw_bytes": TYPES_INPUTS["text"],
    "line": np.array([2, -1], np.int64),
}
"""What comes of them."""


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Equal names, types, shapes and values."""
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, name
        np.testing.assert_array_equal(got[name], value, err_msg=name)
