"""The measuring of whole commands: what it counts, and that the sides it compares do the same work."""

import json
import subprocess
import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from benchmarks import commands
from benchmarks.peers import coco_figures, mask_runs
from benchmarks.peers.turns import ROOT, WorkerError
from mrcnn_tf.paste import encode_masks

PYTHON = sys.executable


def test_commands_run_in_turns_after_one_run_that_is_not_counted(tmp_path):
    log = tmp_path / "log"
    writing = "import sys; open(sys.argv[1], 'a').write(sys.argv[2])"
    sides = {name: [PYTHON, "-c", writing, str(log), name] for name in "ab"}
    found = commands.in_turns(sides, 2)
    assert log.read_text() == "ababab"
    assert {len(side["all_seconds"]) for side in found.values()} == {2}


def test_memory_is_that_of_the_command():
    """Measured by a process that is as small as the script, not by this one."""
    code = f"""
import json
from benchmarks import commands
sides = {{"large": [{PYTHON!r}, "-c", "held = bytearray(300 << 20)"], "small": [{PYTHON!r}, "-c", "pass"]}}
print(json.dumps(commands.in_turns(sides, 1)))
"""
    found = json.loads(subprocess.run([PYTHON, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert found["large"]["peak_mib"] > 300
    assert found["small"]["peak_mib"] < 100


def test_a_command_that_fails_says_why():
    with pytest.raises(WorkerError, match=r"(?s)status 3.*no such picture"):
        commands.in_turns({"failing": [PYTHON, "-c", "import sys; print('no such picture'); sys.exit(3)"]}, 1)


def test_ratios():
    sides = {"one": {"seconds": 1.0, "peak_mib": 300.0}, "base": {"seconds": 4.0, "peak_mib": 200.0}}
    found = commands.with_ratios(sides, "base")
    assert (found["one"]["ratio"], found["one"]["memory_ratio"]) == (0.25, 1.5)
    assert (found["base"]["ratio"], found["base"]["memory_ratio"]) == (1, 1)
    assert commands.with_ratios(sides, "not here") == sides


def test_imports_say_that_tensorflow_is_not_loaded(monkeypatch):
    monkeypatch.setattr(commands, "in_turns", lambda sides, rounds: dict.fromkeys(sides, rounds))
    found = commands.imports(None, 1)
    assert found["loads_tensorflow"] is False
    assert "import torchvision" not in found
    assert commands.imports("python", 1)["import torchvision"] == 1


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(coco_figures, "CLASSES", 8)


@pytest.mark.usefixtures("few")
def test_all_sides_find_the_same_figures(tmp_path):
    coco_figures.write(tmp_path, num_images=20)
    answers = [coco_figures.prepare(task=task, folder=str(tmp_path))() for task in ("pycocotools", "tables", "evaluate")]
    assert answers[0]["bbox"] > 0.05
    assert answers[0]["segm"] > 0.05
    for answer in answers[1:]:
        assert answer == pytest.approx(answers[0], abs=1e-12)


def test_written_results_are_those_of_the_arrays(tmp_path):
    coco_figures.write(tmp_path, num_images=10)
    results = json.loads((tmp_path / coco_figures.RESULTS).read_text())
    found = list(coco_figures.detections(tmp_path))
    assert len(found) == 10
    assert sum(map(len, found)) == len(results) > 100
    assert all((np.diff(one.scores) <= 0).all() for one in found)


@pytest.mark.parametrize("boxes", ["spread", "large"])
def test_masks_are_drawn_inside_the_picture(boxes):
    size = 300, 400
    probabilities, drawn = mask_runs.drawn(boxes, size)
    assert (drawn[:, :2] >= 0).all()
    assert (drawn[:, 2:] <= np.array(size) + 1e-3).all()
    sides = (drawn[:, 2:] - drawn[:, :2]) / size
    assert (sides >= mask_runs.SIDES[boxes][0] - 1e-5).all()
    areas = coco_mask.area([{**rle, "counts": rle["counts"].encode()} for rle in encode_masks(probabilities, drawn, size)])
    filled = areas / np.prod(drawn[:, 2:] - drawn[:, :2], axis=1)
    assert 0.4 < np.median(filled) < 0.9


def test_both_sides_encode_the_same_masks(monkeypatch):
    monkeypatch.setattr(mask_runs, "HEIGHT", 300)
    monkeypatch.setattr(mask_runs, "WIDTH", 400)
    probabilities, drawn = mask_runs.drawn("spread", (300, 400))
    assert mask_runs.ours(probabilities, drawn)() == mask_runs.pycocotools(probabilities, drawn)()
