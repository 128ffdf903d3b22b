"""The client of TensorFlow Serving against servers that answer, and against all that can be in the place of one."""

import io
import json
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mrcnn_tf import cli
from mrcnn_tf.data.images import ImageError, load_image
from mrcnn_tf.serving_client import ServingClient, detect_files, read_answer
from mrcnn_tf.serving_target import ServingError
from tests.serving_fakes import HANG_SECONDS, KINDS, changed, fake_server, outputs, without


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    # The filter replaces file descriptor 2 for good, which a test must not do to the others.
    monkeypatch.setattr(cli, "silence_tensorflow", lambda: None)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A PNG of 20 x 30 pixels."""
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(noise(20, 30)).save(path)
    return path


@pytest.fixture
def client_of():
    """A client that does not wait for long."""
    clients = []

    def connect(url, **options):
        clients.append(ServingClient(url, **{"first_wait": 0.02, "timeout": 20, **options}))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, [height, width, 3], np.uint8)


def unused_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def call(*arguments):
    return CliRunner().invoke(cli.app, ["serve-client", *(str(argument) for argument in arguments)])


# What is sent, and what comes back.


def test_detections(kind, picture, client_of):
    with fake_server(kind, "answer") as (url, fake):
        found = client_of(url).detect_file(picture)
    assert found.image_size == (20, 30)
    np.testing.assert_array_equal(found.boxes, np.array([[1, 2, 20, 10], [0, 0, 8.5, 9]], np.float32))
    np.testing.assert_array_equal(found.classes, [3, 1])
    np.testing.assert_array_equal(found.scores, np.array([0.9, 0.6], np.float32))
    assert found.category_names == ["étoile", "circle"]
    assert found.category_ids == [2**40, 7]
    assert found.categories[1] == {"id": 0, "name": ""}
    assert found.mask_probs is not None
    assert (found.mask_probs.shape, found.paste) == ((2, 28, 28), "expanded")
    assert (found.boxes.dtype, found.classes.dtype, found.mask_probs.dtype) == (np.float32, np.int32, np.float32)
    assert fake.pictures == [picture.read_bytes()]


def test_model_version_and_signature_are_named(picture, client_of):
    with fake_server("grpc", "answer") as (url, fake):
        client_of(url).detect_file(picture)
        client_of(url, model_name="two words", version=0).detect_file(picture)
    assert fake.asked == [("mask_rcnn", None, "serving_default"), ("two words", 0, "serving_default")]
    with fake_server("rest", "answer") as (url, fake):
        client_of(url).detect_file(picture)
        client_of(url + "/a/b/", model_name="two words", version=0).detect_file(picture)
    paths = ["/v1/models/mask_rcnn:predict", "/a/b/v1/models/two%20words/versions/0:predict"]
    assert fake.asked == [(path, "serving_default") for path in paths]


def test_jpeg_is_sent_as_it_is_whatever_its_name(tmp_path, kind, client_of):
    path = tmp_path / "photo.tiff"
    Image.fromarray(noise(16, 24)).save(path, format="JPEG")
    with fake_server(kind, "answer") as (url, fake):
        assert client_of(url).detect_file(path).image_size == (16, 24)
    assert fake.pictures == [path.read_bytes()]


@pytest.mark.parametrize("suffix", ["tif", "webp", "bmp", "gif"])
def test_other_kinds_are_sent_as_png(tmp_path, suffix, client_of):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(noise(16, 24)).save(path)
    with fake_server("rest", "answer") as (url, fake):
        client_of(url).detect_file(path)
    sent = Image.open(io.BytesIO(fake.pictures[0]))
    assert sent.format == "PNG"
    np.testing.assert_array_equal(np.asarray(sent), load_image(path))


def test_model_without_masks(kind, picture, client_of):
    with fake_server(kind, "answer", model=without("detection_masks", "mask_paste")) as (url, _):
        found = client_of(url).detect_file(picture)
    assert found.mask_probs is None
    assert len(found) == 2


def test_nothing_found(kind, picture, client_of):
    with fake_server(kind, "answer", model=changed(num_detections=np.array([0], np.int32))) as (url, _):
        found = client_of(url).detect_file(picture)
    assert (len(found), found.categories, found.image_size) == (0, (), (20, 30))


def test_picture_that_the_server_cannot_read(kind, tmp_path, client_of):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xffno more")
    with fake_server(kind, "answer") as (url, _):
        client = client_of(url)
        with pytest.raises(ImageError, match=r"broken\.jpg: no JPEG and no PNG$"):
            client.detect_file(path)
        with pytest.raises(ImageError, match=r"^no JPEG and no PNG$"):
            client.detect_bytes(b"\xff\xd8\xffno more")


def test_picture_that_cannot_be_read_here(tmp_path, client_of):
    (tmp_path / "text.png").write_text("no picture")
    with fake_server("rest", "answer") as (url, fake):
        client = client_of(url)
        for name, message in (("text.png", "not a readable image"), ("none.png", "No such file"), (".", "Is a directory")):
            with pytest.raises(ImageError, match=message):
                client.detect_file(tmp_path / name)
    assert fake.asked == []


# Patience.


def test_unavailable_server_is_asked_again(kind, tmp_path, client_of):
    # Larger than what gRPC keeps for another attempt unless it is told to.
    path = tmp_path / "large.png"
    Image.fromarray(noise(400, 400)).save(path)
    assert path.stat().st_size > 1 << 18
    with fake_server(kind, "unavailable", "unavailable", "answer") as (url, fake):
        assert len(client_of(url).detect_file(path)) == 2
    assert fake.pictures == [path.read_bytes()] * 3


def test_dropped_connection_and_gateway_without_a_server(picture, client_of):
    with fake_server("rest", "drop", "bad_gateway", "answer") as (url, fake):
        assert len(client_of(url).detect_file(picture)) == 2
    assert len(fake.asked) == 3


def test_server_that_stays_unavailable(kind, picture, client_of):
    with fake_server(kind, "unavailable") as (url, fake):
        with pytest.raises(ServingError, match=rf"^{url}: no answer after \d\.\d s and up to 2 retries: .*queue is full$"):
            client_of(url, retries=2).detect_file(picture)
        assert len(fake.asked) == 3
        with pytest.raises(ServingError, match="up to 0 retries"):
            client_of(url, retries=0).detect_file(picture)
    assert len(fake.asked) == 4


def test_gateway_that_stays_without_a_server(picture, client_of):
    with fake_server("rest", "bad_gateway") as (url, _), pytest.raises(ServingError, match=r"retries: HTTP 502 Bad Gateway$"):
        client_of(url, retries=1).detect_file(picture)


def test_no_server(kind, picture, client_of):
    url = f"{'grpc' if kind == 'grpc' else 'http'}://127.0.0.1:{unused_port()}"
    started = time.monotonic()
    with pytest.raises(ServingError, match=rf"^{url}: no answer after 0\.\d s and up to 4 retries: .*[Cc]onnection refused"):
        client_of(url).detect_file(picture)
    # The waits between the attempts: 0.02, 0.04, 0.08, 0.16, give or take a fifth; REST goes without the first.
    assert time.monotonic() - started > 0.2


def test_server_that_starts_while_it_is_asked(kind, picture, client_of):
    port = unused_port()

    def start():
        with fake_server(kind, "answer", port=port):
            done.wait(20)

    done, starter = threading.Event(), threading.Timer(0.1, start)
    client = client_of(f"{'grpc' if kind == 'grpc' else 'http'}://127.0.0.1:{port}", first_wait=0.1, retries=3)
    starter.start()
    try:
        assert len(client.detect_file(picture)) == 2
    finally:
        done.set()
        starter.join()


def test_new_client_does_not_wait_for_what_another_met(kind, picture, client_of):
    port = unused_port()
    url = f"{'grpc' if kind == 'grpc' else 'http'}://127.0.0.1:{port}"
    with pytest.raises(ServingError, match="no answer"):
        client_of(url, retries=0).detect_file(picture)
    with fake_server(kind, "answer", port=port):
        assert len(client_of(url, retries=0).detect_file(picture)) == 2


def test_unknown_host(kind, picture, client_of):
    with pytest.raises(ServingError, match="no answer after"):
        client_of(f"{'grpc' if kind == 'grpc' else 'http'}://nowhere.invalid:85", retries=1).detect_file(picture)


def test_server_is_started_again_between_two_pictures(kind, picture, client_of):
    with fake_server(kind, "answer") as (url, fake):
        client = client_of(url, first_wait=0.2)
        client.detect_file(picture)
    with fake_server(kind, "answer", port=fake.port) as (_, again):
        assert len(client.detect_file(picture)) == 2
    assert len(again.asked) == 1


def test_silent_server(kind, picture, client_of):
    with fake_server(kind, "hang") as (url, fake):
        started = time.monotonic()
        with pytest.raises(ServingError, match=rf"^{url}: no answer within 0\.5 s \(--timeout\)$"):
            client_of(url, timeout=0.5).detect_file(picture)
        assert time.monotonic() - started < HANG_SECONDS / 2
        assert len(fake.asked) == 1


def test_answer_that_takes_too_long(picture, client_of):
    with fake_server("rest", "trickle") as (url, _):
        started = time.monotonic()
        with pytest.raises(ServingError, match=r"no answer within 0\.3 s"):
            client_of(url, timeout=0.3).detect_file(picture)
        assert time.monotonic() - started < HANG_SECONDS / 2


def test_no_attempt_after_the_time_is_over(picture, client_of):
    with fake_server("rest", "unavailable") as (url, fake):
        with pytest.raises(ServingError, match="no answer"):
            client_of(url, timeout=0.3, first_wait=0.4, retries=30).detect_file(picture)
        assert len(fake.asked) <= 3


def test_answer_that_is_too_large(kind, picture, client_of):
    with fake_server(kind, "large") as (url, fake):
        with pytest.raises(ServingError, match=rf"^{url}: the answer is larger than 0\.2 MB \(--max-answer-mb\)$"):
            client_of(url, max_answer_mb=0.2).detect_file(picture)
        assert len(fake.asked) == 1


def test_answer_that_breaks_off(picture, client_of):
    with fake_server("rest", "cut") as (url, _), pytest.raises(ServingError, match=r"no answer after .*IncompleteRead"):
        client_of(url).detect_file(picture)


# Servers and models that are others than thought.


@pytest.mark.parametrize(
    ("versions", "version", "message"),
    [
        ({}, None, r"no model 'mask_rcnn' there; the name \(--model-name\) must be one of the server's models.config"),
        ({}, 3, r"no model 'mask_rcnn' there; the name"),
        ({2: "AVAILABLE", 1: "END"}, 3, r"no version 3 of model 'mask_rcnn' there \(--version\); .* 1 \(END\), 2 \(AVAILABLE\)$"),
        ({1: "LOADING"}, None, r"model 'mask_rcnn' cannot be used now; its versions: 1 \(LOADING\)$"),
        ({1: "LOADING"}, 1, r"model 'mask_rcnn' cannot be used now"),
        (None, None, r"no model 'mask_rcnn'; the name .*: Servable not found for request$"),
        (None, 3, r"no model 'mask_rcnn', or no version 3 of it; the name"),
    ],
)
def test_no_such_model(kind, picture, client_of, versions, version, message):
    with fake_server(kind, "not_found", versions=versions) as (url, _), pytest.raises(ServingError, match=f"^{url}: {message}"):
        client_of(url, version=version).detect_file(picture)


def test_model_that_does_not_take_pictures(kind, picture, client_of):
    with fake_server(kind, "refused") as (url, _):
        with pytest.raises(ServingError, match="does not take image_bytes at signature serving_default") as raised:
            client_of(url).detect_file(picture)
        assert "input size does not match signature" in str(raised.value)
        assert len(str(raised.value)) < 600


def test_model_that_fails(kind, picture, client_of):
    with fake_server(kind, "failed") as (url, fake):
        with pytest.raises(ServingError, match=rf"^{url}: (INTERNAL|HTTP 500): out of luck$"):
            client_of(url).detect_file(picture)
        assert len(fake.asked) == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (without("detection_boxes", "image_errors"), "outputs are missing: image_errors, detection_boxes$"),
        (without("mask_paste"), "outputs are missing: mask_paste$"),
        (changed(num_detections=np.array([6], np.int32)), "num_detections is 6, but there are 5 boxes"),
        (changed(mask_paste=np.array([b"glued"], object)), "paste must be one of"),
        (changed(detection_classes=np.zeros([1, 5], np.int32)), r"classes must be in 1\.\."),
        (changed(detection_scores=np.zeros([1, 5, 2], np.float32)), "scores must be"),
        (changed(image_size=np.array([[1, 2, 3]], np.int32)), "too many values"),
        (changed(image_size=np.array([7], np.int32)), ""),
        (changed(detection_category_ids=np.zeros([1, 1], np.int64)), "shorter"),
    ],
)
def test_model_that_answers_otherwise(kind, picture, client_of, model, message):
    expected = f"^(grpc|http)://.*model 'mask_rcnn' does not answer as one of `mrcnn-tf export saved-model` does: .*{message}"
    with fake_server(kind, "answer", model=model) as (url, _), pytest.raises(ServingError, match=expected):
        client_of(url).detect_file(picture)


def test_outputs_without_names_or_batch(picture, client_of):
    with fake_server("rest", "only_output") as (url, _), pytest.raises(ServingError, match="one prediction with named outputs"):
        client_of(url).detect_file(picture)
    model = changed(detection_scores=np.float32(1), num_detections=np.zeros(2, np.int32))
    with (
        fake_server("grpc", "answer", model=model) as (url, _),
        pytest.raises(ServingError, match=r"batch axis in detection_scores, num_detections$"),
    ):
        client_of(url).detect_file(picture)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("html", "got HTTP 200 with text/html; is the address right"),
        ("moved", "got HTTP 301 with text/html, moved to https://elsewhere/"),
        ("other_json", r"got HTTP 404 with the keys \['message'\]"),
        ("json_list", "got HTTP 200 with application/json"),
    ],
)
def test_other_http_servers(picture, client_of, step, message):
    with fake_server("rest", step) as (url, fake):
        with pytest.raises(ServingError, match=f"^{url}: expected an answer of TensorFlow Serving, {message}"):
            client_of(url).detect_file(picture)
        assert len(fake.asked) == 1


def test_other_grpc_server(picture, client_of):
    with (
        fake_server("grpc", "no_service") as (url, _),
        pytest.raises(ServingError, match="expected an answer of TensorFlow Serv"),
    ):
        client_of(url).detect_file(picture)


def test_wrong_protocol(kind, picture, client_of):
    with fake_server(kind, "answer") as (url, fake):
        other = "http" if kind == "grpc" else "grpc"
        message = f"does not speak {'REST' if kind == 'grpc' else 'gRPC'};.* try {url.partition(':')[0]}://"
        with pytest.raises(ServingError, match=message):
            client_of(f"{other}://127.0.0.1:{fake.port}").detect_file(picture)


def test_rest_does_not_insist_where_that_cannot_help(picture, client_of):
    with fake_server("grpc", "answer") as (url, _):
        started = time.monotonic()
        with pytest.raises(ServingError, match="does not speak REST"):
            client_of(url.replace("grpc", "http"), first_wait=2).detect_file(picture)
    with fake_server("rest", "answer") as (url, _), pytest.raises(ServingError, match="SSL"):
        client_of(url.replace("http", "https"), first_wait=2).detect_file(picture)
    assert time.monotonic() - started < 1.5


def test_grpc_server_without_tls(picture, client_of):
    with fake_server("grpc", "answer") as (url, _), pytest.raises(ServingError, match="SSL"):
        client_of(url.replace("grpc", "grpcs"), retries=1).detect_file(picture)


# Arguments.


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8500", "expected grpc://HOST:PORT"),
        ("ftp://localhost:8500", "expected grpc://HOST:PORT"),
        ("", "expected grpc://HOST:PORT"),
        ("http://:8501", "expected grpc://HOST:PORT"),
        ("http://localhost", "no port; .*8500 for gRPC, 8501 for REST"),
        ("grpc://localhost:0", "no port"),
        ("grpc://localhost:99999", "Port out of range"),
        ("grpc://localhost:port", "expected grpc://HOST:PORT"),
        ("grpc://[::1:8500", "expected grpc://HOST:PORT"),
        ("grpc://localhost:8500/prefix", "gRPC has no path"),
        ("http://localhost:8501/v1/models/x:predict", "leave /v1/models out"),
        ("http://localhost:8501/?a=b", "and nothing else"),
    ],
)
def test_urls_that_cannot_be(url, message):
    with pytest.raises(ValueError, match=message):
        ServingClient(url)


def test_password_is_not_repeated():
    with pytest.raises(ValueError, match="and nothing else") as raised:
        ServingClient("https://user:secret@localhost:8501")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["grpc://[::1]:8500", "grpcs://a.b:1/", "HTTP://localhost:8501", "https://localhost:8501/a/b/"])
def test_urls_that_can_be(url):
    ServingClient(url).close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name": ""}, "name of a model"),
        ({"model_name": "a/b"}, "name of a model"),
        ({"version": -1}, "whole number from 0"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"timeout": float("nan")}, "timeout must be above 0"),
        ({"timeout": float("inf")}, "at most 86400 seconds"),
        ({"retries": -1}, "retries must be 0 or more"),
        ({"retries": 5}, "gRPC makes at most 4 retries, got 5"),
        ({"max_answer_mb": 0}, "max_answer_mb must be above 0"),
        ({"max_answer_mb": 3000}, "at most 2000"),
        ({"first_wait": 0}, "first_wait must be above 0"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        ServingClient("grpc://localhost:8500", **options)


@pytest.mark.parametrize("package", ["grpc", "tensorflow_serving.apis"])
def test_packages_that_are_not_installed(monkeypatch, package):
    monkeypatch.delitem(sys.modules, "mrcnn_tf.serving_grpc", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ServingError, match=r"pip install 'mrcnn-tf\[serving\]'"):
        ServingClient("grpc://localhost:8500")
    ServingClient("http://localhost:8501").close()


def test_answer_with_lists_and_with_arrays_is_the_same(picture):
    arrays = {name: value[0] for name, value in outputs(picture.read_bytes()).items()}
    lists = {name: value if isinstance(value, bytes) else value.tolist() for name, value in arrays.items()}
    one, two = read_answer(arrays), read_answer(lists)
    np.testing.assert_array_equal(one.boxes, two.boxes)
    assert (one.categories, one.image_size, one.paste) == (two.categories, two.image_size, two.paste)
    assert json.dumps(one.to_records("a")) == json.dumps(two.to_records("a"))


# The command.


def test_command_leaves_drawings_and_detections(kind, picture, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xffno more")
    output = tmp_path / "out"
    with fake_server(kind, "answer") as (url, _):
        result = call(picture, "--url", url, "--output", output, "--score-threshold", 0.7)
        assert result.exit_code == 0, result.output
        assert "1 objects in 1 pictures" in result.output
        result = call(broken, picture, "--url", url, "--output", output)
    assert result.exit_code == 1
    assert "warning: left out:" in result.output
    assert "2 objects in 1 pictures" in result.output
    records = json.loads((output / "detections.json").read_text(encoding="utf-8"))
    assert [(record["category_id"], record["category_name"]) for record in records] == [(2**40, "étoile"), (7, "circle")]
    assert all(record["segmentation"]["size"] == [20, 30] for record in records)
    assert load_image(output / "picture.png").shape == (440, 660, 3)
    assert not (output / "broken.png").exists()


def test_picture_that_only_the_server_cannot_read(picture, tmp_path, client_of):
    def model(image):
        return outputs(b"" if len(fake.asked) == 1 else image)

    with fake_server("rest", "answer", model=model) as (url, fake):
        summary = detect_files(client_of(url), [picture, picture], tmp_path, progress=False)
    assert summary["errors"] == {str(picture): f"{picture}: no JPEG and no PNG"}
    assert (summary["images"], summary["detections"]) == (1, 2)


def test_picture_of_another_size_there(picture, tmp_path, client_of):
    with fake_server("rest", "answer", model=changed(image_size=np.array([[30, 20]], np.int32))) as (url, _):
        summary = detect_files(client_of(url), [picture], tmp_path, progress=False)
    assert "the server reads it as a picture of (30, 20) (height, width), here it is one of (20, 30)" in str(summary["errors"])


def test_command_stops_at_the_first_error_of_the_server(kind, picture, tmp_path):
    with fake_server(kind, "answer", "failed") as (url, fake):
        result = call(picture, picture.parent / "*.png", picture.parent / ".." / picture.parent.name / picture.name,
                      "--url", url, "--output", tmp_path)  # fmt: skip
        assert len(fake.asked) == 2
    assert result.exit_code == 1
    assert f"error: {url}: " in result.output
    assert not (tmp_path / "detections.json").exists()


def test_command_passes_its_options_on(picture, tmp_path):
    with fake_server("rest", "answer", "answer", "hang") as (url, fake):
        options = ("--url", url, "--output", tmp_path, "--model-name", "mine", "--version", 4)
        assert call(picture, *options).exit_code == 0
        assert fake.asked == [("/v1/models/mine/versions/4:predict", "serving_default")]
        assert "larger than 0.001 MB (--max-answer-mb)" in call(picture, *options, "--max-answer-mb", 0.001).output
        result = call(picture, *options, "--timeout", 0.2)
    assert "no answer within 0.2 s" in result.output
    result = call(picture, *options, "--retries", 0)
    assert "up to 0 retries" in result.output
    assert call(picture, "--url", "localhost", "--output", tmp_path).output.startswith("error: localhost: expected grpc://")


def test_rest_needs_no_tensorflow(picture, tmp_path):
    code = (
        "import sys; from mrcnn_tf import cli\n"
        "try: cli.app(sys.argv[1:])\n"
        "finally: print('tensorflow' in sys.modules, 'keras' in sys.modules, 'grpc' in sys.modules)"
    )
    with fake_server("rest", "answer") as (url, _):
        command = [sys.executable, "-c", code, "serve-client", str(picture), "--url", url, "--output", str(tmp_path)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "False False False"
