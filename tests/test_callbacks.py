"""The callbacks around a run, on a model of one layer."""

import csv

import keras
import numpy as np
import pytest

from mrcnn_tf.callbacks import (
    Checkpoints,
    CocoEvaluation,
    LearningRateLog,
    MetricsCsv,
    ProgressBar,
    StopConditions,
    describe_losses,
    save_model,
)
from mrcnn_tf.schedules import WarmupMultiStep


class Recorder(keras.callbacks.Callback):
    """Keeps the logs as the callbacks after the one under test see them."""

    def __init__(self):
        super().__init__()
        self.batches, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(dict(logs))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(logs))


class SetLogs(keras.callbacks.Callback):
    """Adds a figure to the logs of each epoch; None adds nothing."""

    def __init__(self, name, values):
        super().__init__()
        self.name, self.values = name, list(values)

    def on_epoch_end(self, epoch, logs=None):
        if self.values[epoch] is not None:
            logs[self.name] = self.values[epoch]


def make_model(rate=0.1):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), loss="mse")
    return model


def fit(*callbacks, epochs=2, steps=3, rate=0.1):
    model = make_model(rate)
    data = np.ones((steps, 2), np.float32)
    model.fit(data, data[:, :1], batch_size=1, epochs=epochs, callbacks=list(callbacks), verbose=0)
    return model


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("mrcnn_tf.callbacks.time", clock)
    return clock


def test_learning_rate_is_that_of_the_step_just_made():
    recorder = Recorder()
    fit(LearningRateLog(), recorder, rate=WarmupMultiStep(0.1, [2, 4], warmup_steps=0))
    expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert [logs["learning_rate"] for logs in recorder.batches] == pytest.approx(expected)
    assert [logs["learning_rate"] for logs in recorder.epochs] == pytest.approx([0.01, 0.001])


def test_stop_after_steps_in_the_middle_of_an_epoch():
    stop, recorder = StopConditions(5), Recorder()
    model = fit(stop, recorder, epochs=4)
    assert int(model.optimizer.iterations) == stop.steps == 5
    assert [logs["step"] for logs in recorder.epochs] == [3, 5]


def test_stop_after_minutes_of_steps_only(clock):
    class TakeTime(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            clock.now += 20  # the step

        def on_epoch_end(self, epoch, logs=None):
            clock.now += 1000  # evaluation, saving

    stop, recorder = StopConditions(100, max_minutes=1.5), Recorder()
    # a step takes 20 seconds: 90 seconds are over after the fifth
    fit(TakeTime(), stop, recorder, epochs=10)
    assert (stop.steps, stop.seconds) == (5, 100)
    assert [logs["train_seconds"] for logs in recorder.epochs] == [60, 100]


def test_no_time_limit(clock):
    stop = StopConditions(6)
    clock.now += 1e9
    fit(stop, epochs=2)
    assert stop.steps == 6


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_metrics_csv_leaves_cells_of_missing_figures_empty(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsCsv(path, ["epoch", "step", "loss", "val_bbox_AP", "never"])
    fit(StopConditions(99), SetLogs("loss", [0.123456789, 2.0]), SetLogs("val_bbox_AP", [None, 0.5]), log)
    assert read(path) == [
        ["epoch", "step", "loss", "val_bbox_AP", "never"],
        ["0", "3", "0.123457", "", ""],
        ["1", "6", "2", "0.5", ""],
    ]


def test_metrics_csv_is_readable_during_the_run(tmp_path):
    lengths = []

    class Peek(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            lengths.append(len(read(tmp_path / "metrics.csv")))

    fit(MetricsCsv(tmp_path / "metrics.csv", ["epoch", "loss"]), Peek(), epochs=3)
    assert lengths == [2, 3, 4]


def figures(value):
    return {"AP": value, "AP50": value, "AP75": None, "APs": 0.1}


@pytest.mark.parametrize(("every", "epochs"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (9, [4]), (0, [])])
def test_evaluation_every_few_epochs_and_at_the_end(every, epochs):
    recorder, stop = Recorder(), StopConditions(15)
    evaluation = CocoEvaluation(lambda: {"bbox": figures(0.5)}, every=every, last_step=lambda: stop.steps >= 15)
    fit(stop, evaluation, recorder, epochs=5)
    assert [epoch for epoch, logs in enumerate(recorder.epochs) if "val_bbox_AP" in logs] == epochs


def test_evaluation_names_the_figures_that_were_measured():
    recorder = Recorder()
    measured = {"bbox": figures(0.25), "segm": figures(0.5)}
    fit(CocoEvaluation(lambda: measured, every=1, last_step=lambda: False), recorder, epochs=1)
    found = {name: value for name, value in recorder.epochs[0].items() if name.startswith("val_")}
    assert found == {"val_bbox_AP": 0.25, "val_bbox_AP50": 0.25, "val_segm_AP": 0.5, "val_segm_AP50": 0.5}


@pytest.mark.parametrize(
    ("values", "best"),
    [([0.1, 0.5, 0.4], 1), ([0.5, 0.5, 0.4], 0), ([None, 0.0, None], 1), ([None, None, None], None), ([np.nan, 0.2, np.nan], 1)],
)
def test_checkpoints_keep_the_best_and_the_last(tmp_path, values, best):
    weights = []

    class Note(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weights.append(self.model.get_weights()[0])

    fit(SetLogs("val_segm_AP", values), Note(), Checkpoints(tmp_path, "val_segm_AP"), epochs=3, steps=1)
    kept = {path.name: keras.saving.load_model(path).get_weights()[0] for path in tmp_path.iterdir()}
    assert sorted(kept) == (["last.keras"] if best is None else ["best.keras", "last.keras"])
    np.testing.assert_array_equal(kept["last.keras"], weights[-1])
    if best is not None:
        np.testing.assert_array_equal(kept["best.keras"], weights[best])


def test_save_model_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.keras"
    model = make_model()
    save_model(model, path)
    before = path.read_bytes()

    def fail(self, temporary, **kwargs):
        temporary.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(keras.Model, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_describe_losses():
    logs = {"loss": 1.23456, "rpn_class_loss": np.float32(0.5), "val_bbox_AP": 0.9, "learning_rate": 0.0123}
    assert describe_losses(logs) == "loss 1.235  rpn_class 0.500  lr 0.012"
    assert describe_losses({}).strip() == "lr 0"


def test_progress_without_a_terminal_is_a_line_now_and_then(clock, capsys):
    class TakeTime(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            clock.now += 10

    fit(ProgressBar(6), TakeTime(), LearningRateLog(), SetLogs("val_bbox_AP", [0.25, 0.5]), epochs=2)
    lines = capsys.readouterr().err.splitlines()
    # every 15 seconds at most, and a step takes 10
    steps = [line.split()[1] for line in lines if line.startswith("step") and "/" in line]
    assert steps == ["1/6", "3/6", "5/6"]
    assert "loss" in lines[0]


def test_progress_tells_what_was_evaluated(capsys):
    bar = ProgressBar(6)
    fit(SetLogs("val_bbox_AP", [None, 0.5]), bar, epochs=2)
    assert [line for line in capsys.readouterr().err.splitlines() if "bbox_AP" in line] == ["step 6: bbox_AP 0.5000"]
