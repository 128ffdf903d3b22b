"""Prediction: resizing and its undoing, one trace, and the files that are written."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_tf.config import ModelConfig
from mrcnn_tf.detections import Detections
from mrcnn_tf.ops.restore import restore_detections
from mrcnn_tf.paste import paste_masks
from mrcnn_tf.predict import Predictor, predict_files

CATEGORIES = ({"id": 9, "name": "thing"}, {"id": 4, "name": "other"})


class RedFinder:
    """A stand-in that keeps the model's contract: the box around all that is bright and red, and rows of padding."""

    def __init__(self, *, paste="centred", box_ends="exclusive", **preprocessing):
        self.config = ModelConfig(
            categories=CATEGORIES,
            preprocessing={"min_size": 96, "max_size": 160, **preprocessing},
            mask_head={"paste": paste},
            box_ends=box_ends,
        )

    def __call__(self, inputs, training):
        assert training is False
        images, sizes = inputs["images"], inputs["image_sizes"]
        tf.debugging.assert_equal(tf.shape(images)[1:3] % 32, 0)
        preprocessing = self.config.preprocessing
        if preprocessing.padding == "square":
            tf.debugging.assert_equal(tf.shape(images)[1:3], preprocessing.max_size)
        missing = tf.shape(images)[1:3] - sizes[0]
        top, left = tf.unstack(missing // 2 if preprocessing.placement == "centre" else missing * 0)
        outside = tf.reduce_sum(images) - tf.reduce_sum(images[:, top : top + sizes[0, 0], left : left + sizes[0, 1]])
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


PREPROCESSING = {
    "detectron2": {},
    "torchvision": {"antialias": False, "quantize": False, "resize_rounding": "floor"},
    "model_garden": {"antialias": False, "resize_rounding": "half_even", "padding": "square"},
    "matterport": {"resize_rounding": "half_even", "enlarge_only": True, "padding": "square", "placement": "centre"},
    "centred": {"placement": "centre"},
}


@pytest.mark.parametrize("how", PREPROCESSING.values(), ids=PREPROCESSING)
@pytest.mark.parametrize(
    ("size", "box"),
    [((48, 64), (10, 20, 30, 50)), ((333, 200), (40, 30, 300, 100)), ((61, 397), (11, 50, 51, 350)), ((96, 96), (0, 0, 96, 96))],
)
def test_boxes_come_back_in_pixels_of_the_picture(size, box, how):
    found = Predictor(RedFinder(**how))(picture(*size, box))
    # The box without area is gone, and the padding.
    assert len(found) == 1
    pixel = max(1.0, max(size) / 160 + 0.5, min(size) / 96 + 0.5)
    assert np.abs(found.boxes[0] - box).max() <= pixel
    assert found.image_size == size
    assert found.category_ids == [9]
    assert found.masks()[0].sum() == pytest.approx((box[2] - box[0]) * (box[3] - box[1]), rel=0.1)


@pytest.mark.parametrize("how", PREPROCESSING.values(), ids=PREPROCESSING)
def test_all_sizes_share_one_trace(how):
    predictor = Predictor(RedFinder(**how))
    for size in [(40, 60), (61, 50), (1, 1), (300, 20)]:
        predictor(picture(*size, (0, 0, *size)))
    assert predictor._detect.experimental_get_tracing_count() == 1


class Inputs:
    """A stand-in that finds nothing and keeps what it was given."""

    def __init__(self, **preprocessing):
        self.config = ModelConfig(categories=CATEGORIES, preprocessing=preprocessing, mask_head={"enabled": False})

    def __call__(self, inputs, training):
        tf.py_function(self.keep, [inputs["images"], inputs["image_sizes"]], [])
        return {
            "detection_boxes": tf.zeros([1, 0, 4]),
            "detection_classes": tf.zeros([1, 0], tf.int32),
            "detection_scores": tf.zeros([1, 0]),
            "num_detections": tf.zeros([1], tf.int32),
        }

    def keep(self, images, sizes):
        self.image, self.size = images[0].numpy(), tuple(sizes[0].numpy())


def test_the_network_gets_whole_grey_levels_or_floats():
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3)).astype(np.uint8)
    whole, broken = Inputs(min_size=50, max_size=80), Inputs(min_size=50, max_size=80, quantize=False)
    for model in (whole, broken):
        assert len(Predictor(model)(image)) == 0
        assert model.size == (50, 71)
    by_pillow = np.asarray(Image.fromarray(image).resize((71, 50), Image.Resampling.BILINEAR)).astype(int)
    assert np.array_equal(whole.image, np.round(whole.image))
    assert np.abs(whole.image[:50, :71] - by_pillow).max() <= 1
    assert (broken.image != np.round(broken.image)).any()
    assert np.abs(broken.image[:50, :71] - by_pillow).max() < 1.01


@pytest.mark.parametrize(
    ("how", "size", "padded", "corner"),
    [
        ({}, (96, 130), (96, 160), (0, 0)),
        ({"resize_rounding": "floor"}, (96, 129), (96, 160), (0, 0)),
        ({"placement": "centre"}, (96, 130), (96, 160), (0, 15)),
        ({"padding": "square"}, (96, 130), (160, 160), (0, 0)),
        ({"padding": "square", "placement": "centre"}, (96, 130), (160, 160), (32, 15)),
        ({"padding": "square", "max_size": 150}, (96, 130), (160, 160), (0, 0)),  # a multiple of 32 all the same
        ({"enlarge_only": True, "min_size": 20}, (40, 54), (64, 64), (0, 0)),
    ],
)
def test_where_the_picture_lies_in_the_input(how, size, padded, corner):
    model = Inputs(**{"min_size": 96, "max_size": 160, **how})
    Predictor(model)(np.full((40, 54, 3), 7, np.uint8))
    assert model.size == size
    assert model.image.shape == (*padded, 3)
    expected = np.zeros(padded, bool)
    expected[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = True
    assert np.array_equal(model.image.min(axis=-1) == 7, expected)
    assert np.array_equal(model.image.max(axis=-1) == 0, ~expected)


@pytest.mark.parametrize("paste", ["centred", "expanded", "stretched"])
def test_masks_are_pasted_by_the_rule_of_the_model(paste):
    found = Predictor(RedFinder(paste=paste))(picture(61, 97, (11, 20, 51, 70)))
    assert found.paste == paste
    assert np.array_equal(found.masks(), paste_masks(found.mask_probs, found.boxes, found.image_size, rule=paste))


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


def restored(boxes, window, size, **how):
    """The kept boxes of one picture of the given size that lies in a window of the network's input."""
    outputs = {
        "detection_boxes": tf.constant([boxes], tf.float32),
        "detection_classes": tf.ones([1, len(boxes)], tf.int32),
        "detection_scores": tf.ones([1, len(boxes)]),
        "num_detections": tf.constant([len(boxes)]),
    }
    found = restore_detections(outputs, tf.constant([window], tf.float32), tf.constant([size]), **{"inclusive": False, **how})
    return found["detection_boxes"][0, : int(found["num_detections"][0])].numpy()


def test_boxes_are_clipped_to_the_picture():
    found = restored([[-5, -5, 200, 300], [90, 0, 120, 10]], [0, 0, 90, 240], (45, 80), clip=True)
    # The second lies wholly below the picture.
    assert found.tolist() == [[0, 0, 45, 80]]


def test_boxes_that_are_not_clipped_stay_the_frames_of_their_masks():
    found = restored([[-10, 10, 100, 300], [90, 0, 120, 10]], [0, 0, 90, 240], (45, 80), clip=False)
    np.testing.assert_allclose(found, [[-5, 10 / 3, 50, 100]], rtol=1e-6)


def undone(boxes, *, inclusive):
    """Boxes of an input in which a picture of 50 x 100 became 99 x 199 and lies at (10, 20)."""
    return restored(boxes, [10, 20, 109, 219], (50, 100), inclusive=inclusive, clip=True)


def test_the_offset_is_taken_off_and_each_axis_has_its_ratio():
    whole, part = undone([[10, 20, 109, 219], [43, 119.5, 76, 219]], inclusive=False)
    assert whole.tolist() == [0, 0, 50, 100]
    np.testing.assert_allclose(part, [33 / 99 * 50, 50, 66 / 99 * 50, 100], rtol=1e-6)


def test_inclusive_boxes_are_scaled_from_first_to_last_pixel():
    """matterport: normalised by the window less one pixel, undone with the picture less one pixel."""
    whole, part = undone([[10, 20, 109, 219], [43, 119, 76, 219]], inclusive=True)
    assert whole.tolist() == [0, 0, 50, 100]
    np.testing.assert_allclose(part, [33 / 98 * 49, 99 / 198 * 99, 65 / 98 * 49 + 1, 100], rtol=1e-6)


@pytest.mark.parametrize("box_ends", ["exclusive", "inclusive"])
def test_a_picture_of_one_pixel(box_ends):
    found = Predictor(RedFinder(box_ends=box_ends, padding="square", placement="centre"))(picture(1, 1, (0, 0, 1, 1)))
    assert found.boxes[0].tolist() == [0, 0, 1, 1]


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
