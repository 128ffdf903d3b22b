"""Prediction: resizing and its undoing, one trace, and the files that are written."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_tf.config import ModelConfig
from mrcnn_tf.detections import Detections
from mrcnn_tf.predict import Predictor, predict_files, to_detections

CATEGORIES = ({"id": 9, "name": "thing"}, {"id": 4, "name": "other"})


class RedFinder:
    """A stand-in that keeps the model's contract: the box around all that is bright and red, and rows of padding."""

    def __init__(self, **preprocessing):
        self.config = ModelConfig(categories=CATEGORIES, preprocessing={"min_size": 96, "max_size": 160, **preprocessing})
        self.sizes = []

    def __call__(self, inputs, training):
        assert training is False
        images, sizes = inputs["images"], inputs["image_sizes"]
        tf.debugging.assert_equal(tf.shape(images)[1:3] % 32, 0)
        outside = tf.reduce_sum(images) - tf.reduce_sum(images[:, : sizes[0, 0], : sizes[0, 1]])
        tf.debugging.assert_near(outside / tf.reduce_sum(images + 1), 0.0, atol=1e-6)
        red = tf.cast(tf.where((images[0, :, :, 0] > 128) & (images[0, :, :, 1] < 128)), tf.float32)
        found = tf.shape(red)[0] > 0
        box = tf.concat([tf.reduce_min(red, axis=0), tf.reduce_max(red, axis=0) + 1], axis=0)
        box = tf.where(found, box, 0.0)
        return {
            "detection_boxes": tf.stack([box, tf.constant([5.0, 5.0, 5.0, 9.0]), tf.zeros(4)])[None],
            "detection_classes": tf.constant([[1, 2, 0]]),
            "detection_scores": tf.constant([[0.9, 0.8, 0.0]]),
            "detection_masks": tf.ones([1, 3, 28, 28]),
            "num_detections": tf.where(found, 2, 0)[None],
        }


def picture(height, width, box=None):
    image = np.zeros((height, width, 3), np.uint8)
    if box is not None:
        image[box[0] : box[2], box[1] : box[3], 0] = 255
    return image


def full_detections(image, score=0.9):
    """A detector: the whole picture is a thing, if there is any light in it."""
    count = int(image.any())
    return Detections(
        boxes=np.tile(np.float32([0, 0, *image.shape[:2]]), (count, 1)),
        classes=np.ones(count, np.int32),
        scores=np.full(count, score, np.float32),
        mask_probs=np.ones((count, 28, 28), np.float32),
        image_size=image.shape[:2],
        categories=CATEGORIES,
    )


@pytest.mark.parametrize(
    ("size", "box"),
    [((48, 64), (10, 20, 30, 50)), ((333, 200), (40, 30, 300, 100)), ((61, 397), (11, 50, 51, 350)), ((96, 96), (0, 0, 96, 96))],
)
def test_boxes_come_back_in_pixels_of_the_picture(size, box):
    found = Predictor(RedFinder())(picture(*size, box))
    # The box without area is gone, and the padding.
    assert len(found) == 1
    pixel = max(1.0, max(size) / 160 + 0.5, min(size) / 96 + 0.5)
    assert np.abs(found.boxes[0] - box).max() <= pixel
    assert found.image_size == size
    assert found.category_ids == [9]
    assert found.masks()[0].sum() == pytest.approx((box[2] - box[0]) * (box[3] - box[1]), rel=0.1)


def test_all_sizes_share_one_trace():
    predictor = Predictor(RedFinder())
    for size in [(40, 60), (61, 50), (1, 1), (300, 20)]:
        predictor(picture(*size, (0, 0, *size)))
    assert predictor._detect.experimental_get_tracing_count() == 1


def test_sizes_can_be_given():
    class Sizes(RedFinder):
        def __call__(self, inputs, training):
            boxes = tf.pad(tf.cast(inputs["image_sizes"], tf.float32), [[0, 0], [2, 0]])[:, None]
            return {
                "detection_boxes": boxes,
                "detection_classes": tf.constant([[1]]),
                "detection_scores": tf.cast(tf.shape(inputs["images"])[2], tf.float32)[None, None],
                "num_detections": tf.constant([1]),
            }

    found = Predictor(Sizes(), min_size=50, max_size=70)(picture(100, 200))
    # 35 x 70 padded to 64 x 96: the whole picture is found, and the width was 96.
    assert found.boxes.tolist() == [[0, 0, 100, 200]]
    assert found.scores.tolist() == [96]
    assert found.mask_probs is None


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (40, 60), (40, 60, 1)])
def test_odd_pictures(shape):
    found = Predictor(RedFinder())(np.full(shape, 200, np.uint8))
    assert len(found) == 0
    assert found.masks().shape == (0, *shape[:2])


def test_a_one_pixel_object_fills_its_picture():
    found = Predictor(RedFinder())(picture(1, 1, (0, 0, 1, 1)))
    assert found.boxes.tolist() == [[0, 0, 1, 1]]
    assert found.masks().all()


def test_low_scores_are_left_out():
    image = picture(50, 50, (5, 5, 40, 40))
    assert len(Predictor(RedFinder(), score_threshold=0.85)(image)) == 1
    assert len(Predictor(RedFinder(), score_threshold=0.95)(image)) == 0


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_anything_but_a_picture_is_refused(bad):
    with pytest.raises(ValueError, match="expected a uint8 picture"):
        Predictor(RedFinder())(bad)


def test_boxes_are_clipped_to_the_picture():
    outputs = {
        "detection_boxes": np.array([[-5, -5, 200, 300], [90, 0, 120, 10], [0, 0, 1, 1]], np.float32),
        "detection_classes": np.array([1, 2, 0]),
        "detection_scores": np.array([0.9, 0.8, 0.0], np.float32),
        "num_detections": np.int32(2),
    }
    found = to_detections(outputs, scale=(2.0, 3.0), image_size=(45, 80), categories=CATEGORIES)
    # The second lies wholly below the picture.
    assert found.boxes.tolist() == [[0, 0, 45, 80]]


@pytest.fixture
def folder(tmp_path):
    for name, value in [("a/one.png", 200), ("a/dark.png", 0), ("b/one.jpg", 200), ("a/one-2.png", 100)]:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 40, 3), value, np.uint8)).save(path)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"this is no picture")
    return tmp_path / "in"


def test_files_are_drawn_and_written_down(folder, tmp_path, capsys):
    names = ["a/one.png", "broken.jpg", "a/dark.png", "b/one.jpg", "a/one-2.png", "missing.png"]
    summary = predict_files(full_detections, [folder / name for name in names], tmp_path / "out", progress=False)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["dark.png", "detections.json", "one-2.png", "one-3.png", "one.png"]
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [record["file_name"] for record in records] == ["a/one.png", "b/one.jpg", "a/one-2.png"]
    assert records[0]["bbox"] == [0, 0, 40, 30]
    assert records[0]["category_id"] == 9
    assert coco_mask.decode(records[0]["segmentation"]).shape == (30, 40)
    assert (summary["images"], summary["detections"]) == (4, 3)
    assert [path.name for path in summary["drawings"]] == ["one.png", "dark.png", "one-3.png", "one-2.png"]
    assert sorted(summary["errors"]) == sorted([str(folder / "broken.jpg"), str(folder / "missing.png")])
    assert "broken.jpg" in capsys.readouterr().err


def test_unsure_detections_are_neither_drawn_nor_written(folder, tmp_path):
    def unsure(image):
        return full_detections(image, score=0.4)

    summary = predict_files(unsure, [folder / "a" / "one.png"], tmp_path / "out", score_threshold=0.5, progress=False)
    assert summary["detections"] == 0
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == []
    # Nothing but the photo, enlarged.
    assert np.unique(np.asarray(Image.open(tmp_path / "out" / "one.png"))).tolist() == [200]


def test_one_folder_gives_plain_file_names(folder, tmp_path):
    predict_files(full_detections, [folder / "a" / "one.png", folder / "a" / "one-2.png"], tmp_path / "out", progress=False)
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [record["file_name"] for record in records] == ["one.png", "one-2.png"]


def test_no_pictures_at_all(tmp_path):
    summary = predict_files(full_detections, [], tmp_path / "out", progress=False)
    assert (summary["images"], summary["errors"]) == (0, {})
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == []
