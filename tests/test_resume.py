"""Runs that are interrupted and go on, and what stops a run."""

import contextlib
import math
import os
import resource
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from mrcnn_tf import train as train_module
from mrcnn_tf.callbacks import FiniteLosses, NonFiniteLossError, save_model
from mrcnn_tf.config import ConfigError, TrainConfig
from mrcnn_tf.modeling.mask_rcnn import load_model
from mrcnn_tf.resume import check_same, restore
from mrcnn_tf.train import build_model, train
from tests.modeling.steps import frozen_trunk, two_devices

STEPS, EPOCH_STEPS = 7, 3


@pytest.fixture(scope="module")
def config(tiny_config):
    """Seven steps of epochs of three; a pass over the data is six."""
    section = tiny_config.train.model_copy(update={"num_steps": STEPS, "epoch_steps": EPOCH_STEPS, "eval_every": 0})
    return tiny_config.model_copy(update={"train": section})


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    return train(config, tmp_path_factory.mktemp("unbroken") / "run", progress=False)


def weights_of(path):
    # Paths are not unique, the order is always the same.
    return {f"{number} {weight.path}": np.asarray(weight) for number, weight in enumerate(load_model(path).weights)}


@contextlib.contextmanager
def strategies():
    """Another numbering of the collectives for each, see `two_devices`."""
    two_devices()
    yield


def restored_step(config, output):
    return restore(build_model(config), output).steps


def assert_same_end(output, unbroken):
    expected = weights_of(unbroken / "last.keras")
    for name, value in weights_of(output / "last.keras").items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def steps_in(output):
    lines = (output / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("step")
    return [int(line.split(",")[column]) for line in lines[1:]]


class Killed(BaseException):
    """Leaves a run as SIGKILL does, without its closing words."""


def at_step(step, act, monkeypatch):
    """Make the next run do something after a step."""

    class Trap(FiniteLosses):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self.steps == step:
                act()

    monkeypatch.setattr(train_module, "FiniteLosses", Trap)


def die():
    raise Killed


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(6, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(config, unbroken, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        at_step(step, die, patch)
        with pytest.raises(Killed):
            train(config, tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "last.keras").exists() == (step > EPOCH_STEPS)
    again = train(config, tmp_path / "run", progress=False, resume=True)
    assert (again.steps, steps_in(tmp_path / "run")) == (STEPS, [3, 6, 7])
    assert_same_end(tmp_path / "run", unbroken.output)


def test_sigterm_saves_within_an_epoch_and_the_run_goes_on_there(config, unbroken, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        run = train(config, tmp_path / "run", progress=False)
    assert run.interrupted
    model = build_model(config)
    assert restore(model, tmp_path / "run").steps == 5
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    again = train(config, tmp_path / "run", progress=False, resume=True)
    assert (again.steps, again.interrupted) == (STEPS, False)
    # The epoch that was interrupted ends where it would have ended.
    assert steps_in(tmp_path / "run") == [3, 6, 7]
    assert_same_end(tmp_path / "run", unbroken.output)


@pytest.mark.slow
def test_sigterm_while_tensorflow_traces_or_a_picture_is_evaluated_breaks_nothing(config, tmp_path, monkeypatch):
    config = with_train(config, eval_every=1, tensorboard_images=0)
    step = train_module.MaskRCNN.train_step
    with monkeypatch.context() as patch:
        patch.setattr(train_module.MaskRCNN, "train_step", lambda *args: (os.kill(os.getpid(), signal.SIGTERM), step(*args))[1])
        run = train(config, tmp_path / "run", progress=False)
    assert (run.interrupted, run.steps) == (True, 1)
    call = train_module.Predictor.__call__
    with monkeypatch.context() as patch:
        patch.setattr(train_module.Predictor, "__call__", lambda *args: (os.kill(os.getpid(), signal.SIGTERM), call(*args))[1])
        run = train(config, tmp_path / "run", progress=False, resume=True)
    # In the first evaluation, before its second picture.
    assert (run.interrupted, run.steps) == (True, EPOCH_STEPS)
    assert restored_step(config, tmp_path / "run") == EPOCH_STEPS


def with_train(config, **values):
    section = TrainConfig.model_validate({**config.train.model_dump(), **values})
    return config.model_copy(update={"train": section})


@pytest.mark.slow
def test_a_run_with_everything_goes_on_too(config, tmp_path, monkeypatch):
    """AdamW, averages, parts, stages, several steps per execution, two replicas, evaluation: nothing of it is lost."""
    stages = [{"start": 0, "freeze": ["fpn", "rpn_head"], "learning_rate_factor": 0.5}, {"start": 4}]
    config = with_train(
        frozen_trunk(config),
        optimizer="adamw",
        learning_rate=1e-3,
        average_momentum=0.1,
        batch_size=4,
        gradient_accumulation_steps=2,
        stages=stages,
        steps_per_execution=2,
        strategy="mirrored",
        eval_every=1,
    )
    with strategies():
        whole = train(config, tmp_path / "whole", progress=False)
    assert steps_in(whole.output) == [3, 4, 6, 7]
    assert sorted(path.name for path in whole.output.glob("*.keras")) == ["averaged.keras", "best.keras", "last.keras"]
    with monkeypatch.context() as patch, strategies():
        at_step(6, die, patch)
        with pytest.raises(Killed):
            train(config, tmp_path / "run", progress=False)
    with strategies():
        assert restored_step(config, tmp_path / "run") == 4
    with strategies():
        train(config, tmp_path / "run", progress=False, resume=True)
    assert steps_in(tmp_path / "run") == [3, 4, 6, 7]
    for name in ("last.keras", "averaged.keras", "best.keras"):
        expected = weights_of(whole.output / name)
        for path, value in weights_of(tmp_path / "run" / name).items():
            np.testing.assert_array_equal(value, expected[path], err_msg=f"{name} {path}")
    last, averaged = (weights_of(whole.output / name) for name in ("last.keras", "averaged.keras"))
    assert any((value != averaged[path]).any() for path, value in last.items())


def test_early_stopping_ends_the_run_and_it_stays_ended(config, tmp_path, monkeypatch, capsys):
    figures = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    monkeypatch.setattr(
        train_module, "evaluate", lambda *args, **kwargs: {"segm": dict.fromkeys(("AP", "AP50", "AP75"), next(figures))}
    )
    config = with_train(config, num_steps=20, epoch_steps=1, eval_every=1, early_stopping_patience=2, tensorboard_images=0)
    run = train(config, tmp_path / "run", progress=False)
    assert run.steps == 4
    assert "no new best in 2 evaluations" in capsys.readouterr().err
    assert train(config, tmp_path / "run", progress=False, resume=True).steps == 4
    assert steps_in(tmp_path / "run") == [1, 2, 3, 4]


def test_a_loss_that_is_not_finite_is_found_among_several_steps(config, tmp_path, monkeypatch):
    config = with_train(config, steps_per_execution=3)
    monkeypatch.setattr(train_module, "build_model", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"steps 1 to 3: .*class_loss.* not finite; the images: (train_\d+\.png, ){5}"):
        train(config, tmp_path / "run", progress=False)


def test_a_finished_run_has_nothing_to_do(config, unbroken):
    before = (unbroken.output / "last.keras").read_bytes()
    assert train(config, unbroken.output, progress=False, resume=True).steps == STEPS
    assert (unbroken.output / "last.keras").read_bytes() == before


def test_resume_without_a_run_begins_one(config, tmp_path):
    section = config.train.model_copy(update={"num_steps": 1})
    run = train(config.model_copy(update={"train": section}), tmp_path / "run", progress=False, resume=True)
    assert run.steps == 1


def test_another_configuration_is_not_resumed(config, unbroken):
    section = config.train.model_copy(update={"learning_rate": 0.5, "momentum": 0.1})
    with pytest.raises(ConfigError, match=r"differs .* in train\.learning_rate, train\.momentum; resume with"):
        check_same(config.model_copy(update={"train": section}), unbroken.output)


def test_a_run_goes_on_with_another_strategy(config, unbroken):
    check_same(with_train(config, strategy="mirrored", cluster="slurm", cluster_timeout=5, communication="nccl"), unbroken.output)


def test_a_broken_checkpoint_is_named(config, tmp_path):
    (tmp_path / "last.keras").write_bytes(b"half")
    with pytest.raises(ConfigError, match=r"last\.keras cannot be resumed from"):
        restore(build_model(config), tmp_path)


def test_a_row_cut_off_by_a_kill_is_made_again(config, unbroken, tmp_path):
    lines = (unbroken.output / "metrics.csv").read_text().splitlines()
    (tmp_path / "metrics.csv").write_text("\n".join([*lines[:2], lines[2][:4]]))
    (tmp_path / "last.keras").write_bytes((unbroken.output / "last.keras").read_bytes())
    state = restore(build_model(config), tmp_path)
    assert [row["step"] for row in state.rows] == ["3"]
    assert state.measured("val_segm_AP") == []
    assert len(state.measured("loss")) == 1


def poisoned(config, strategy):
    model = build_model(config, strategy)
    bias = model.box_head.get_layer("class_logits").bias
    bias.assign(np.full(bias.shape, math.nan))
    return model


def test_a_loss_that_is_not_finite_stops_with_step_loss_and_images(config, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "build_model", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"step 1: .*class_loss.* not finite; .*train_\d+\.png, .*nothing was saved"):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "last.keras").exists()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / "last.keras"
    save_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), path)
    before = path.read_bytes()
    large = keras.Sequential([keras.Input((300,)), keras.layers.Dense(300)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Files may not grow any further: the nearest thing to a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError, match=r"last\.keras could not be written: .*the file of before is still there"):
            save_model(large, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.keras"]


@pytest.mark.slow
def test_a_process_killed_again_and_again_ends_where_an_unbroken_one_does(config, tmp_path):
    source = tmp_path / "config.yaml"
    source.write_text(config.to_yaml())
    command = [sys.executable, "-c", "from mrcnn_tf.cli import main; main()", "train", str(source), "--resume"]
    command += ["--output", str(tmp_path / "run")]
    began = time.monotonic()
    subprocess.run([*command[:-1], str(tmp_path / "unbroken")], check=True, capture_output=True)
    whole = time.monotonic() - began
    for part in (0.5, 0.7, 0.8, 0.9, 0.97):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(part * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    # Another process than that of the tests, whose TensorFlow has two devices and other numbers.
    assert_same_end(tmp_path / "run", tmp_path / "unbroken")
    assert steps_in(tmp_path / "run") == steps_in(tmp_path / "unbroken")
