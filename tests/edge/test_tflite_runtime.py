"""Bundles in tflite-runtime 2.14, where a device may have nothing newer: `make test-tflite-runtime`.

Runs in an environment without TensorFlow and without this package, on what `tests.edge.make_cases` made in the other one.
"""

import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.edge.cases import FILES, FOLDER_VARIABLE, Case, detections, run_stages

runtime = pytest.importorskip("tflite_runtime.interpreter", reason="runs in the environment of `make test-tflite-runtime`")
FOLDER = Path(os.environ[FOLDER_VARIABLE]) if FOLDER_VARIABLE in os.environ else None
pytestmark = pytest.mark.skipif(FOLDER is None, reason=f"{FOLDER_VARIABLE} names no folder of cases")

ATOL = {"boxes": 0.01, "scores": 1e-4, "masks": 1e-3}
"""Pixels; probabilities."""
RTOL = 1e-5
"""Of one stage, given the same inputs, against LiteRT: part of an output's largest value."""
INT8_ERROR = {"trunk": 0.2, "box": 0.03, "mask": 0.03}
"""The same in int8, where both round differently: root mean square error, part of the root mean square."""
WHOLE = {"detection_classes", "num_detections", "roi_scores"}
"""Outputs that are whole numbers, and not rounded."""
CANDIDATES, LONGEST_SIDE = 50, 96 * 2**0.5
"""Of each level that suppression sees; of an anchor of P5, pixels."""
PADDED = ("flat", "narrow")
"""Pictures that cover a small part of the input."""


class Bundle:
    """One file with its expected results."""

    def __init__(self, name):
        self.name, self.precision, self.folder = name, name.split("-")[1], FOLDER / name
        self.info = json.loads((self.folder / "model.json").read_text(encoding="utf-8"))
        self.case = Case(FOLDER / f"{name}.npz")
        self._interpreter = runtime.Interpreter(str(self.folder / "model.tflite"), num_threads=1)
        self._interpreter.allocate_tensors()
        self._runners = {}

    def __call__(self, signature, inputs):
        if signature not in self._runners:
            self._runners[signature] = self._interpreter.get_signature_runner(signature)
        return {name: np.array(value) for name, value in self._runners[signature](**inputs).items()}


@pytest.fixture(scope="module", params=FILES)
def bundle(request):
    return Bundle(request.param)


def distance(found, expected):
    return max(np.abs(found[name] - expected[name]).max() / ATOL[name] for name in ATOL if name in expected)


def assert_same_detections(found, expected, picture):
    """Each expected detection is there within the tolerances; the order of equal scores may differ."""
    found, expected = detections(found), detections(expected)
    assert len(found) == len(expected), picture
    for one in expected:
        best = min(
            (other for other in found if other["classes"] == one["classes"]), key=lambda other: distance(other, one), default=None
        )
        assert best is not None, f"{picture}: nothing of class {one['classes']}"
        assert distance(best, one) <= 1, f"{picture}: {one['classes']} {one['scores']} {one['boxes']}, got {best}"


def test_this_environment_is_a_device():
    assert not any(importlib.util.find_spec(name) for name in ("tensorflow", "keras", "ai_edge_litert"))
    assert metadata.version("tflite-runtime") == "2.14.0"


def test_full_finds_what_the_model_finds(bundle):
    if bundle.precision != "float32":
        pytest.skip("float16 and int8 differ from the model themselves: they are compared with LiteRT, stage by stage")
    count = 0
    for picture in bundle.case.pictures:
        expected = bundle.case.values(picture, "model")
        assert_same_detections(bundle("full", bundle.case.values(picture, "input")), expected, picture)
        count += len(detections(expected))
    assert count >= 5 * len(bundle.case.pictures)


def test_proposals_without_area(bundle):
    """NON_MAX_SUPPRESSION_V4 selects a box without area again and again, unless it is kept from it."""
    num_empty = 0
    for picture in bundle.case.pictures:
        given, expected = bundle.case.values(picture, "propose", "input"), bundle.case.values(picture, "propose", "output")
        found = bundle("propose", given)
        np.testing.assert_array_equal(found["roi_scores"], expected["roi_scores"], picture)
        rois = found["rois"][0][found["roi_scores"][0] > 0]
        is_empty = (rois[:, 2:] <= rois[:, :2]).any(axis=1)
        num_empty += is_empty.sum()
        assert len(np.unique(rois[~is_empty], axis=0)) == (~is_empty).sum(), picture
        if bundle.name.startswith("lite") and picture in PADDED:
            # All anchors of P5 are candidates. Some lie wholly outside a picture 6 pixels wide at most, and are cut at its edge.
            assert given["objectness5"].size <= CANDIDATES
            moved = np.abs(given["deltas5"]).max()
            assert 3 * 32 - LONGEST_SIDE * moved - LONGEST_SIDE / 2 * np.exp(moved) > given["image_size"].min()
    # Only models whose boxes end at their last pixel keep such proposals.
    assert (num_empty > 0) == (bundle.info["box_ends"] == "inclusive")


def test_stages_give_what_full_gives(bundle):
    if bundle.precision == "int8":
        pytest.skip("ranges are measured for each signature by itself")
    for picture in bundle.case.pictures:
        inputs = bundle.case.values(picture, "input")
        full, stages = bundle("full", inputs), run_stages(bundle, bundle.info["signatures"], inputs)
        detected = stages["detect"][1]
        for name in sorted(full.keys() & detected.keys()):
            np.testing.assert_array_equal(full[name], detected[name], f"{picture}: {name}")
        if "mask" in stages:
            rows = min(int(full["num_detections"][0]), len(stages["mask"][1]["masks"]))
            np.testing.assert_array_equal(full["detection_masks"][0, :rows], stages["mask"][1]["masks"][:rows], picture)


def test_each_stage_computes_what_litert_computes(bundle):
    """The same inputs for both, so that a kernel that is wrong shows where it is."""
    for picture in bundle.case.pictures:
        for stage in bundle.info["signatures"].keys() - {"full"}:
            found = bundle(stage, bundle.case.values(picture, stage, "input"))
            for name, expected in bundle.case.values(picture, stage, "output").items():
                where = f"{picture}: {stage}: {name}"
                if bundle.precision == "int8" and stage in INT8_ERROR:
                    # Of a picture that is mostly padding, little but rounding reaches the last layers of these weights.
                    if picture not in PADDED or stage != "trunk":
                        error = np.square(found[name] - expected).mean() / np.square(expected).mean()
                        assert np.sqrt(error) <= INT8_ERROR[stage], where
                    continue
                atol = 0 if name in WHOLE else RTOL * max(1.0, np.abs(expected).max())
                np.testing.assert_allclose(found[name], expected, rtol=0, atol=atol, err_msg=where)


def test_the_script_runs(bundle, tmp_path):
    pictures = sorted((FOLDER / "pictures").iterdir())
    command = [sys.executable, bundle.folder / "detect.py", *pictures, "--output", tmp_path, "--score-threshold", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "detections.json").read_text(encoding="utf-8"))
    assert {record["file_name"] for record in records} <= {picture.name for picture in pictures}
    if bundle.precision == "float32":
        expected = sum(
            one["scores"] >= 0.3 for picture in bundle.case.pictures for one in detections(bundle.case.values(picture, "model"))
        )
        assert abs(len(records) - expected) <= 2  # those that have no area in the picture are left out
    for picture in pictures:
        with Image.open(tmp_path / f"{picture.stem}.png") as drawing:
            drawing.load()
