"""Warm-up requests: real ones, read with the published protos and run through the session loader."""

import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import prediction_log_pb2

from mrcnn_tf.data.images import ImageError
from mrcnn_tf.export.warmup import MAX_REQUESTS, WARMUP_FILE, batch_sizes, drawn_pictures, read_pictures, warmup_requests
from tests.serving.c_session import CSession


def test_each_signature_and_batch_size_is_asked_for_and_answers(exported, pictures):
    records = tf.data.TFRecordDataset(str(exported / WARMUP_FILE)).as_numpy_iterator()
    requests = [prediction_log_pb2.PredictionLog.FromString(record).predict_log.request for record in records]
    asked = []
    with CSession(exported) as session:
        for request in requests:
            assert request.model_spec.name == "mask_rcnn"
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            (batch,) = (len(value) for value in inputs.values())
            asked.append((request.model_spec.signature_name, batch))
            outputs = session.run_signature(request.model_spec.signature_name, inputs)
            assert outputs["image_size"].tolist() == [[300, 400]] * batch
            assert not any(outputs.get("image_errors", ()))
    assert sorted(asked) == sorted((name, batch) for name in ("serving_default", "image", "full_masks") for batch in (1, 2))


def test_batch_sizes():
    assert [batch_sizes(n) for n in (1, 2, 3, 4, 6, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_drawn_pictures_are_a_landscape_and_a_portrait():
    pictures = drawn_pictures()
    assert [picture.pixels.shape for picture in pictures] == [(480, 640, 3), (640, 480, 3)]
    for picture in pictures:
        np.testing.assert_array_equal(tf.io.decode_png(picture.data, channels=3), picture.pixels)


def test_pictures_of_other_kinds_become_png(tmp_path, pictures):
    image = Image.open(pictures["png"])
    image.save(tmp_path / "a.webp", lossless=True)
    data, pixels = read_pictures([tmp_path])[0]
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(pixels, np.asarray(image))
    assert read_pictures([pictures["turned"]])[0].data == pictures["turned"].read_bytes()
    assert read_pictures([pictures["turned"]])[0].pixels.shape == (400, 300, 3)
    (tmp_path / "b.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"b\.png"):
        read_pictures([tmp_path])


def test_too_many_requests_are_refused():
    with pytest.raises(ValueError, match=f"200 warm-up pictures make 1200 requests.*at most {MAX_REQUESTS}"):
        warmup_requests(drawn_pictures() * 100, name="m", signatures=["image", "full_masks"], sizes=[1, 2, 4])


def test_without_the_protos_the_extra_is_named(monkeypatch):
    for name in [*sys.modules]:
        if name.startswith("tensorflow_serving"):
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mrcnn-tf\[serving\]'"):
        warmup_requests(drawn_pictures(), name="m", signatures=["image"], sizes=[1])
