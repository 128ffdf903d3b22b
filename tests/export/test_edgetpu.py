"""The trunk for an Edge TPU: all in int8, and near what the trunk gives in float."""

import json

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from mrcnn_tf.data.images import load_image
from mrcnn_tf.export import edgetpu
from mrcnn_tf.export.edge_inputs import edge_input
from mrcnn_tf.export.folders import ExportError

SIZE = (128, 128)


@pytest.fixture(scope="module")
def inputs(tiny_model, pictures):
    return [
        edge_input(load_image(pictures[name]), tiny_model.config, SIZE) for name in ("jpeg", "png", "turned", "alpha", "grey")
    ]


@pytest.fixture(scope="module")
def written(tiny_model, inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tpu")
    return folder, edgetpu.write_edgetpu_trunk(tiny_model, folder, SIZE, inputs)


def test_tensors_are_of_8_bits_and_described(written):
    folder, told = written
    assert json.loads(json.dumps(told)) == told
    assert told["inputs"]["image"]["dtype"] == "uint8"
    assert {tensor["dtype"] for tensor in told["outputs"].values()} == {"int8"}
    assert {"p2", "p5", "objectness6", "deltas2"} <= set(told["outputs"])
    interpreter = Interpreter(model_path=str(folder / told["file"]))
    kinds = {np.dtype(detail["dtype"]).name for detail in interpreter.get_tensor_details()}
    # int32 are biases and sizes.
    assert kinds <= {"uint8", "int8", "int32"}


def test_near_the_trunk_in_float(written, tiny_model, inputs):
    folder, told = written
    image = np.full((1, *SIZE, 3), 90, np.uint8)
    image[0, 20:90, 30:100] = inputs[0].image[0, 20:90, 30:100]
    interpreter = Interpreter(model_path=str(folder / told["file"]))
    found = interpreter.get_signature_runner("trunk")(image=image)
    trunk = tiny_model.split()[0]
    expected = trunk({"images": image.astype(np.float32), "image_sizes": np.array([SIZE], np.int32)}, training=False)
    for name, level in (("p2", expected["features"][0]), ("p4", expected["features"][2]), ("deltas3", expected["deltas"][1])):
        tensor = told["outputs"][name]
        values = (found[name].astype(np.float32) - tensor["zero_point"]) * tensor["scale"]
        level = np.asarray(level)
        assert np.abs(values - level).mean() < 0.25 * level.std() + 0.01


def test_other_operations_are_refused(tiny_model, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(edgetpu, "_NEWEST", {**edgetpu._NEWEST, "DEPTHWISE_CONV_2D": 1})
    monkeypatch.delitem(edgetpu._NEWEST, "ADD")
    with pytest.raises(ExportError, match=r"does not take ADD version \d, DEPTHWISE_CONV_2D version \d"):
        edgetpu.write_edgetpu_trunk(tiny_model, tmp_path, SIZE, inputs)
    assert list(tmp_path.iterdir()) == []
