"""The stand-in as a process: gRPC, deadlines, the log of requests."""

import re
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from tests.serving.asking import arrays, predict_request
from tests.serving.model_server import serve
from tests.serving.toys import TYPES_INPUTS, TYPES_OUTPUTS, assert_same

MODELS = """
model_config_list {
  config {
    name: "toy" base_path: "%(base)s" model_platform: "tensorflow"
    model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels { key: "stable" value: 1 }
    version_labels { key: "canary" value: 2 }
  }
  config { name: "newest" base_path: "%(base)s" model_platform: "tensorflow" }
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder, toy_versions):
    (folder / "models.config").write_text(MODELS % {"base": toy_versions})
    flags = [
        *(f"--model_config_file={folder / 'models.config'}", "--allow_version_labels_for_unavailable_models"),
        *(f"--request_log={folder / 'requests'}", "--rest_api_timeout_in_ms=300"),
    ]
    with serve(log=folder / "log.txt", flags=flags) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture
def prediction(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def model_service(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


X = np.array([[1, 2], [3, 4]], np.float32)


def test_every_type(prediction):
    assert_same(arrays(prediction.Predict(predict_request(signature="types", **TYPES_INPUTS))), TYPES_OUTPUTS)


def test_no_python_op_can_have_taken_part(server):
    loaded = Path(f"/proc/{server.pid}/maps").read_text()
    assert "libtensorflow_cc.so.2" in loaded
    assert "_pywrap_tensorflow_internal" not in loaded


@pytest.mark.parametrize(
    ("choice", "factor"), [({"version": 1}, 1), ({"version": 2}, 2), ({"label": "stable"}, 1), ({"label": "canary"}, 2), ({}, 2)]
)
def test_versions_and_labels(prediction, choice, factor):
    response = prediction.Predict(predict_request(x=X, **choice))
    np.testing.assert_array_equal(arrays(response)["y"], factor * X)
    assert response.model_spec.name == "toy"
    assert response.model_spec.version.value == factor
    assert response.model_spec.signature_name == "serving_default"


def test_the_default_policy_serves_the_newest(prediction):
    np.testing.assert_array_equal(arrays(prediction.Predict(predict_request("newest", x=X)))["y"], 3 * X)


def test_output_filter(prediction):
    assert list(prediction.Predict(predict_request(outputs=["rows"], x=X)).outputs) == ["rows"]


ONE = np.ones((1, 1), np.float32)


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (predict_request("nobody", x=ONE), "NOT_FOUND", "Servable not found for request: Latest(nobody)"),
        (predict_request(version=7, x=ONE), "NOT_FOUND", "Servable not found for request: Specific(toy, 7)"),
        (predict_request(label="old", x=ONE), "INVALID_ARGUMENT", "Unrecognized servable version label: old"),
        (predict_request("", x=ONE), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (predict_pb2.PredictRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (predict_request(signature="no", x=ONE), "FAILED_PRECONDITION", 'Serving signature key "no" not found.'),
        (predict_request(x=ONE, z=ONE), "INVALID_ARGUMENT", "input size does not match signature: 2!=1 .* Sent extra: {z}"),
        (predict_request(), "INVALID_ARGUMENT", "Missing but required: {x}"),
        (predict_request(outputs=["z"], x=ONE), "INVALID_ARGUMENT", "alias not found in signature: z .* the set {rows,y}"),
        (predict_request(outputs=["y", "y"], x=ONE), "INVALID_ARGUMENT", "duplicate output tensor alias: y"),
        (predict_request(x=np.ones((1, 1))), "INVALID_ARGUMENT", "to be float but double is provided"),
        (predict_request(signature="positive", x=-ONE[0]), "INVALID_ARGUMENT", "only positive numbers, please"),
        (predict_request(x=np.ones(1, np.complex64)), "UNIMPLEMENTED", "tensor parsing error: x: "),
    ],
)
def test_statuses(prediction, request_, code, message):
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Predict(request_)
    assert caught.value.code().name == code
    pattern = message if ".*" in message else re.escape(message)
    assert re.search(pattern, caught.value.details()), caught.value.details()


def test_long_messages_are_cut(prediction):
    with pytest.raises(grpc.RpcError, match=r"TRUNCATED") as caught:
        prediction.Predict(predict_request(**{"z" * 20_000: ONE}))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(caught.value.details()) < 1100


def test_other_apis_are_not_there(prediction):
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Classify(classification_pb2.ClassificationRequest())
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_metadata(prediction):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "newest"
    response = prediction.GetModelMetadata(request)
    assert response.model_spec.version.value == 3
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def["types"].inputs) == set(TYPES_INPUTS)


@pytest.mark.parametrize(("fields", "message"), [([], "at least one metadata_field"), (["size"], "size is not supported")])
def test_metadata_that_is_not_there(prediction, fields, message):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = "toy"
    with pytest.raises(grpc.RpcError, match=message):
        prediction.GetModelMetadata(request)


def test_status(model_service):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "toy"
    states = model_service.GetModelStatus(request).model_version_status
    assert [(entry.version, entry.state, entry.status.error_code) for entry in states] == [(1, 30, 0), (2, 30, 0)]
    request.model_spec.version.value = 2
    assert [entry.version for entry in model_service.GetModelStatus(request).model_version_status] == [2]
    request.model_spec.version.value = 3
    with pytest.raises(grpc.RpcError, match="Could not find version 3 of model toy") as caught:
        model_service.GetModelStatus(request)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_deadlines_end_the_run(server, prediction):
    endless = np.array([2**31 - 1], np.int32)
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Predict(predict_request(signature="slow", steps=endless), timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/toy:predict"
    answer = requests.post(url, json={"signature_name": "slow", "inputs": endless.tolist()}, timeout=10)
    assert answer.status_code == 504
    # Neither run keeps a core busy any more.
    before = processor_ticks(server)
    time.sleep(0.3)
    assert processor_ticks(server) - before < 10


def processor_ticks(server):
    """Processor time of a process in hundredths of a second."""
    return int(Path(f"/proc/{server.pid}/stat").read_text().split()[13])


def test_log_of_requests(server, prediction, folder):
    request = predict_request(label="canary", x=np.full((1, 1), 77, np.float32))
    response = prediction.Predict(request)
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/toy/versions/1:predict"
    assert requests.post(url, json={"instances": [[78]]}, timeout=10).status_code == 200
    records = tf.data.TFRecordDataset(str(folder / "requests")).as_numpy_iterator()
    *_, first, second = map(prediction_log_pb2.PredictionLog.FromString, records)
    assert first.predict_log.request == request
    assert first.predict_log.response == response
    assert first.log_metadata.model_spec.version.value == 2
    assert second.predict_log.request.model_spec.version.value == 1
    assert arrays(second.predict_log.response)["y"] == 78
    np.testing.assert_array_equal(tf.make_ndarray(second.predict_log.request.inputs["x"]), [[78]])


def test_no_page_of_metrics_unless_asked_for(server):
    for path in ("/metrics", "/monitoring/prometheus/metrics"):
        assert requests.get(f"http://127.0.0.1:{server.rest_port}{path}", timeout=10).status_code == 404
