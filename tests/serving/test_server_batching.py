"""Batching, warm-up and monitoring of the stand-in as a process."""

import re
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import requests
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.serving.asking import arrays, predict_request
from tests.serving.model_server import serve

BATCHING = """
max_batch_size { value: 8 }
batch_timeout_micros { value: 300000 }
num_batch_threads { value: 2 }
allowed_batch_sizes: [1, 8]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory, toy_versions):
    folder = tmp_path_factory.mktemp("batching")
    (folder / "batching.config").write_text(BATCHING)
    (folder / "monitoring.config").write_text('prometheus_config { enable: true path: "/metrics" }')
    flags = [
        *("--enable_batching", f"--batching_parameters_file={folder / 'batching.config'}"),
        *(f"--monitoring_config_file={folder / 'monitoring.config'}", "--tensorflow_intra_op_parallelism=1"),
    ]
    with serve(toy_versions, model_name="toy", log=folder / "log.txt", flags=flags) as server:
        yield server


def read_metrics(server):
    page = requests.get(f"http://127.0.0.1:{server.rest_port}/metrics", timeout=10)
    assert page.headers["Content-Type"] == "text/plain"
    return dict(re.findall(r"^(\S+) (\S+)$", page.text, re.M))


def test_requests_of_several_clients_are_merged(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel, ThreadPoolExecutor(16) as pool:
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        sent = [predict_request(x=np.full((1, 2), number, np.float32)) for number in range(32)]
        for number, response in enumerate(pool.map(prediction.Predict, sent)):
            outputs = arrays(response)
            np.testing.assert_array_equal(outputs["y"], [[3 * number] * 2])
            assert outputs["rows"] in ([1], [8])
        # All of one batch hear of the one that fails.
        failing = [predict_request(signature="positive", x=np.array([number], np.float32)) for number in (-1, *[1] * 7)]
        for future in [pool.submit(prediction.Predict, request) for request in failing]:
            assert future.exception().code() == grpc.StatusCode.INVALID_ARGUMENT
    metrics = read_metrics(server)
    batches = int(metrics[":tensorflow:serving:batching_session:wrapped_run_count{}"])
    assert batches < 20
    assert metrics[':tensorflow:serving:request_count{model_name="toy",status="OK"}'] == "32"
    assert metrics[':tensorflow:serving:request_count{model_name="toy",status="INVALID_ARGUMENT"}'] == "8"
    latency = ':tensorflow:serving:request_latency_count{model_name="toy",API="Predict",entrypoint="GRPC"}'
    assert metrics[latency] == "32"


def test_warm_up_is_replayed_on_load(server, toy_versions):
    name = f':tensorflow:serving:model_warmup_records_read{{model_path="{toy_versions / "3"}",status="OK"}}'
    assert read_metrics(server)[name] == "2"
