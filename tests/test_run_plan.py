"""How a run is divided, and that its callbacks see one training."""

import keras
import numpy as np
import pytest

from mrcnn_tf.config import ConfigError
from mrcnn_tf.run_plan import RunCallbacks, Stretch, plan_run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((9, 3), [Stretch(0, 0, 3, 3, 0)]),
        ((7, 3), [Stretch(0, 0, 2, 3, 0), Stretch(6, 2, 1, 1, 0)]),
        ((2, 3), [Stretch(0, 0, 1, 2, 0)]),
        # resumed at the end of an epoch, within one, in the last, and after it
        ((7, 3, (), 3), [Stretch(3, 1, 1, 3, 0), Stretch(6, 2, 1, 1, 0)]),
        ((9, 3, (), 4), [Stretch(4, 1, 1, 2, 0), Stretch(6, 2, 1, 3, 0)]),
        ((7, 3, (), 7), []),
        ((7, 3, (), 9), []),
        # stages at the end of an epoch and within one
        ((9, 3, (0, 6)), [Stretch(0, 0, 2, 3, 0), Stretch(6, 2, 1, 3, 1)]),
        ((9, 3, (0, 4)), [Stretch(0, 0, 1, 3, 0), Stretch(3, 1, 1, 1, 0), Stretch(4, 2, 1, 2, 1), Stretch(6, 3, 1, 3, 1)]),
        ((9, 3, (0, 4), 5), [Stretch(5, 2, 1, 1, 1), Stretch(6, 3, 1, 3, 1)]),
        ((6, 3, (0, 1, 2)), [Stretch(0, 0, 1, 1, 0), Stretch(1, 1, 1, 1, 1), Stretch(2, 2, 1, 1, 2), Stretch(3, 3, 1, 3, 2)]),
    ],
)
def test_plan(arguments, expected):
    assert list(plan_run(*arguments)) == expected


@pytest.mark.parametrize("done", range(24))
def test_an_interruption_moves_no_end_of_an_epoch(done):
    def epochs(plan):
        return [
            (s.first_epoch + number, s.start + (number + 1) * s.epoch_steps, s.stage)
            for s in plan
            for number in range(s.num_epochs)
        ]

    whole = epochs(plan_run(23, 5, (0, 7, 15)))
    assert epochs(plan_run(23, 5, (0, 7, 15), done)) == [epoch for epoch in whole if epoch[1] > done]


def test_a_stage_after_the_end():
    with pytest.raises(ConfigError, match=r"train\.stages: a stage starts at step 9, but the run has 9 steps"):
        plan_run(9, 3, (0, 9))


class Count(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append("begin")

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(epoch)

    def on_train_end(self, logs=None):
        self.calls.append("end")


def test_callbacks_see_one_training():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    count = Count()
    around = RunCallbacks([count], model)
    for epoch in range(3):
        model.fit(np.ones((2, 1)), np.ones((2, 1)), initial_epoch=epoch, epochs=epoch + 1, callbacks=around, verbose=0)
    around.finish()
    assert count.calls == ["begin", 0, 1, 2, "end"]


def test_callbacks_of_a_run_that_was_over_hear_nothing():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    count = Count()
    RunCallbacks([count], model).finish()
    assert count.calls == []
