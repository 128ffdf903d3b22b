import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import gpu, gpu_cells, gpu_detectors
from benchmarks.gpu import Results, Runner, find_machine, measure
from benchmarks.gpu_report import published_table, report
from tests.batches import with_model
from tests.benchmarks import fake_gpu_cell

SETTINGS = {"size": [64, 96], "config": None, "steps": 3}
FAKE = "tests.benchmarks.fake_gpu_cell"


class Counting(Runner):
    """Counts what it has run."""

    def run(self, task, options):
        self.__dict__.setdefault("ran", []).append(task)
        return super().run(task, options)


class InProcess(Runner):
    """Without processes, for whole grids."""

    def run(self, task, options):
        return fake_gpu_cell.answer(task, self.device, **options)


class WithoutGpus(InProcess):
    def run(self, task, options):
        return {**super().run(task, options), "gpus": []}


def results_in(path, runner):
    return Results(path, find_machine(runner), SETTINGS)


def measured(path, *, quick=True, only=gpu.TASKS, device="gpu", kind=Counting):
    runner = kind(device, SETTINGS, worker=FAKE)
    results = results_in(path, runner)
    measure(runner, results, only=only, quick=quick, until=math.inf)
    return results, [task for task in getattr(runner, "ran", ()) if task != "machine"]


def test_cells_are_kept_one_by_one_and_not_run_again(tmp_path):
    path = tmp_path / "found.json"
    results, ran = measured(path)
    assert ran == ["agreement", *["training"] * 3, *["inference"] * 3, *["training"] * 3]
    assert json.loads(path.read_text())["cells"] == results.cells
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    assert measured(path)[1] == []
    del results.cells["inference: batch 1, float32, XLA off"]
    results.keep("agreement", results.cells["agreement"])
    assert measured(path)[1] == ["inference"]


def test_one_that_is_killed_says_so_and_the_rest_goes_on(tmp_path, monkeypatch):
    cells = [{"batch": batch, "precision": "float32", "xla": False} for batch in (4, 8, 16, 2)]
    monkeypatch.setattr(gpu, "training_cells", lambda quick: cells)
    results, ran = measured(tmp_path / "found.json", only=("training",))
    assert ran == ["agreement", *["training"] * 4]
    failed = {cell["batch"]: cell.get("failed") for cell in results.cells.values() if cell["task"] == "training"}
    assert failed == {4: None, 8: "out of memory", 16: "status -9: about to be killed", 2: None}
    assert measured(tmp_path / "found.json", only=("training",))[1] == ["training"]  # the killed one


def test_a_cell_that_takes_too_long():
    found = Runner("cpu", SETTINGS, timeout=0.01, worker=FAKE).run("machine", {})
    assert found == {"failed": "not done after 0 s"}


def test_no_cell_is_started_late(tmp_path):
    runner = Counting("gpu", SETTINGS, worker=FAKE)
    results = results_in(tmp_path / "found.json", runner)
    measure(runner, results, only=gpu.TASKS, quick=True, until=time.monotonic() - 1)
    assert results.cells == {}


def test_results_of_something_else_are_left_alone(tmp_path):
    path = tmp_path / "found.json"
    measured(path, only=())
    before = path.read_text()
    machine = json.loads(before)["machine"]
    with pytest.raises(SystemExit, match=r"another settings.*64.*128.*--output"):
        Results(path, machine, {**SETTINGS, "size": [128, 96]})
    with pytest.raises(SystemExit, match="another machine"):
        Results(path, {**machine, "gpus": ["GPU Y"]}, SETTINGS)
    assert path.read_text() == before


def test_without_a_gpu_it_says_what_to_install():
    with pytest.raises(SystemExit, match=r"sees no GPU.*tensorflow\[and-cuda\].*--device cpu"):
        find_machine(WithoutGpus("gpu"))


def test_scaling_is_that_of_the_quickest_cell_over_the_devices_there_are(tmp_path):
    results, _ = measured(tmp_path / "gpus.json", kind=InProcess)
    found = [cell for cell in results.cells.values() if cell["task"] == "scaling"]
    assert [cell["replicas"] for cell in found] == [2, 4, 8]
    assert {(cell["batch"], cell["precision"], cell["xla"]) for cell in found} == {(4, "mixed_bfloat16", True)}
    on_cpu, _ = measured(tmp_path / "cpu.json", device="cpu", kind=InProcess)
    assert [cell["replicas"] for cell in on_cpu.cells.values() if cell["task"] == "scaling"] == [2]
    without, ran = measured(tmp_path / "none.json", only=("scaling",))
    assert ran == ["agreement"]
    assert list(without.cells) == ["agreement"]


def test_tables(tmp_path):
    results, _ = measured(tmp_path / "found.json", quick=False, kind=InProcess)
    lines = report(results.values).splitlines()
    assert lines[0].startswith("8 x GPU X (compute capability 9.0), 4 cores; tensorflow 2.20.0. R50-FPN")
    assert lines[2].startswith("The device finds what the CPU finds")
    assert "| batch | precision | XLA | images/s | step, ms | first step, s | peak memory, GiB |" in lines
    assert "| 4 | float32 (TF32) | off | 40.0 | 100 | 9 | 2.5 |" in lines
    assert "| 8 | mixed_bfloat16 | on | out of memory |  |  |  |" in lines
    assert "| 2 | mixed_float16 | whole | auto | 10.0 | 100 | 9 | 2.5 | 100 | 7 |" in lines
    assert "| 1 | float32 (TF32) | trunk | cpu | 20.0 | 100 | 9 | 2.5 | 100 | 7 |" in lines
    assert "| 4 | 4 | float32 (TF32) | on | 81.0 | 1.98 | 2.5 |" in lines
    published = [line for line in lines if "NVIDIA" in line or "detectron2" in line]
    assert [line.split(" | ")[-1] for line in published] == [
        "41.0 images/s (batch 4, float32, XLA on) |",
        "41.0 images/s (batch 4, mixed_bfloat16, XLA on) |",
        "2.8 (batch 4, float32, XLA on, 8 devices) |",
        "114.1 images/s (batch 4, float32, XLA on, 8 devices) |",
        "20.0 ms (batch 1, float32, XLA off) |",
    ]
    assert all("A100" in line or "V100" in line for line in published)
    assert "| what | published | measured on | this project, 8 x GPU X |" in lines
    widths = {}
    for line in lines:
        widths.setdefault(line.startswith("|"), set()).add(line.count(" | "))
    assert widths[True] == {3, 6, 9}


def test_the_page_has_the_published_figures():
    page = Path(gpu.__file__).parents[1].joinpath("docs", "gpu.md").read_text()
    for line in published_table({}, None):
        assert line in page


@pytest.fixture
def tiny(tiny_config, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(with_model(tiny_config, rpn={"post_nms_top_k_test": 10}).to_yaml())
    return {"size": [128, 96], "config": str(path), "steps": 1}


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_cell(tiny, replicas):
    found = gpu_cells.training(**tiny, batch=3, precision="float32", xla=False, replicas=replicas)
    assert found["images_per_second"] == pytest.approx(3 * replicas / found["seconds"], abs=0.01)
    assert found["first_seconds"] > found["seconds"] > 0
    assert not found["tf32"]


def test_an_inference_cell(tiny):
    found = gpu_cells.inference(**tiny, batch=5, precision="float32", xla="off", nms="cpu")
    assert found["milliseconds_per_image"] == pytest.approx(200 * found["seconds"], abs=0.01)
    assert found["detections"] == 50
    assert found["paste_milliseconds_per_image"] > 0


class Network:
    """Finds boxes that are its weights, which differ from one to the next."""

    made = 0

    def __init__(self):
        Network.made += 1
        corners = np.random.default_rng(Network.made).uniform(0, 50, (10, 2))
        self.boxes = np.concatenate([corners, corners + 40], axis=1)

    def get_weights(self):
        return self.boxes

    def set_weights(self, weights):
        self.boxes = weights


def detector(count=10, moved=0.0, scored=0.0):
    def make(network):
        found = {"num_detections": [count], "detection_boxes": network.boxes[None] + moved}
        found |= {"detection_classes": np.ones((1, 10)), "detection_scores": np.linspace(1, 0.1, 10)[None] + scored}
        found |= {"detection_masks": np.full((1, 10, 28, 28), 0.5)}
        return lambda inputs: {name: tf.constant(value) for name, value in found.items()}

    return make


def test_agreement_of_a_device_and_the_cpu(monkeypatch):
    others = {"moved": detector(moved=1.0), "rounded": detector(moved=1e-3, scored=1e-4), "fewer": detector(count=9)}
    others |= {"scored": detector(scored=2e-3), "nothing": detector(count=0)}
    monkeypatch.setattr(gpu_detectors, "network", lambda config: Network())
    monkeypatch.setattr(gpu_detectors, "DETECTORS", {"off": detector(), **others})
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    try:
        found = gpu_detectors.agreement(size=(64, 64), config=None)
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
    assert {name: found[name]["agrees"] for name in ("off", *others)} == {
        "off": True,
        "moved": False,
        "rounded": True,
        "fewer": False,
        "scored": False,
        "nothing": False,
    }
    assert not found["agrees"]
    assert found["off"] == {
        "agrees": True,
        "detections": [10, 10],
        "same": 1.0,
        "score_difference": 0.0,
        "mask_difference": 0.0,
    }


@pytest.mark.slow
def test_the_command_on_a_cpu(tiny, tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--quick", "--minutes", "60", "--steps", "1"]
    command += ["--size", "64", "96", "--config", tiny["config"], "--output", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = json.loads((tmp_path / "found.json").read_text())["cells"]
    assert [name.partition(":")[0] for name in cells] == ["agreement", *["training"] * 3, *["inference"] * 3, "scaling"]
    assert not any("failed" in cell for cell in cells.values())
    assert "## Training, several devices" in done.stdout
