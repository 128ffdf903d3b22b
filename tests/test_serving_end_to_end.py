"""The clients, those of docs/serving.md too, against the stand-in for TensorFlow Serving with a toy model of the contract."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from mrcnn_tf import cli
from mrcnn_tf.data.images import ImageError
from mrcnn_tf.serving_client import ServingClient
from mrcnn_tf.serving_target import ServingError
from tests.serving.model_server import serve

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
SIZE = (20, 30)
BROKEN = b"\xff\xd8\xff"
MASK = np.pad(np.ones([10, 8], np.uint8), [[5, 5], [12, 10]])


class Toy(tf.Module):
    """Finds one object in each picture: its lower half, a "käfer"."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def detect(self, image_bytes):
        faulty = tf.strings.length(image_bytes) < 40
        sizes = tf.map_fn(self._size, (image_bytes, faulty), fn_output_signature=tf.int32)
        counts = tf.where(faulty, 0, 1)
        found = tf.cast(counts, tf.float32)
        height, width = tf.unstack(tf.cast(sizes, tf.float32), axis=1)
        rows = tf.stack([tf.stack([height / 2, 0 * width, height, width], axis=1), tf.zeros([tf.shape(sizes)[0], 4])], axis=1)

        def padded(value, empty):
            return tf.stack([tf.where(faulty, empty, value), tf.fill(tf.shape(faulty), empty)], axis=1)

        return {
            "detection_boxes": rows,
            "detection_classes": padded(2, 0),
            "detection_scores": tf.stack([found * 0.75, found * 0], axis=1),
            "num_detections": counts,
            "image_size": sizes,
            "detection_class_names": padded("käfer", ""),
            "detection_category_ids": padded(tf.constant(2**33, tf.int64), tf.constant(0, tf.int64)),
            "detection_masks": tf.ones([tf.shape(sizes)[0], 2, 28, 28]) * found[:, None, None, None],
            "mask_paste": tf.fill(tf.shape(faulty), "stretched"),
            "image_errors": tf.where(faulty, "not a whole picture", ""),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def full(self, image_bytes):
        found = self.detect(image_bytes)
        counts = coco_mask.encode(np.asfortranarray(MASK))["counts"]
        present = found["detection_classes"] > 0
        return {**found, "detection_masks_rle_bytes": tf.where(present, tf.constant(counts), b"")}

    @staticmethod
    def _size(picture):
        image_bytes, faulty = picture
        none = tf.zeros([2], tf.int32)
        return tf.cond(faulty, lambda: none, lambda: tf.shape(tf.io.decode_image(image_bytes, expand_animations=False))[:2])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The stand-in with two versions of the toy, and one model that is none of ours."""
    folder = tmp_path_factory.mktemp("models")
    toy = Toy()
    for version in (1, 2):
        signatures = {"serving_default": toy.detect, "full_masks": toy.full}
        tf.saved_model.save(toy, str(folder / "toy" / str(version)), signatures=signatures)
    other = tf.Module()
    other.double = tf.function(lambda x: {"y": 2 * x}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    tf.saved_model.save(other, str(folder / "other" / "1"), signatures={"serving_default": other.double})
    rest = 'model_platform: "tensorflow" model_version_policy { all {} }'
    entries = [
        f'config {{ name: "{name}" base_path: "{folder / path}" {rest} }}'
        for name, path in (("mask_rcnn", "toy"), ("other", "other"))
    ]
    (folder / "models.config").write_text(f"model_config_list {{ {' '.join(entries)} }}")
    with serve(log=folder / "log", flags=[f"--model_config_file={folder / 'models.config'}"]) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def url(request, server, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr(cli, "silence_tensorflow", lambda: None)
    return f"{request.param}://127.0.0.1:{server.grpc_port if request.param == 'grpc' else server.rest_port}"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(np.zeros([*SIZE, 3], np.uint8)).save(path)
    return path


def encoded(height, width, kind="PNG"):
    data = io.BytesIO()
    Image.fromarray(np.zeros([height, width, 3], np.uint8)).save(data, format=kind)
    return data.getvalue()


def test_detections(url, photo):
    with ServingClient(url) as client:
        found = client.detect_file(photo)
        assert client.detect_bytes(encoded(7, 9)).image_size == (7, 9)
    assert (found.image_size, found.category_names, found.category_ids) == (SIZE, ["käfer"], [2**33])
    np.testing.assert_array_equal(found.boxes, np.array([[10, 0, 20, 30]], np.float32))
    assert (found.paste, found.scores.tolist()) == ("stretched", [0.75])
    np.testing.assert_array_equal(found.masks()[0], np.arange(20)[:, None].repeat(30, axis=1) >= 10)


def test_faulty_picture(url):
    with ServingClient(url, version=1) as client, pytest.raises(ImageError, match=r"^not a whole picture$"):
        client.detect_bytes(BROKEN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name": "nobody"}, "no model 'nobody' there; the name"),
        ({"version": 3}, r"no version 3 of model 'mask_rcnn' there \(--version\); there are: 1 \(AVAILABLE\), 2 \(AVAILABLE\)$"),
        ({"model_name": "other"}, "model 'other' does not take image_bytes at signature serving_default"),
        ({"max_answer_mb": 0.001}, r"larger than 0\.001 MB"),
    ],
)
def test_errors(url, options, message):
    with ServingClient(url, **options) as client, pytest.raises(ServingError, match=f"^{url}: .*{message}"):
        client.detect_bytes(encoded(7, 9))


def test_command(url, photo, tmp_path):
    Image.fromarray(np.zeros([12, 18, 3], np.uint8)).save(tmp_path / "other.webp")
    arguments = ("serve-client", "--url", url, photo, tmp_path / "other.webp", "--output", tmp_path / "out")
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    records = json.loads((tmp_path / "out" / "detections.json").read_text(encoding="utf-8"))
    assert [record["bbox"] for record in records] == [[0, 10, 30, 10], [0, 6, 18, 6]]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"photo.png", "other.png", "detections.json"}


def page_blocks():
    """The Python of the page's section "Clients"."""
    section = PAGE.read_text(encoding="utf-8").partition("\n## Clients\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def run_block(block, server, photo):
    for port, other in (("8500", server.grpc_port), ("8501", server.rest_port)):
        block = block.replace(f"localhost:{port}", f"127.0.0.1:{other}")
    exec(compile(block.replace("photo.jpg", str(photo)), str(PAGE), "exec"), {})


def test_page_has_four_clients_of_few_lines():
    uses = ("mrcnn_tf", "requests.post(", "grpc.insecure_channel(", "coco_mask.decode(")
    assert all(use in block for use, block in zip(uses, page_blocks(), strict=True))
    assert not any("mrcnn_tf" in block for block in page_blocks()[1:])
    assert all(block.count("\n") <= 20 for block in page_blocks())


@pytest.mark.parametrize(
    ("number", "lines"),
    [
        (0, ["käfer 0.75 [10.  0. 20. 30.]"]),
        (1, ["käfer 0.75 x 0..30 y 10..20"]),
        (2, ["käfer 0.75 x 0..30 y 10..20"]),
        (3, [f"käfer (20, 30) {MASK.sum()} pixels"]),
    ],
)
def test_clients_of_the_page(server, photo, tmp_path, capsys, monkeypatch, number, lines):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    block = page_blocks()[number]
    run_block(block, server, photo)
    assert capsys.readouterr().out.splitlines() == lines
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(BROKEN)
    with pytest.raises((SystemExit, ImageError), match=r"broken\.jpg: not a whole picture$"):
        run_block(block, server, broken)
