"""Runs of two processes on 127.0.0.1: the weights of one process with two replicas, and what happens when one is killed."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mrcnn_tf.config import TrainConfig
from mrcnn_tf.modeling.mask_rcnn import load_model
from mrcnn_tf.train import train
from tests.modeling.steps import frozen_trunk, two_devices

REPOSITORY = Path(__file__).parents[1]
SECONDS = 300
STEPS, EPOCH_STEPS = 5, 3


@pytest.fixture(scope="module")
def config(tiny_config):
    """Five steps in epochs of three."""
    values = {"batch_size": 4, "num_steps": STEPS, "epoch_steps": EPOCH_STEPS, "strategy": "auto", "tensorboard_images": 1}
    return changed(frozen_trunk(tiny_config), cluster_timeout=60, **values)


def changed(config, **values):
    section = TrainConfig.model_validate({**config.train.model_dump(), **values})
    return config.model_copy(update={"train": section})


def free_addresses(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in sockets]
    for server in sockets:
        server.close()
    return addresses


class Machines:
    """Two processes that run the same command, each with another output, which only the first must write."""

    def __init__(self, folder, config, *options, at=None, configs=None, cwds=(REPOSITORY, REPOSITORY)):
        addresses = free_addresses(2)
        self.processes = []
        for index in range(2):
            path = folder / f"config{index}.yaml"
            path.write_text((configs[index] if configs else config).to_yaml(), encoding="utf-8")
            environment = {**os.environ, "MRCNN_TF_TRACEBACK": ""}
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            hook = ["--at", *map(str, at[1:])] if at and at[0] == index else []
            command = [sys.executable, "-m", "tests.machine", *hook, "train", str(path), *options]
            command += ["--output", str(folder / f"run{index}")]
            process = subprocess.Popen(
                command,
                env={**environment, "TF_CONFIG": json.dumps(task), "PYTHONPATH": str(REPOSITORY)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=cwds[index],
            )
            self.processes.append(process)

    def finish(self):
        """Exit statuses and what was printed."""
        try:
            printed = [process.communicate(timeout=SECONDS)[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [process.returncode for process in self.processes], printed


def weights_of(path):
    return {f"{number} {weight.path}": np.asarray(weight) for number, weight in enumerate(load_model(path).weights)}


def rows(folder):
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_close(found, expected, **tolerance):
    expected = weights_of(expected)
    for name, value in weights_of(found).items():
        np.testing.assert_allclose(value, expected[name], err_msg=name, **tolerance)


def assert_same_rows(found, expected):
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for first, second in zip(found, expected, strict=True):
        for name in first:
            if "loss" in name or "AP" in name or name == "learning_rate":
                assert float(first[name]) == pytest.approx(float(second[name]), rel=1e-4, abs=1e-5), name


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    statuses, printed = Machines(folder, config).finish()
    assert statuses == [0, 0], printed
    return folder


def as_one_process(config, output):
    """The same run of one process with two replicas."""
    two_devices()
    return train(changed(config, strategy="mirrored"), output, progress=False)


def test_two_processes_make_the_run_of_one_with_two_replicas(config, undisturbed, tmp_path):
    expected = as_one_process(config, tmp_path / "one")
    assert_close(undisturbed / "run0" / "last.keras", expected.output / "last.keras", atol=1e-6)
    assert_same_rows(rows(undisturbed / "run0"), rows(expected.output))
    names = {path.name for path in (undisturbed / "run0").iterdir()}
    assert names == {path.name for path in expected.output.iterdir()}
    # The chief alone writes.
    assert not (undisturbed / "run1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_process_is_named_and_the_run_goes_on(config, undisturbed, tmp_path, index):
    machines = Machines(tmp_path, config, at=(index, EPOCH_STEPS + 1, "SIGKILL"))
    machines.processes[index].wait(SECONDS)
    began = time.monotonic()
    statuses, printed = machines.finish()
    assert time.monotonic() - began < 60
    assert (statuses[index], statuses[1 - index]) == (-9, 1)
    assert re.search(rf"error: .*worker {index} \(127\.0\.0\.1:.*--resume", printed[1 - index]), printed
    assert "Traceback" not in printed[1 - index]
    statuses, printed = Machines(tmp_path, config, "--resume").finish()
    assert statuses == [0, 0], printed
    assert_close(tmp_path / "run0" / "last.keras", undisturbed / "run0" / "last.keras", atol=0, rtol=0)
    assert [row["step"] for row in rows(tmp_path / "run0")] == ["3", "5"]


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_sigterm_to_one_ends_all_in_order(config, undisturbed, tmp_path, index):
    statuses, printed = Machines(tmp_path, config, at=(index, EPOCH_STEPS - 1, "SIGTERM")).finish()
    assert statuses == [0, 0], printed
    assert all("interrupted, go on with --resume; 2 steps" in text for text in printed)
    assert not rows(tmp_path / "run0")
    statuses, printed = Machines(tmp_path, config, "--resume").finish()
    assert statuses == [0, 0], printed
    assert_close(tmp_path / "run0" / "last.keras", undisturbed / "run0" / "last.keras", atol=0, rtol=0)
    assert [row["step"] for row in rows(tmp_path / "run0")] == ["3", "5"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "tolerance"),
    [
        ({"clip_norm": 0.05, "steps_per_execution": 3, "average_momentum": 0.5, "gradient_accumulation_steps": 2}, 1e-6),
        ({"xla": True, "clip_norm": None}, 1e-6),
        # Rounding to eight bits turns the last bit of a sum into more.
        ({"precision": "mixed_bfloat16", "steps_per_execution": 3, "xla": True}, 1e-3),
        ({"precision": "mixed_float16", "optimizer": "adamw", "learning_rate": 1e-4}, 1e-3),
    ],
    ids=["clipped-averaged-parts-several-steps", "xla-unclipped", "bfloat16-xla-several-steps", "float16-adamw"],
)
def test_options_do_the_same_on_two_processes(config, tmp_path, values, tolerance):
    config = changed(config, eval_every=0, **values)
    statuses, printed = Machines(tmp_path, config).finish()
    assert statuses == [0, 0], printed
    expected = as_one_process(config, tmp_path / "one")
    names = {path.name for path in expected.output.glob("*.keras")}
    assert names == {path.name for path in (tmp_path / "run0").glob("*.keras")}
    for name in names:
        assert_close(tmp_path / "run0" / name, expected.output / name, atol=tolerance)


@pytest.mark.slow
def test_an_error_of_one_worker_ends_all_and_is_told(config, shapes_dir, tmp_path):
    """The second machine's training pictures are broken."""
    folders = []
    for index in range(2):
        folder = tmp_path / f"data{index}"
        folder.mkdir()
        for path in shapes_dir.iterdir():
            (folder / path.name).symlink_to(path)
        folders.append(folder)
    (folders[1] / "images").unlink()
    (folders[1] / "images").mkdir()
    for path in (shapes_dir / "images").iterdir():
        (folders[1] / "images" / path.name).write_bytes(b"broken" if path.name.startswith("train") else path.read_bytes())
    data = config.data.model_copy(update={"root": "."})
    machines = Machines(tmp_path, config.model_copy(update={"data": data}), cwds=folders)
    statuses, (chief, worker) = machines.finish()
    assert statuses == [1, 1]
    assert re.search(r"error: .*train_\d+\.png.*check-data", worker), worker
    assert re.search(r"error: worker 1 \(127\.0\.0\.1:\d+\) has ended: DataError: .*train_\d+\.png", chief), chief


@pytest.mark.slow
def test_configurations_that_differ_are_told(config, tmp_path):
    statuses, printed = Machines(tmp_path, config, configs=[config, changed(config, momentum=0.5)]).finish()
    assert statuses == [1, 1]
    assert all("differs from the chief in train.momentum: it has {'train.momentum': 0.5}" in text for text in printed), printed
    assert not (tmp_path / "run0").exists()
