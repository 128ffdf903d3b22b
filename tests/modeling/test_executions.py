"""Several steps per execution, and evaluation and prediction under a strategy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.executions import Executions
from mrcnn_tf.modeling.loss_scale import steps_made
from tests.batches import make_batch
from tests.modeling.steps import (
    assert_close,
    build,
    dataset_of,
    frozen_trunk,
    numpy,
    one_device,
    two_devices,
    unequal_batches,
    weights,
)


@pytest.fixture(scope="module")
def frozen(tiny_config):
    return frozen_trunk(tiny_config)


def test_executions_end_with_the_epoch():
    executions = Executions(4, 10)
    assert [executions.next_count() for _ in range(6)] == [4, 4, 2, 4, 4, 2]
    assert Executions(4, None).next_count() is None
    assert [Executions(4, 3).next_count()] == [3]


class Count(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(int(numpy(steps_made(self.model.optimizer))))


@pytest.mark.parametrize(
    ("strategy", "jit_compile"),
    [
        pytest.param(one_device, False, marks=pytest.mark.slow),
        (two_devices, False),
        pytest.param(two_devices, True, marks=pytest.mark.slow),
    ],
)
def test_several_steps_per_execution_give_the_weights_of_single_ones(frozen, strategy, jit_compile):
    batches = unequal_batches(5)
    single = build(frozen, one_device(), jit_compile=jit_compile)
    single.fit(dataset_of(batches), verbose=0, shuffle=False)
    several, count = build(frozen, strategy(), jit_compile=jit_compile, steps_per_execution=3), Count()
    several.fit(dataset_of(batches), verbose=0, shuffle=False, callbacks=[count])
    assert count.seen == [3, 5]
    assert_close(weights(several), weights(single), atol=1e-4 if jit_compile else 2e-5)


def test_the_tail_of_each_epoch_is_made_and_no_more(frozen):
    batches = unequal_batches(4)
    model, count = build(frozen, two_devices(), steps_per_execution=3), Count()
    model.fit(dataset_of(batches).repeat(), epochs=2, steps_per_epoch=4, verbose=0, shuffle=False, callbacks=[count])
    assert count.seen == [3, 4, 7, 8]
    other = build(frozen, one_device())
    other.fit(dataset_of(batches).repeat(2), verbose=0, shuffle=False)
    assert_close(weights(model), weights(other), atol=5e-5)


def test_data_of_unknown_length_are_all_used(frozen):
    batches = unequal_batches(4)
    unknown = dataset_of(batches).filter(lambda batch: True)
    model = build(frozen, one_device(), steps_per_execution=3)
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(unknown, verbose=0, shuffle=False)
    assert int(numpy(model.optimizer.iterations)) == 4
    expected = model.evaluate(dataset_of(batches), verbose=0, return_dict=True)
    with pytest.warns(UserWarning, match="ran out of data"):
        assert model.evaluate(unknown, verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-6)


def test_keras_still_cannot_make_several_steps_under_a_strategy():
    """When this fails Keras has mended it, and `executions` may go."""
    with two_devices().scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", steps_per_execution=2)
    data = tf.data.Dataset.from_tensors((np.ones((2, 1), np.float32), np.ones((2, 1), np.float32))).repeat(4)
    with pytest.raises(Exception):  # noqa: B017, PT011 - which one depends on TensorFlow
        model.fit(data, verbose=0)


@pytest.mark.parametrize("steps_per_execution", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_evaluate_and_predict_under_a_strategy_give_the_numbers_of_one_device(frozen, steps_per_execution):
    """The last batch has one image, so that the second replica gets none."""
    random = [make_batch(2, seed=seed, empty=(1,) if seed else ()) for seed in range(2)]
    images = {key: np.concatenate([batch[key] for batch in random] + [random[0][key][:1]]) for key in random[0]}
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(2)
    one = build(frozen, one_device(), steps_per_execution=steps_per_execution)
    two = build(frozen, two_devices(), steps_per_execution=steps_per_execution)
    for model in (one, two):
        model.optimizer.iterations.assign(3)
    three = tf.data.Dataset.from_tensor_slices(images).batch(3)  # on two replicas 2 and 1, then 2 and 0
    unequal = one.evaluate(three, verbose=0, return_dict=True)
    assert two.evaluate(three, verbose=0, return_dict=True) == pytest.approx(unequal, rel=1e-5)
    expected = one.evaluate(dataset, verbose=0, return_dict=True)
    assert two.evaluate(dataset, verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-5)
    assert one.evaluate(dataset.take(2), steps=2, verbose=0, return_dict=True) != pytest.approx(expected, rel=1e-5)
    first, second = one.predict(dataset, verbose=0), two.predict(dataset, verbose=0)
    assert first["detection_boxes"].shape == (5, 10, 4)
    assert first["num_detections"].sum() > 0
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_fit_evaluates_between_epochs(frozen):
    batches = unequal_batches(3)
    model = build(frozen, two_devices(), steps_per_execution=2)
    history = model.fit(dataset_of(batches), validation_data=dataset_of(batches), epochs=2, verbose=0, shuffle=False)
    assert len(history.history["val_loss"]) == 2
    again = model.evaluate(dataset_of(batches), verbose=0, return_dict=True)
    assert again["loss"] == pytest.approx(history.history["val_loss"][-1], rel=1e-5)
