"""JSON of the REST API and tensors."""

import base64
import json

import numpy as np
import pytest
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from tests.serving.json_tensors import parse_object, read_inputs, write_outputs
from tests.serving.status import Code, StatusError


def infos(**types):
    return {name: meta_graph_pb2.TensorInfo(dtype=types_pb2.DataType.Value(f"DT_{kind}")) for name, kind in types.items()}


def b64(value):
    return {"b64": base64.b64encode(value).decode()}


TWO = infos(x="FLOAT", text="STRING")


@pytest.mark.parametrize(
    ("document", "row_form"),
    [
        ({"instances": [{"x": [1, 2.5], "text": "a"}, {"x": [3, 4], "text": b64(b"\xff")}]}, True),
        ({"inputs": {"x": [[1, 2.5], [3, 4]], "text": ["a", b64(b"\xff")]}}, False),
    ],
)
def test_named_inputs(document, row_form):
    inputs, got_row_form = read_inputs(document, TWO)
    assert got_row_form is row_form
    assert inputs["x"].dtype == np.float32
    np.testing.assert_array_equal(inputs["x"], [[1, 2.5], [3, 4]])
    assert inputs["text"].tolist() == [b"a", b"\xff"]


@pytest.mark.parametrize("form", ["instances", "inputs"])
def test_a_single_input_needs_no_name(form):
    inputs, _ = read_inputs({form: [b64(b"one"), "two"]}, infos(image_bytes="STRING"))
    assert inputs["image_bytes"].tolist() == [b"one", b"two"]
    inputs, _ = read_inputs({form: [[[1, 2], [3, 255]]]}, infos(images="UINT8"))
    assert inputs["images"].dtype == np.uint8
    np.testing.assert_array_equal(inputs["images"], [[[1, 2], [3, 255]]])


def test_one_picture_by_name():
    inputs, _ = read_inputs({"instances": [{"image_bytes": b64(b"jpeg")}]}, infos(image_bytes="STRING"))
    assert inputs["image_bytes"].tolist() == [b"jpeg"]


@pytest.mark.parametrize(
    ("kind", "values"), [("INT32", [-1, 2]), ("INT64", [2**40]), ("BOOL", [True, False]), ("DOUBLE", [0.1]), ("INT32", [])]
)
def test_types(kind, values):
    inputs, _ = read_inputs({"inputs": values}, infos(x=kind))
    assert inputs["x"].tolist() == values


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"inputs": [], "instances": []}, "only one of"),
        ({"instances": 1}, "Expecting 'instances' to be an list/array"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": [[1, 2]]}, "plain list, but expecting list of objects"),
        ({"instances": [{"x": 1, "text": "a"}, [1]]}, "Expecting object but got list at item 1"),
        ({"instances": [{"x": 1}]}, "keys must be equal to: text,x"),
        ({"instances": [{"x": 1, "text": "a", "z": 1}]}, "element: 0 key: z.*does not have named input: z"),
        ({"instances": [{"x": [1], "text": "a"}, {"x": [1, 2], "text": "a"}]}, r"Expecting shape \[1\] but got: \[2\]"),
        ({"inputs": [1]}, "plain value/list, but expecting an object"),
        ({"inputs": {"x": [1]}}, "Missing named input: text in 'inputs' object"),
        ({"inputs": {"x": [[1], 2], "text": [""]}}, "found at incorrect level"),
        ({"inputs": {"x": [[1], [2, 3]], "text": [""]}}, "list at unexpected size: 2 at level: 1 expected size: 1"),
        ({"inputs": {"x": [1, [2]], "text": [""]}}, "list at unexpected level"),
        ({"inputs": {"x": ["1"], "text": [""]}}, "not of expected type: float"),
        ({"inputs": {"x": [True], "text": [""]}}, "not of expected type: float"),
        ({"inputs": {"x": [1], "text": [1]}}, "not of expected type: string"),
        ({"inputs": {"x": [1], "text": [{"b64": "%"}]}}, "Unable to base64 decode"),
        ({"inputs": {"x": [1], "text": [{"b65": "aaaa"}]}}, "not formatted correctly for base64 data"),
    ],
)
def test_refused(document, message):
    with pytest.raises(StatusError, match=message) as caught:
        read_inputs(document, TWO)
    assert caught.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("value", [256, -1, 1.5])
def test_numbers_that_are_no_uint8(value):
    with pytest.raises(StatusError, match="not of expected type: uint8"):
        read_inputs({"inputs": [value]}, infos(x="UINT8"))


@pytest.mark.parametrize(
    ("body", "message"), [(b"", "document is empty"), (b"{", "JSON Parse error"), (b"[1]", "Is not object"), (b"\xff", "Parse")]
)
def test_bodies_that_are_no_json_object(body, message):
    with pytest.raises(StatusError, match=message):
        parse_object(body)


OUTPUTS = {
    "score": np.array([0.2, 1.0], np.float32),
    "name": np.array(["ü".encode(), b""], object),
    "mask_bytes": np.array([[b"\xff"], [b""]], object),
}


def test_row_form():
    rows = json.loads(write_outputs(OUTPUTS, row_form=True))["predictions"]
    assert rows == [
        {"score": 0.2, "name": "ü", "mask_bytes": [b64(b"\xff")]},
        {"score": 1.0, "name": "", "mask_bytes": [b64(b"")]},
    ]


def test_columns():
    columns = json.loads(write_outputs(OUTPUTS, row_form=False))["outputs"]
    assert columns == {"score": [0.2, 1.0], "name": ["ü", ""], "mask_bytes": [[b64(b"\xff")], [b64(b"")]]}


def test_a_single_output_has_no_name():
    outputs = {"count": np.array([1, 2], np.int32)}
    assert json.loads(write_outputs(outputs, row_form=True)) == {"predictions": [1, 2]}
    assert json.loads(write_outputs(outputs, row_form=False)) == {"outputs": [1, 2]}


def test_whole_and_infinite_numbers_stay_floats():
    body = write_outputs({"x": np.array([1, np.nan, np.inf], np.float32)}, row_form=False)
    assert body == b'{"outputs": [1.0, NaN, Infinity]}'


def test_row_form_needs_equal_rows():
    with pytest.raises(StatusError, match="Tensor name: b has inconsistent batch size: 3 expecting: 2"):
        write_outputs({"a": np.zeros(2), "b": np.zeros(3)}, row_form=True)
    with pytest.raises(StatusError, match="Tensor name: a has no shape information"):
        write_outputs({"a": np.array(1.0)}, row_form=True)
    assert json.loads(write_outputs({"a": np.array(1.0), "b": np.zeros(1)}, row_form=False))["outputs"] == {"a": 1.0, "b": [0.0]}


def test_text_must_be_utf8():
    with pytest.raises(StatusError, match="'name' holds bytes that are not UTF-8"):
        write_outputs({"name": np.array([b"\xff"], object)}, row_form=True)
