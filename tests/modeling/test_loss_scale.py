"""Loss scaling: the step of float32, overflows on any replica, clipping, the file."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.loss_scale import DynamicLossScale, steps_made
from mrcnn_tf.modeling.mask_rcnn import load_model
from mrcnn_tf.optimizers import CoupledSGD
from tests.batches import make_batch
from tests.modeling.steps import (
    assert_close,
    build,
    dataset_of,
    fit,
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


@pytest.fixture
def float16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


def test_float16_takes_about_the_step_of_float32(frozen, request):
    batches = unequal_batches(1)
    _, expected, _ = fit(frozen, one_device(), batches)
    request.getfixturevalue("float16")
    model, found, losses = fit(frozen, two_devices(), batches)
    assert isinstance(model.optimizer, DynamicLossScale)
    assert all(np.isfinite(value) for value in losses.values())
    for first, second in zip(expected, found, strict=True):
        assert second.dtype == np.float32
        np.testing.assert_allclose(second, first, atol=0.02)


@pytest.mark.parametrize(
    ("broken", "clip"),
    [
        pytest.param(0, {}, marks=pytest.mark.slow),
        (1, {}),
        (1, {"global_clipnorm": 1.0}),
        pytest.param(1, {"clipnorm": 1.0}, marks=pytest.mark.slow),
        pytest.param(0, {"clipvalue": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_an_overflow_on_any_replica_skips_the_step_on_all_and_lowers_the_scale(frozen, float16, monkeypatch, broken, clip):
    """Keras 3.15.1 asks replica 0 alone, and clipping by value would hide the overflow."""
    batch = make_batch(2)
    model = build(frozen, two_devices(), optimizer=lambda: keras.optimizers.SGD(0.1, **clip))
    inner = type(model)._gradients

    def poisoned(self, part, values, *, after):
        gradients, logs = inner(self, part, values, after=after)
        at = tf.distribute.get_replica_context().replica_id_in_sync_group == broken
        return [tf.where(at, np.inf, gradients[0]), *gradients[1:]], logs

    before, scale = weights(model), float(numpy(model.optimizer.dynamic_scale))
    monkeypatch.setattr(type(model), "_gradients", poisoned)
    model.fit(dataset_of([batch]), verbose=0, shuffle=False)
    assert_close(weights(model), before, rtol=0)
    assert float(numpy(model.optimizer.dynamic_scale)) == scale / 2
    # The batch is used up, but the rate of learning goes on where it was.
    assert (int(numpy(steps_made(model.optimizer))), int(numpy(model.optimizer.iterations))) == (1, 0)


@pytest.mark.slow
def test_clipping_of_scaled_gradients_is_by_their_true_size(frozen, float16):
    batches = unequal_batches(1)
    clipped = {"optimizer": lambda: keras.optimizers.SGD(1.0, global_clipnorm=0.01)}
    start = weights(build(frozen, one_device()))
    for strategy in (one_device(), two_devices()):
        model, _, _ = fit(frozen, strategy, batches, **clipped)
        moved = np.sqrt(sum(np.sum((value - start[name]) ** 2) for name, value in weights(model).items()))
        assert moved == pytest.approx(0.01, rel=1e-3)


def test_keras_still_asks_one_replica_whether_gradients_are_finite():
    """When this fails Keras has mended it, and loss scaling needs no sum over the replicas in `sum_and_clip`."""
    strategy = two_devices()
    with strategy.scope():
        variable = keras.Variable(0.0)
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0))
        optimizer.build([variable])

    def step():
        gradient = tf.where(tf.distribute.get_replica_context().replica_id_in_sync_group == 1, np.inf, 1.0)
        optimizer.apply_gradients([(gradient, variable)])

    strategy.run(tf.function(step))
    assert not np.isfinite(numpy(variable))


def test_a_float16_model_comes_back_with_its_scale(frozen, float16, tmp_path):
    model, _, _ = fit(frozen, one_device(), [make_batch(2)], optimizer=lambda: CoupledSGD(0.05))
    model.optimizer.dynamic_scale.assign(512.0)
    model.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy("float32")
    again = load_model(tmp_path / "model.keras", compile=True)
    assert again.dtype_policy.name == "mixed_float16"
    assert isinstance(again.optimizer, DynamicLossScale)
    assert isinstance(again.optimizer.inner_optimizer, CoupledSGD)
    assert (float(numpy(again.optimizer.dynamic_scale)), int(numpy(steps_made(again.optimizer)))) == (512.0, 1)
