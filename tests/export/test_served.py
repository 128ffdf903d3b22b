"""An export on the stand-in for TensorFlow Serving, warmed up and batching, asked by several clients at once."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mrcnn_tf.data.images import ImageError, load_image
from mrcnn_tf.export.saved_model import export_saved_model
from mrcnn_tf.predict import Predictor
from mrcnn_tf.serving_client import ServingClient
from mrcnn_tf.serving_target import ServingError
from tests.export.pictures import BOX_TOLERANCE, MASK_IOU, SCORE_TOLERANCE, assert_same
from tests.serving.model_server import serve

SMOKE = Path(__file__).parents[2] / "export" / "tf_serving" / "smoke.sh"
METRICS = "/monitoring/prometheus/metrics"


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    folder = exported.parent
    flags = [f"--monitoring_config_file={folder / 'monitoring.config'}", "--enable_batching=true"]
    flags.append(f"--batching_parameters_file={folder / 'batching.config'}")
    with serve(folder, log=tmp_path_factory.mktemp("log") / "server.log", flags=flags) as server:
        yield server


@pytest.fixture(scope="module")
def predict(tiny_model):
    return Predictor(tiny_model)


def post(server, request):
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/mask_rcnn:predict"
    with urllib.request.urlopen(url, json.dumps(request).encode(), timeout=60) as answer:
        return json.load(answer)


def b64(path):
    return {"b64": base64.b64encode(path.read_bytes()).decode()}


def assert_found(found, expected):
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=BOX_TOLERANCE)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=SCORE_TOLERANCE)
    assert found.category_names == expected.category_names
    assert found.category_ids == expected.category_ids
    for ours, theirs in zip(expected.masks(), found.masks(), strict=True):
        assert (ours & theirs).sum() >= MASK_IOU * (ours | theirs).sum()


def test_several_clients_at_once_find_what_predict_finds(server, predict, pictures):
    """Batches are put together of pictures of all sizes, a broken one among them."""
    pictures = {**pictures, "broken": pictures["jpeg"].with_name("broken.jpg")}
    pictures["broken"].write_bytes(pictures["jpeg"].read_bytes()[:3000])
    urls = [f"grpc://127.0.0.1:{server.grpc_port}", f"http://127.0.0.1:{server.rest_port}"]

    def ask(url):
        found = {}
        with ServingClient(url) as client:
            for name, path in pictures.items():
                try:
                    found[name] = client.detect_file(path)
                except ImageError as error:
                    found[name] = str(error)
        return found

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, urls * 2))
    for answer in answers:
        assert "broken.jpg: broken or truncated JPEG" in answer.pop("broken")
        for name, found in answer.items():
            assert_found(found, predict(load_image(pictures[name])))
    with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}{METRICS}", timeout=10) as metrics:
        assert b"mask_rcnn" in metrics.read()


def test_rest_in_rows_and_in_columns(server, predict, pictures):
    expected = predict(load_image(pictures["turned"]))
    rows = post(server, {"instances": [b64(pictures["turned"]), {"b64": "bm90aGluZw=="}]})["predictions"]
    named = post(server, {"instances": [{"image_bytes": b64(pictures["turned"])}]})["predictions"]
    columns = post(server, {"inputs": {"image_bytes": [b64(pictures["turned"])]}, "signature_name": "full_masks"})["outputs"]
    assert [row["image_errors"] for row in rows] == ["", "neither a JPEG nor a PNG picture"]
    assert rows[0]["detection_boxes"] == named[0]["detection_boxes"] == columns["detection_boxes"][0]
    outputs = {name: np.array(value) for name, value in columns.items() if name != "detection_masks_rle_bytes"}
    for name in ("detection_class_names", "mask_paste"):
        outputs[name] = np.char.encode(outputs[name])
    counts = [base64.b64decode(value["b64"]) for value in columns["detection_masks_rle_bytes"][0]]
    assert_same({**outputs, "detection_masks_rle_bytes": [counts]}, 0, expected)


def test_a_request_larger_than_a_batch_is_cut_up(server, predict, pictures):
    names = ["png", "grey", "one_pixel", "alpha", "turned_png"]
    rows = post(server, {"instances": [b64(pictures[name]) for name in names]})["predictions"]
    for name, row in zip(names, rows, strict=True):
        expected = predict(load_image(pictures[name]))
        np.testing.assert_allclose(row["detection_scores"][: len(expected)], expected.scores, atol=SCORE_TOLERANCE)


def test_pixels_by_rest(server, predict, pictures):
    image = load_image(pictures["alpha"])
    (row,) = post(server, {"signature_name": "image", "instances": [{"images": image.tolist()}]})["predictions"]
    assert row["image_size"] == list(image.shape[:2])
    expected = predict(image)
    np.testing.assert_allclose(row["detection_boxes"][: len(expected)], expected.boxes, atol=BOX_TOLERANCE)


def test_the_server_logs_requests_that_can_warm_it_up(exported, pictures, tmp_path):
    """A log of real requests is what the next version may be warmed up with: the server takes it as it is."""
    folder = tmp_path / "served"
    shutil.copytree(exported, folder / "1")
    log = tmp_path / "requests"
    with serve(folder, log=tmp_path / "1.log", flags=[f"--request_log={log}"]) as server:
        post(server, {"instances": [b64(pictures["png"])]})
    warmup = folder / "1" / "assets.extra" / "tf_serving_warmup_requests"
    before = warmup.stat().st_size
    shutil.copyfile(log, warmup)
    assert 0 < warmup.stat().st_size < before
    with serve(folder, log=tmp_path / "2.log") as server:
        assert post(server, {"instances": [b64(pictures["png"])]})["predictions"][0]["num_detections"] > 0


def answers(client, path):
    try:
        return bool(len(client.detect_file(path)))
    except ServingError as error:
        if "no version 2" not in str(error) and "cannot be used now" not in str(error):
            raise
        return False


@pytest.mark.slow
def test_a_new_version_beside_an_old_one(exported, tiny_model, pictures, tmp_path):
    folder = tmp_path / "served"
    shutil.copytree(exported, folder / "1")
    state = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with serve(folder, log=tmp_path / "server.log", flags=["--file_system_poll_wait_seconds=0.2"]) as server:
        url = f"grpc://127.0.0.1:{server.grpc_port}"
        with ServingClient(url) as client, ServingClient(url, version=2) as new:
            client.detect_file(pictures["png"])
            export_saved_model(tiny_model, folder, max_batch_size=1, warmup=[pictures["png"]])
            deadline = time.monotonic() + 120
            while not (answered := answers(new, pictures["png"])) and time.monotonic() < deadline:
                # Nobody who does not ask for the new version notices that it is loading.
                assert len(client.detect_file(pictures["png"]))
                time.sleep(0.2)
            assert answered
    assert {path: path.read_bytes() for path in state} == state


@pytest.mark.slow
def test_smoke_script(tiny_model, pictures, tmp_path):
    """The script for the real server, with the stand-in in its place."""
    tiny_model.save(tmp_path / "model.keras")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TF_SERVER_COMMAND": f"{sys.executable} -m tests.serving.model_server",
        "GRPC_PORT": "28500",
        "REST_PORT": "28501",
        "SCORE_THRESHOLD": "0.1",
    }
    images = [pictures[name] for name in ("jpeg", "turned", "png")]
    command = ["bash", str(SMOKE), str(tmp_path / "model.keras"), *map(str, images)]
    done = subprocess.run(
        command, env=environment, cwd=SMOKE.parents[2], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== all is well" in done.stdout
