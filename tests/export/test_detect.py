"""The script of the TFLite bundle: every step beside the model as `mrcnn_tf` does it, the rest with a runtime that is faked."""

import ast
import functools
import importlib.util
import itertools
import json
import os
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_tf import prediction_files
from mrcnn_tf.data.images import ImageError, image_paths, load_image
from mrcnn_tf.data.transforms import training_size
from mrcnn_tf.detections import Detections
from mrcnn_tf.ops.images import image_window, pad_image, resize_image
from mrcnn_tf.ops.restore import restore_detections
from mrcnn_tf.paste import encode_masks, encode_region, paste_masks, paste_region
from mrcnn_tf.predict import predict_files
from mrcnn_tf.visualize import draw_detections

SCRIPT = Path(__file__).parents[2] / "export" / "edge" / "detect.py"
CATEGORIES = [{"id": 9, "name": "thing"}, {"id": 4, "name": "naïve one"}]
RULES = ["centred", "expanded", "stretched"]
SIZES = [(1, 1), (1, 40), (40, 1), (37, 53), (64, 48)]


def load_script():
    spec = importlib.util.spec_from_file_location("detect_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


detect = load_script()


def random_boxes(rng, count, image_size):
    """Within, across and outside the image, with whole and with broken coordinates, and some without area."""
    boxes = np.sort(rng.uniform(-0.5, 1.5, (count, 2, 2)), axis=1) * np.array(image_size)
    boxes = boxes.reshape(count, 4)
    boxes[::3] = np.round(boxes[::3])
    boxes[::5] = [0, 0, *image_size]
    boxes[1::7, 2:] = boxes[1::7, :2]
    return boxes.astype(np.float32)


def random_masks(rng, count):
    """The noisy ones have many runs; the full ones run on from column to column."""
    masks = rng.uniform(0.2, 1, (count, 28, 28)).astype(np.float32)
    masks[::2] = 1
    return masks


def result(boxes, classes, scores, masks, size, paste="centred"):
    return detect.Result(boxes, classes, scores, masks, size, {"paste": paste, "categories": CATEGORIES})


def detections(found):
    paste = {} if found.mask_probs is None else {"paste": found.paste}
    return Detections(found.boxes, found.classes, found.scores, found.mask_probs, found.image_size, tuple(CATEGORIES), **paste)


def random_result(rng, count, size, paste="centred", has_masks=True):
    scores = np.sort(rng.uniform(0, 1, count).astype(np.float32))[::-1]
    masks = random_masks(rng, count) if has_masks else None
    return result(random_boxes(rng, count, size), rng.integers(1, 3, count).astype(np.int32), scores, masks, size, paste)


class TestTheFile:
    def test_it_needs_only_numpy_and_pillow(self):
        for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in sys.stdlib_module_names | {"numpy", "PIL"}, name

    def test_python_3_9_reads_it(self):
        source = SCRIPT.read_text(encoding="utf-8")
        tree = ast.parse(source, feature_version=(3, 9))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "strict"]
        assert "from __future__ import annotations" in source


class TestReading:
    def test_every_kind_as_in_the_library(self, pictures, tmp_path):
        rng = np.random.default_rng(0)
        rgb = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
        palette = Image.fromarray(rgb).convert("P")
        palette.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
        Image.fromarray(np.dstack([rgb[:, :, 0], rgb[:, :, 1]]), "LA").save(tmp_path / "la.png")
        Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpg")
        Image.fromarray(rgb[:, :, 0] > 127).save(tmp_path / "bits.png")
        for name in ("deep.png", "deep.tif"):
            Image.fromarray(np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)).save(tmp_path / name)
        Image.fromarray(rng.integers(0, 65536, (3, 5)).astype(np.int32)).save(tmp_path / "int.tif")
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            Image.fromarray(rgb).save(tmp_path / f"turned{orientation}.png", exif=exif)
        paths = [*pictures.values(), *sorted(tmp_path.iterdir())]
        assert len(paths) > 20
        for path in paths:
            with warnings.catch_warnings(action="error"):
                read = detect.load_image(path)
            assert read.dtype == np.uint8
            np.testing.assert_array_equal(read, load_image(path), err_msg=str(path))

    def test_faults_are_told_as_in_the_library(self, tmp_path):
        (tmp_path / "text.png").write_text("no image")
        (tmp_path / "empty.png").write_bytes(b"")
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "whole.jpg")
        (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1000])
        Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
        Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "deep.tif")
        for name in ("text.png", "empty.png", "cut.jpg", "float.tif", "deep.tif", "missing.png"):
            with pytest.raises(detect.ImageError) as told:
                detect.load_image(tmp_path / name)
            with pytest.raises(ImageError) as expected:
                load_image(tmp_path / name)
            assert str(told.value) == str(expected.value)

    def test_files_folders_and_patterns(self, tmp_path):
        for name in ("b.png", "a.JPG", "notes.txt", "c[1].png"):
            (tmp_path / name).write_bytes(b"")
        (tmp_path / "sub").mkdir()
        for arguments in (
            [tmp_path],
            [str(tmp_path / "*.png"), tmp_path / "b.png"],
            [tmp_path / "c[1].png"],
            [tmp_path / "missing.png"],
        ):
            assert detect.image_paths(arguments) == image_paths(arguments)
        for arguments in ([], [tmp_path / "sub"], [tmp_path / "*.gif"]):
            with pytest.raises(detect.DetectError) as told:
                detect.image_paths(arguments)
            with pytest.raises(ImageError) as expected:
                image_paths(arguments)
            assert str(told.value) == str(expected.value)


class TestResizing:
    @pytest.mark.parametrize("rounding", ["half_up", "floor", "half_even"])
    @pytest.mark.parametrize("enlarge_only", [False, True])
    def test_sizes(self, rounding, enlarge_only):
        rng = np.random.default_rng(1)
        shrunk = 0
        for _ in range(3000):
            height, width = (int(edge) for edge in np.exp(rng.uniform(0, 8.5, 2)))
            min_size, room = int(rng.integers(1, 900)), int(rng.integers(0, 600))
            input_size = (32 * int(rng.integers(1, 40)), 32 * int(rng.integers(1, 40)))
            sizes = {"min_size": min_size, "max_size": min_size + room}
            how = {**sizes, "resize_rounding": rounding, "enlarge_only": enlarge_only}
            got = detect.resized_size(height, width, how, input_size)
            expected = training_size(height, width, image_size=input_size, rounding=rounding, enlarge_only=enlarge_only, **sizes)
            assert got == expected, (height, width, how, input_size)
            assert got[0] <= input_size[0]
            assert got[1] <= input_size[1]
            shrunk += got[0] == input_size[0] or got[1] == input_size[1]
        assert 100 < shrunk < 2900

    @pytest.mark.parametrize("rounding", ["half_up", "floor", "half_even"])
    @pytest.mark.parametrize("max_size", [40, 61])
    def test_small_sizes(self, rounding, max_size):
        """All of them, so that some come close to the bound of the longest edge."""
        how = {"min_size": 37, "max_size": max_size, "resize_rounding": rounding, "enlarge_only": False}
        for height, width in np.ndindex(90, 90):
            expected = training_size(
                height + 1, width + 1, min_size=37, max_size=max_size, image_size=(64, 64), rounding=rounding
            )
            assert detect.resized_size(height + 1, width + 1, how, (64, 64)) == expected

    @pytest.mark.parametrize(("antialias", "quantize"), [(True, True), (True, False), (False, True), (False, False)])
    @pytest.mark.parametrize("old", [(33, 47), (120, 90), (1, 1), (1, 50), (64, 64)])
    @pytest.mark.parametrize("new", [(50, 71), (20, 17), (1, 1), (64, 64)])
    def test_pixels_within_a_level(self, old, new, antialias, quantize):
        image = np.random.default_rng(2).integers(0, 256, (*old, 3)).astype(np.uint8)
        resized = detect.resize(image, new, antialias=antialias, quantize=quantize)
        expected = resize_image(tf.constant(image), new, antialias=antialias, quantize=quantize).numpy()
        assert resized.dtype == np.uint8
        assert resized.shape == (*new, 3)
        assert np.abs(resized - expected).max() <= 1.01
        if not antialias:
            # TensorFlow's own arithmetic.
            assert np.abs(resized - expected).max() <= 0.5

    @pytest.mark.parametrize("placement", ["top_left", "centre"])
    @pytest.mark.parametrize("size", [(64, 96), (31, 96), (1, 1), (50, 33)])
    def test_where_the_picture_lies(self, size, placement):
        image = np.random.default_rng(3).integers(1, 256, (*size, 3)).astype(np.uint8)
        padded, window = detect.pad(image, [64, 96], placement)
        np.testing.assert_array_equal(padded, pad_image(tf.constant(image), (64, 96), placement))
        np.testing.assert_array_equal(window, image_window(tf.constant(size), (64, 96), placement))
        assert (padded.dtype, window.dtype) == (np.uint8, np.float32)


class TestRestoring:
    @pytest.mark.parametrize("inclusive", [False, True])
    @pytest.mark.parametrize("clip", [False, True])
    @pytest.mark.parametrize("count", [0, 1, 40])
    @pytest.mark.parametrize("picture", [(37, 530), (480, 640), (1, 1)])
    def test_boxes(self, picture, count, clip, inclusive):
        window = np.array([10, 0, 110, 160], np.float32)
        boxes = random_boxes(np.random.default_rng(4), count, (120, 160))
        restored, has_area = detect.restore(boxes, window, picture, inclusive=inclusive, clip=clip)
        found = {"detection_boxes": tf.constant(boxes[None]), "num_detections": tf.constant([count])}
        expected = restore_detections(found, window[None], tf.constant([picture]), inclusive=inclusive, clip=clip)
        assert has_area.sum() == expected["num_detections"][0]
        np.testing.assert_array_equal(restored[has_area], expected["detection_boxes"][0, : has_area.sum()])
        assert restored.dtype == np.float32


class TestMasks:
    @pytest.mark.parametrize("block_pixels", [1, 50, 1 << 20])
    @pytest.mark.parametrize("image_size", SIZES)
    @pytest.mark.parametrize("rule", RULES)
    def test_pixels_and_run_lengths(self, rule, image_size, block_pixels, monkeypatch):
        monkeypatch.setattr(detect, "_BLOCK_PIXELS", block_pixels)
        rng = np.random.default_rng(5)
        found = random_result(rng, 30, image_size, rule)
        arguments = found.mask_probs, found.boxes, image_size
        assert np.array_equal(found.masks(), paste_masks(*arguments, rule=rule))
        assert found.rles() == encode_masks(*arguments, rule=rule)
        assert found.masks().any()

    @pytest.mark.parametrize("rule", RULES)
    def test_a_pixel_at_the_threshold(self, rule):
        half, box = np.full((28, 28), 0.5, np.float32), np.float32([0, 0, 28, 28])
        assert detect.paste_region(half, box, (28, 28), rule)[2][14, 14] == (rule != "expanded")

    @pytest.mark.parametrize("rule", RULES)
    def test_large_objects(self, rule):
        """Boxes larger than a block, and beyond the picture."""
        rng, size = np.random.default_rng(6), (1500, 1900)
        for box in np.float32([[0, 0, 1500, 1900], [-300.5, 100.25, 1400.75, 2500], [3, 3, 8, 1897]]):
            mask = rng.uniform(0, 1, (28, 28)).astype(np.float32)
            y0, x0, region = detect.paste_region(mask, box, size, rule)
            expected = paste_region(mask, box, size, rule=rule)
            assert (y0, x0, region.shape) == (*expected[:2], expected[2].shape)
            assert np.mean(region != expected[2]) < 1e-5
            assert detect.encode_region(y0, x0, region, size) == encode_region(y0, x0, region, size)

    def test_letters_of_run_lengths(self):
        rng = np.random.default_rng(7)
        for size in range(1, 40):
            counts = np.floor(np.exp(rng.uniform(0, 20, size))).astype(np.int64)
            height, width = int(counts.sum()), 1
            expected = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
            assert detect._compressed(counts) == expected["counts"].decode()

    @pytest.mark.parametrize("rule", RULES)
    def test_no_objects(self, rule):
        none = random_result(np.random.default_rng(8), 0, (7, 9), rule)
        assert none.masks().shape == (0, 7, 9)
        assert none.rles() == []
        assert none.records("a.png") == []


class TestRecords:
    @pytest.mark.parametrize("has_masks", [True, False])
    def test_as_the_library_writes_them(self, has_masks):
        found = random_result(np.random.default_rng(9), 12, (37, 53), "expanded", has_masks)
        expected = detections(found).to_records("a/b.png")
        assert found.records("a/b.png") == expected
        assert json.dumps(found.records("a/b.png")) == json.dumps(expected)
        assert found.category_names == detections(found).category_names
        assert (found.masks() is None) == (found.rles() is None) == (not has_masks)

    def test_names_of_files(self):
        cases = [
            [],
            ["a.png"],
            ["x/a.png", "x/y/a.jpg", "z/A.png"],
            ["a.png", "a.jpg", "a-2.png", "A.gif", "a.b.png"],
            ["../a.png", "b.png", "./c.png"],
        ]
        for case in cases:
            paths = [Path(name) for name in case]
            assert detect.file_names(paths) == prediction_files._relative_names(paths)
            assert detect.drawing_names(paths) == prediction_files._drawing_names(paths)


class TestDrawings:
    @pytest.mark.parametrize("has_masks", [True, False])
    @pytest.mark.parametrize("size", [(120, 200), (700, 900), (1, 1), (1, 900)])
    def test_alike_but_for_the_labels(self, size, has_masks):
        rng = np.random.default_rng(10)
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        found = random_result(rng, 3, size, has_masks=has_masks)
        before = image.copy()
        drawing = np.asarray(detect.draw(image, found))
        expected = draw_detections(image, detections(found), score_threshold=0)
        assert drawing.shape == expected.shape
        assert np.array_equal(image, before)
        if min(size) > 1:
            assert np.mean((drawing != expected).any(axis=2)) < 0.1
            assert np.mean((drawing != np.asarray(detect.draw(image, random_result(rng, 0, size)))).any(axis=2)) > 0.1 * has_masks

    def test_masks_and_boxes_are_the_same(self):
        """Below the label, which stands above its box."""
        rng = np.random.default_rng(14)
        image = rng.integers(0, 256, (700, 900, 3)).astype(np.uint8)
        rows, columns = np.mgrid[:28, :28] - 13.5
        disc = (rows**2 + columns**2 < 150).astype(np.float32)
        box = np.float32([[300.4, 100, 600, 500.7]])
        found = result(box, np.int32([1]), np.float32([0.75]), disc[None], (700, 900))
        drawing = np.asarray(detect.draw(image, found))
        expected = draw_detections(image, detections(found))
        assert np.array_equal(drawing[301:], expected[301:])
        assert 0.05 < np.mean((drawing[301:] != image[301:]).any(axis=2)) < 0.5
        assert np.mean((drawing[:300] != expected[:300]).any(axis=2)) < 0.02

    def test_nothing_found_is_the_picture(self):
        image = np.random.default_rng(11).integers(0, 256, (700, 800, 3)).astype(np.uint8)
        assert np.array_equal(detect.draw(image, random_result(np.random.default_rng(0), 0, (700, 800))), image)


# A bundle whose model is faked.

INPUT = (64, 96)
NUM_ROWS, NUM_ROIS, MASK_ROWS = 20, 6, 8
SHAPES = {
    "image": (1, *INPUT, 3),
    "image_size": (1, 2),
    "p2": (1, 16, 24, 4),
    "objectness2": (1, 16, 24, 3),
    "deltas2": (1, 16, 24, 12),
    "rois": (1, NUM_ROIS, 4),
    "roi_scores": (1, NUM_ROIS),
    "regions": (NUM_ROIS, 7, 7, 4),
    "class_logits": (NUM_ROIS, 3),
    "box_deltas": (NUM_ROIS, 8),
}
SIGNATURES = {
    "trunk": (["image", "image_size"], ["p2", "objectness2", "deltas2"]),
    "propose": (["image_size", "p2", "objectness2", "deltas2"], ["rois", "roi_scores", "regions"]),
    "box": (["regions"], ["class_logits", "box_deltas"]),
    "detect": (["image_size", "p2", "rois", "roi_scores", "class_logits", "box_deltas"], []),
    "mask": (["regions", "classes"], []),
    "full": (["image", "image_size"], []),
}


class FakeRuntime(types.ModuleType):
    """`Interpreter` and `load_delegate`; keeps what was asked of it. The model finds `boxes`, of falling scores from 0.99."""

    def __init__(self, name, boxes=(), has_masks=True):
        super().__init__(name)
        self.boxes, self.has_masks = np.array(boxes, np.float32).reshape(-1, 4), has_masks
        self.opened, self.runs = [], []

    def load_delegate(self, library):
        if library == "broken.so":
            raise ValueError("Failed to load delegate from broken.so")
        return f"delegate {library}"

    def Interpreter(self, model_path, num_threads, experimental_delegates):
        assert Path(model_path).read_bytes() == b"model"
        if experimental_delegates == ["delegate unfit.so"]:
            raise RuntimeError("failed to apply delegate")
        self.opened.append((num_threads, experimental_delegates))
        return FakeInterpreter(self, experimental_delegates)

    def detection_outputs(self):
        boxes = np.zeros((1, NUM_ROWS, 4), np.float32)
        boxes[0, : len(self.boxes)] = self.boxes
        rows = np.arange(NUM_ROWS)
        is_valid = rows < len(self.boxes)
        return {
            "detection_boxes": boxes,
            "detection_classes": np.where(is_valid, 1 + rows % 2, 0)[None].astype(np.float32),
            "detection_scores": np.where(is_valid, 0.99 - 0.05 * rows, 0)[None].astype(np.float32),
            "num_detections": np.float32([len(self.boxes)]),
        }


class FakeInterpreter:
    """Its outputs are views of memory that the next run of the same signature overwrites."""

    def __init__(self, runtime, delegates):
        self.runtime, self.delegates, self.is_allocated = runtime, delegates, False
        self.memory = {}

    def allocate_tensors(self):
        self.is_allocated = True

    def get_signature_runner(self, name):
        assert self.is_allocated
        return functools.partial(self.run, name)

    def run(self, name, **inputs):
        assert set(inputs) == set(SIGNATURES[name][0])
        for key, value in inputs.items():
            shape = (MASK_ROWS, 14, 14, 4) if (name, key) == ("mask", "regions") else SHAPES.get(key, (MASK_ROWS,))
            dtype = {"image": np.uint8, "image_size": np.int32, "classes": np.int32}.get(key, np.float32)
            assert (value.shape, value.dtype) == (shape, dtype), key
            if key not in ("image", "image_size", "classes", "regions"):
                assert (value == len(key)).all(), "an output of another stage, or overwritten"
        self.runtime.runs.append((name, self.delegates, inputs))
        outputs = {key: np.full(SHAPES[key], len(key), np.float32) for key in SIGNATURES[name][1]}
        if name in ("detect", "full"):
            outputs = self.runtime.detection_outputs()
        rows = np.arange(NUM_ROWS, dtype=np.float32)[:, None, None]
        if name == "detect" and self.runtime.has_masks:
            outputs["mask_regions"] = np.zeros((NUM_ROWS, 14, 14, 4), np.float32) + rows[..., None]
        if name == "full" and self.runtime.has_masks:
            outputs["detection_masks"] = np.zeros((1, NUM_ROWS, 28, 28), np.float32) + probability(rows, 1 + rows % 2)
        if name == "mask":
            row, number = inputs["regions"][:, :1, 0, :1], inputs["classes"][:, None, None]
            outputs["masks"] = np.broadcast_to(probability(row, number), (MASK_ROWS, 28, 28)).astype(np.float32)
        memory = self.memory.setdefault(name, {key: np.empty_like(value) for key, value in outputs.items()})
        for key, value in outputs.items():
            memory[key][...] = value
        return {key: value[...] for key, value in memory.items()}


def probability(row, number):
    """What the fake's mask of a row and class is filled with."""
    return np.float32(0.5) + row / np.float32(100) + number / np.float32(10)


def write_bundle(folder, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "model.tflite").write_bytes(b"model")
    preprocessing = {"min_size": 64, "max_size": 96, "resize_rounding": "half_up", "enlarge_only": False}
    info = {
        "format": 1,
        "image_size": list(INPUT),
        "max_detections": NUM_ROWS,
        "mask_rows": MASK_ROWS,
        "categories": CATEGORIES,
        "preprocessing": {**preprocessing, "antialias": True, "quantize": True, "placement": "top_left"},
        "paste": "centred",
        "box_ends": "exclusive",
        "clip_to": "image",
        "signatures": {name: {"inputs": {key: {} for key in inputs}} for name, (inputs, _) in SIGNATURES.items()},
        **changes,
    }
    (folder / "model.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


def install(monkeypatch, package="ai_edge_litert", **what):
    """Only this runtime is there."""
    for name in detect.PACKAGES.values():
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, f"{name}.interpreter", None)
    runtime = FakeRuntime(f"{package}.interpreter", **what)
    monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setitem(sys.modules, f"{package}.interpreter", runtime)
    return runtime


BOXES = [[2, 3, 40, 50], [5, 5, 5, 9], *([0, 0, 10 + row, 90] for row in range(17))]
"""19, the second without area."""


class TestDetector:
    @pytest.fixture
    def image(self):
        return np.random.default_rng(12).integers(0, 256, (128, 180, 3)).astype(np.uint8)

    def test_stages_in_their_order_and_masks_in_calls(self, bundle, image, monkeypatch):
        runtime = install(monkeypatch, boxes=BOXES)
        detector = detect.Detector(bundle)
        found = detector(image)
        names = [name for name, _, _ in runtime.runs]
        assert names == ["trunk", "propose", "box", "detect", "mask", "mask", "mask"]
        assert runtime.opened == [(1, None)]
        assert set(detector.times) == {"resize", "trunk", "propose", "box", "detect", "mask"}
        assert len(found) == 18
        np.testing.assert_array_equal(found.boxes[:2], [[4, 6, 80, 100], [0, 0, 20, 180]])
        assert found.classes.tolist() == [1, *(1 + row % 2 for row in range(2, 19))]
        rows = np.array([0, *range(2, 19)])
        expected = probability(rows.astype(np.float32), found.classes)
        np.testing.assert_allclose(found.mask_probs, np.tile(expected[:, None, None], (1, 28, 28)), rtol=1e-6)
        assert (found.boxes.dtype, found.classes.dtype, found.scores.dtype) == (np.float32, np.int32, np.float32)
        assert found.mask_probs.dtype == np.float32
        assert found.image_size == (128, 180)
        assert found.category_ids[:2] == [9, 9]
        assert found.category_names[:2] == ["thing", "thing"]

    def test_the_input_is_resized_and_padded(self, tmp_path, image, monkeypatch):
        bundle = write_bundle(tmp_path / "bundle", image_size=[96, 128])
        runtime = install(monkeypatch)
        monkeypatch.setitem(SHAPES, "image", (1, 96, 128, 3))
        detect.Detector(bundle)(image)
        inputs = runtime.runs[0][2]
        assert inputs["image_size"].tolist() == [[64, 90]]
        resized = np.asarray(Image.fromarray(image).resize((90, 64), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(inputs["image"][0, :64, :90], resized)
        assert not inputs["image"][0, 64:].any()
        assert not inputs["image"][0, :, 90:].any()

    @pytest.mark.parametrize(
        ("threshold", "count", "calls"), [(0.0, 18, 3), (0.5, 9, 2), (0.575, 8, 1), (0.98, 1, 1), (1.0, 0, 0)]
    )
    def test_only_objects_that_are_shown_cost_masks(self, bundle, image, monkeypatch, threshold, count, calls):
        runtime = install(monkeypatch, boxes=BOXES)
        found = detect.Detector(bundle)(image, score_threshold=threshold)
        assert len(found) == count
        assert found.mask_probs.shape == (count, 28, 28)
        assert [name for name, _, _ in runtime.runs].count("mask") == calls

    def test_full_gives_the_same(self, bundle, image, monkeypatch):
        runtime = install(monkeypatch, boxes=BOXES)
        detector = detect.Detector(bundle, delegate="npu.so")
        stages, full = (find(image, score_threshold=0.4) for find in (detector, detector.detect_full))
        for name in ("boxes", "classes", "scores", "mask_probs"):
            np.testing.assert_allclose(getattr(stages, name), getattr(full, name), rtol=1e-6)
        assert runtime.runs[-1][:2] == ("full", None)
        assert set(detector.times) == {"resize", "full"}

    def test_results_outlive_the_next_call(self, bundle, image, monkeypatch):
        runtime = install(monkeypatch, boxes=BOXES)
        detector = detect.Detector(bundle)
        first = detector(image)
        kept = first.boxes.copy(), first.scores.copy(), first.mask_probs.copy()
        runtime.boxes = runtime.boxes[:3] * 0.5
        detector(image)
        for before, after in zip(kept, (first.boxes, first.scores, first.mask_probs), strict=True):
            np.testing.assert_array_equal(before, after)

    def test_a_delegate_gets_the_convolutions_only(self, bundle, image, monkeypatch):
        runtime = install(monkeypatch, boxes=BOXES)
        detector = detect.Detector(bundle, threads=3, delegate="npu.so")
        detector(image)
        detector(image)
        assert runtime.opened == [(3, None), (3, ["delegate npu.so"])]
        for name, delegates, _ in runtime.runs:
            assert delegates == (["delegate npu.so"] if name in ("trunk", "box", "mask") else None), name

    def test_a_model_without_masks(self, tmp_path, image, monkeypatch):
        signatures = {name: {"inputs": {key: {} for key in SIGNATURES[name][0]}} for name in SIGNATURES if name != "mask"}
        bundle = write_bundle(tmp_path / "bundle", paste=None, signatures=signatures)
        runtime = install(monkeypatch, boxes=BOXES, has_masks=False)
        detector = detect.Detector(bundle)
        for find in (detector, detector.detect_full):
            found = find(image)
            assert len(found) == 18
            assert found.mask_probs is found.masks() is found.rles() is None
            assert "segmentation" not in found.records("a.png")[0]
        assert "mask" not in [name for name, _, _ in runtime.runs]

    @pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (300, 1, 3)])
    def test_odd_pictures(self, bundle, monkeypatch, shape):
        install(monkeypatch, boxes=[[0, 0, 64, 96]])
        found = detect.Detector(bundle)(np.full(shape, 200, np.uint8))
        assert found.boxes.tolist() == [[0, 0, *shape[:2]]]
        assert found.masks().mean() > 0.95

    @pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
    def test_what_is_no_picture(self, bundle, monkeypatch, image):
        install(monkeypatch)
        with pytest.raises(ValueError, match="expected a uint8 picture"):
            detect.Detector(bundle)(image)


class TestRuntimes:
    def test_the_one_that_is_there(self, bundle, monkeypatch):
        monkeypatch.setattr(detect, "_NUMPY_MAJOR", 1)
        for package in ("ai_edge_litert", "tflite_runtime"):
            runtime = install(monkeypatch, package)
            assert detect.load_runtime() is runtime

    def test_litert_comes_first_unless_asked(self, monkeypatch):
        monkeypatch.setattr(detect, "_NUMPY_MAJOR", 1)
        litert = install(monkeypatch)
        other = FakeRuntime("tflite_runtime.interpreter")
        monkeypatch.setitem(sys.modules, "tflite_runtime", types.ModuleType("tflite_runtime"))
        monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", other)
        assert detect.load_runtime("auto") is detect.load_runtime("litert") is litert
        assert detect.load_runtime("tflite-runtime") is other

    def test_none(self, bundle, monkeypatch):
        install(monkeypatch)
        monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
        with pytest.raises(detect.DetectError, match=r"no TFLite runtime .*ai-edge-litert.*tflite-runtime"):
            detect.Detector(bundle)
        with pytest.raises(detect.DetectError, match="tflite-runtime is not installed"):
            detect.Detector(bundle, runtime="tflite-runtime")
        with pytest.raises(detect.DetectError, match=r"must be auto, litert or tflite-runtime, got 'tf'"):
            detect.Detector(bundle, runtime="tf")

    def test_numpy_too_new(self, bundle, monkeypatch):
        install(monkeypatch, "tflite_runtime")
        monkeypatch.setattr(detect, "_NUMPY_MAJOR", 2)
        with pytest.raises(detect.DetectError, match="tflite-runtime needs numpy < 2, here is"):
            detect.Detector(bundle)

    def test_one_that_is_broken(self, bundle, monkeypatch):
        install(monkeypatch)
        monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
        with pytest.raises(detect.DetectError, match="ai_edge_litert is installed but cannot be loaded"):
            detect.Detector(bundle)

    def test_delegates_that_fail(self, bundle, monkeypatch):
        install(monkeypatch)
        with pytest.raises(detect.DetectError, match=r"broken\.so: the delegate cannot be loaded"):
            detect.Detector(bundle, delegate="broken.so")
        with pytest.raises(detect.DetectError, match=r"model\.tflite.* with the delegate unfit\.so: failed to apply"):
            detect.Detector(bundle, delegate="unfit.so")


class TestBundles:
    @pytest.mark.parametrize("name", ["model.json", "model.tflite"])
    def test_a_file_is_missing(self, bundle, name):
        (bundle / name).unlink()
        with pytest.raises(detect.DetectError, match=f"it has no {name}"):
            detect.Detector(bundle)

    def test_another_format(self, tmp_path):
        bundle = write_bundle(tmp_path / "bundle", format=7)
        with pytest.raises(detect.DetectError, match=r"model\.json: expected format 1, got 7"):
            detect.Detector(bundle)

    @pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "expected format 1, got None")])
    def test_no_description(self, bundle, text, message):
        (bundle / "model.json").write_text(text)
        with pytest.raises(detect.DetectError, match=message):
            detect.Detector(bundle)


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path):
        rng = np.random.default_rng(13)
        (tmp_path / "in" / "sub").mkdir(parents=True)
        for name, size in {"a.png": (50, 70), "sub/A.png": (128, 180), "b.png": (1, 1)}.items():
            Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(tmp_path / "in" / name)
        return tmp_path / "in"

    def test_the_files_of_predict(self, folder, bundle, tmp_path, monkeypatch, capsys):
        install(monkeypatch, boxes=BOXES)
        output = tmp_path / "new" / "out"
        arguments = [str(folder), str(folder / "sub" / "*"), "--output", str(output), "--bundle", str(bundle)]
        assert detect.main([*arguments, "--score-threshold", "0.6"]) == 0
        detector = detect.Detector(bundle)
        paths = detect.image_paths(arguments[:2])
        predict_files(lambda image: detections(detector(image)), paths, tmp_path / "own", score_threshold=0.6, progress=False)
        assert (
            sorted(os.listdir(output)) == sorted(os.listdir(tmp_path / "own")) == ["A-2.png", "a.png", "b.png", "detections.json"]
        )
        written, expected = ((where / "detections.json").read_bytes() for where in (output, tmp_path / "own"))
        assert written == expected
        assert len(json.loads(written)) == 3 * 7
        for name in ("A-2.png", "a.png", "b.png"):
            with Image.open(output / name) as drawing, Image.open(tmp_path / "own" / name) as own:
                assert (drawing.size, drawing.mode) == (own.size, own.mode)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 4
        for line in lines:
            assert all(f"{stage} " in line for stage in detect.STAGES)
        assert lines[-1].startswith("medians, 3 done: load ")

    def test_times(self, folder, bundle, tmp_path, monkeypatch, capsys):
        """With a clock that goes on by a second whenever it is read; 18 masks take three calls."""
        install(monkeypatch, boxes=BOXES)
        clock = itertools.count()
        monkeypatch.setattr(detect, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
        options = ["--output", str(tmp_path / "out"), "--bundle", str(bundle), "--score-threshold", "0"]
        assert detect.main([str(folder / "a.png"), *options]) == 0
        spent = ", ".join(f"{stage} {3000 if stage == 'mask' else 1000}.0" for stage in detect.STAGES)
        assert capsys.readouterr().out.splitlines() == [
            f"a.png: 18 found; {spent}; sum 11000.0 ms",
            f"medians, 1 done: {spent}; sum 11000.0 ms",
        ]

    def test_options_reach_the_runtime(self, folder, bundle, tmp_path, monkeypatch):
        runtime = install(monkeypatch)
        options = ["--threads", "2", "--delegate", "npu.so", "--runtime", "litert", "--bundle", str(bundle)]
        assert detect.main([str(folder), "--output", str(tmp_path / "out"), *options]) == 0
        assert runtime.opened == [(2, None), (2, ["delegate npu.so"])]

    def test_the_bundle_is_where_the_script_lies(self, folder, bundle, tmp_path, monkeypatch):
        install(monkeypatch)
        (bundle / "detect.py").write_bytes(SCRIPT.read_bytes())
        monkeypatch.setattr(detect, "__file__", str(bundle / "detect.py"))
        assert detect.main([str(folder), "--output", str(tmp_path / "out")]) == 0

    def test_a_broken_picture_is_left_out(self, folder, bundle, tmp_path, monkeypatch, capsys):
        install(monkeypatch, boxes=BOXES)
        (folder / "broken.png").write_text("no image")
        output = tmp_path / "out"
        assert detect.main([str(folder), "--output", str(output), "--bundle", str(bundle)]) == 1
        told = capsys.readouterr()
        assert "left out" in told.err
        assert "broken.png" in told.err
        assert sorted(os.listdir(output)) == ["a.png", "b.png", "detections.json"]
        assert {record["file_name"] for record in json.loads((output / "detections.json").read_text())} == {"a.png", "b.png"}

    def test_nothing_but_broken_pictures(self, bundle, tmp_path, monkeypatch, capsys):
        install(monkeypatch)
        output = tmp_path / "out"
        assert detect.main([str(tmp_path / "missing.png"), "--output", str(output), "--bundle", str(bundle)]) == 1
        assert "no such image file" in capsys.readouterr().err
        assert (output / "detections.json").read_text() == "[]\n"

    def test_mistakes_are_one_line(self, folder, bundle, tmp_path, monkeypatch, capsys):
        install(monkeypatch)
        output = ["--output", str(tmp_path / "out")]
        assert detect.main([str(tmp_path / "*.gif"), *output, "--bundle", str(bundle)]) == 1
        assert detect.main([str(folder), *output, "--bundle", str(tmp_path / "none")]) == 1
        (tmp_path / "file").write_text("")
        assert detect.main([str(folder), "--output", str(tmp_path / "file"), "--bundle", str(bundle)]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3
        assert all(line.startswith("error: ") for line in lines)

    @pytest.mark.parametrize("options", [["--threads", "0"], ["--score-threshold", "1.5"], ["--runtime", "other"]])
    def test_options_out_of_range(self, options, capsys):
        with pytest.raises(SystemExit) as told:
            detect.main(["a.png", "--output", "out", *options])
        assert told.value.code == 2
        assert options[0] in capsys.readouterr().err

    def test_nothing_is_left_half_written(self, tmp_path, monkeypatch):
        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr(detect.os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            detect.write(tmp_path / "a.json", b"{}")
        assert os.listdir(tmp_path) == []
