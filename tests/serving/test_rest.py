"""The REST API of the stand-in."""

import base64

import pytest
import requests

from tests.serving.model_server import serve

MODELS = """
model_config_list {
  config {
    name: "toy" base_path: "%s" model_platform: "tensorflow"
    model_version_policy { all {} }
    version_labels { key: "stable" value: 1 }
  }
}
"""
ROW, COLUMN = {"instances": [[1, 2]]}, {"inputs": [[1, 2]]}


@pytest.fixture(scope="module")
def base(tmp_path_factory, toy_versions):
    folder = tmp_path_factory.mktemp("rest")
    (folder / "models.config").write_text(MODELS % toy_versions)
    (folder / "monitoring.config").write_text("prometheus_config { enable: true }")
    flags = [
        *(f"--model_config_file={folder / 'models.config'}", f"--monitoring_config_file={folder / 'monitoring.config'}"),
        "--allow_version_labels_for_unavailable_models=true",
    ]
    with serve(log=folder / "log.txt", flags=flags) as server:
        yield f"http://127.0.0.1:{server.rest_port}"


@pytest.fixture(scope="module")
def session():
    with requests.Session() as session:
        yield session


@pytest.fixture
def ask(session, base):
    def ask(path, document=None):
        url = f"{base}{path}"
        return session.get(url, timeout=10) if document is None else session.post(url, json=document, timeout=10)

    return ask


@pytest.mark.parametrize(
    ("path", "factor"), [("", 3), ("/versions/1", 1), ("/versions/2", 2), ("/labels/stable", 1), ("/VERSIONS/2", 2)]
)
def test_row_form(ask, path, factor):
    answer = ask(f"/v1/models/toy{path}:predict", ROW)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == {"predictions": [{"y": [factor, 2 * factor], "rows": 1}]}


def test_columns(ask):
    assert ask("/v1/models/toy:predict", COLUMN).json() == {"outputs": {"y": [[3, 6]], "rows": [1]}}


def test_bytes_text_and_other_types(ask):
    types = {"f32": 0.5, "i32": 1, "i64": 2**40, "u8": [1, 2], "flag": True, "text": "two"}
    answer = ask("/v1/models/toy:predict", {"signature_name": "types", "instances": [types]}).json()
    assert answer == {
        "predictions": [
            {
                **{"f32": 1.0, "i32": 2, "i64": 2**40 + 1, "u8": [2, 3], "flag": False, "text": "twotwo", "same": "two"},
                **{"raw_bytes": {"b64": base64.b64encode(b"two").decode()}, "line": 2},
            }
        ]
    }


def test_pictures_in_base64(ask):
    picture = {"b64": base64.b64encode(b"\xff\xd8" * 500).decode()}
    for instance in (picture, {"image_bytes": picture}):
        answer = ask("/v1/models/toy:predict", {"signature_name": "sizes", "instances": [instance]})
        assert answer.json() == {"predictions": [1000]}


@pytest.mark.parametrize(
    ("path", "document", "status", "message"),
    [
        ("/v1/models/nobody:predict", ROW, 404, "Servable not found for request: Latest(nobody)"),
        ("/v1/models/toy/versions/9:predict", ROW, 404, "Servable not found for request: Specific(toy, 9)"),
        ("/v1/models/toy/labels/new:predict", ROW, 400, "Unrecognized servable version label: new"),
        ("/v1/models/toy", ROW, 400, "Malformed request: POST /v1/models/toy"),
        ("/v1/models/toy:predict", None, 400, "Malformed request: GET /v1/models/toy:predict"),
        ("/v1/models/nobody", None, 404, "Could not find any versions of model nobody"),
        ("/v1/models/nobody/metadata", None, 404, "Servable not found for request: Latest(nobody)"),
        ("/v1/models/toy:classify", {}, 501, "classify"),
        ("/v1/models/toy:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        ("/v1/models/toy:predict", {**ROW, "signature_name": "no"}, 400, 'Serving signature name: "no" not found'),
        ("/v1/models/toy:predict", {**ROW, "signature_name": 1}, 400, "'signature_name' key must be a string"),
        ("/v1/models/toy:predict", {"signature_name": "positive", "instances": [-1]}, 400, "only positive numbers"),
        ("/v1/models/toy:predict", {"signature_name": "uneven", "instances": [1]}, 400, "no shape information"),
    ],
)
def test_errors(ask, path, document, status, message):
    answer = ask(path, document)
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_columns_need_no_equal_rows(ask):
    answer = ask("/v1/models/toy:predict", {"signature_name": "uneven", "inputs": [1, 2]})
    assert answer.json() == {"outputs": {"total": 3, "twice": [1, 2, 1, 2], "x": [1, 2]}}


def test_other_paths(ask):
    assert ask("/").status_code == 404
    assert ask("/index.html", {}).status_code == 404


def test_bodies_that_are_no_json(base):
    answer = requests.post(f"{base}/v1/models/toy:predict", data=b"{", timeout=10)
    assert answer.status_code == 400
    assert "JSON Parse error" in answer.json()["error"]


def test_status(ask):
    fine = {"error_code": "OK", "error_message": ""}
    states = [{"version": version, "state": "AVAILABLE", "status": fine} for version in "123"]
    assert ask("/v1/models/toy").json() == {"model_version_status": states}
    assert ask("/v1/models/toy/versions/2").json() == {"model_version_status": states[1:2]}


def test_metadata(ask):
    content = ask("/v1/models/toy/versions/1/metadata").json()
    assert content["model_spec"] == {"name": "toy", "signature_name": "", "version": "1"}
    signature = content["metadata"]["signature_def"]["signature_def"]["types"]
    assert signature["inputs"]["u8"]["dtype"] == "DT_UINT8"
    assert signature["inputs"]["u8"]["tensor_shape"]["dim"][1] == {"size": "2", "name": ""}


def test_metrics_at_the_default_path(ask):
    ask("/v1/models/toy:predict", ROW)
    ask("/v1/models/toy:predict", {})
    page = ask("/monitoring/prometheus/metrics").text
    assert "# TYPE :tensorflow:serving:request_count counter" in page
    assert ':tensorflow:serving:request_count{model_name="toy",status="INVALID_ARGUMENT"}' in page
    assert ':tensorflow:serving:request_latency_bucket{model_name="toy",API="predict",entrypoint="REST",le="+Inf"}' in page
    assert ':tensorflow:serving:runtime_latency_sum{model_name="toy",API="Predict",runtime="TF1"}' in page
