"""What a step can do besides: synchronised norms, accumulated gradients, averaged weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.mask_rcnn import load_model
from mrcnn_tf.optimizers import AdamW, CoupledSGD, averaged_weights, averages_of
from tests.batches import make_batch, with_model
from tests.modeling.steps import (
    assert_close,
    averages,
    build,
    dataset_of,
    fit,
    frozen_trunk,
    named,
    numpy,
    one_device,
    two_devices,
    unequal_batches,
    weights,
)

STRATEGIES = pytest.mark.parametrize("strategy", [one_device, two_devices])


@pytest.fixture(scope="module")
def frozen(tiny_config):
    return frozen_trunk(tiny_config)


def test_synchronised_batch_norm_on_two_replicas_is_that_of_one_device(tiny_config):
    config = with_model(tiny_config, backbone={"frozen_stages": 5}, fpn={"norm": "sync_batch"})
    batches = unequal_batches(2)
    expected, _, expected_losses = fit(config, one_device(), batches)
    found, _, losses = fit(config, two_devices(), batches)
    assert losses == pytest.approx(expected_losses, abs=1e-4)
    moved = {name: numpy(v) for name, v in named(expected).items() if not v.trainable and name.startswith("fpn")}
    assert any("moving_mean" in name and np.abs(value).max() > 1e-3 for name, value in moved.items())
    assert_close({name: numpy(named(found)[name]) for name in moved}, moved, atol=1e-4)
    assert_close(weights(found), weights(expected), atol=1e-4)


@STRATEGIES
def test_accumulated_gradients_are_the_mean_of_the_parts(frozen, strategy):
    batch = make_batch(4, seed=3, empty=(1,))
    batch["gt_masks"][:] = 255  # in noise, rounding would decide about some pixels
    rate = 0.1
    model = build(frozen, one_device())
    start = weights(model)
    replicas = strategy().num_replicas_in_sync
    # Two replicas have images 0, 1 and 2, 3; the first parts of both are computed together.
    parts = [[0, 1], [2, 3]] if replicas == 1 else [[0, 2], [1, 3]]
    seeds = np.array([[6, image] for image in range(4)], np.int32)
    values = [variable.value for variable in model.trainable_variables]
    expected = {name: np.zeros_like(value) for name, value in start.items()}
    for part in parts:
        with tf.GradientTape() as tape:
            terms = model.training_graph({**{k: v[part] for k, v in batch.items()}, "seeds": seeds[part]}, training=True)
            loss = sum(terms[name][0] / tf.maximum(terms[name][1], 1.0) for name in model.loss_weights)
        gradients = dict(zip(map(id, model.trainable_variables), tape.gradient(loss, values), strict=True))
        for name in expected:
            expected[name] += gradients[id(named(model)[name])].numpy() / 2
    found, _, _ = fit(frozen, strategy(), [batch], optimizer=lambda: keras.optimizers.SGD(rate), gradient_accumulation_steps=2)
    assert_close(weights(found), {name: start[name] - rate * value for name, value in expected.items()}, atol=1e-5)


def test_accumulation_refuses_what_it_cannot_divide(frozen):
    model = build(frozen, one_device(), gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match=r"multiple of gradient_accumulation_steps=2, it has 3 images"):
        model.train_on_batch(make_batch(3))
    with pytest.raises(ValueError, match=r"compile\(gradient_accumulation_steps"):
        model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))


@STRATEGIES
@pytest.mark.parametrize("kind", [CoupledSGD, AdamW])
def test_averages_follow_the_weights(frozen, strategy, kind):
    momentum, seen = 0.15, []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(weights(self.model))

    model = build(frozen, strategy(), optimizer=lambda: kind(0.01, average_momentum=momentum))
    start = weights(model)
    model.fit(dataset_of(unequal_batches(3)), verbose=0, shuffle=False, callbacks=[Note()])
    expected = start
    for step, now in enumerate(seen):
        share = min(momentum, step / (10 + step))
        expected = {name: share * expected[name] + (1 - share) * value for name, value in now.items()}
    assert_close(averages(model), expected, atol=1e-6)
    with averaged_weights(model):
        assert_close(weights(model), expected, atol=1e-6)
    assert_close(weights(model), seen[-1], rtol=0)
    assert any(np.abs(value - seen[-1][name]).max() > 1e-5 for name, value in expected.items())


def test_averages_survive_saving_and_are_none_where_not_kept(frozen, tmp_path):
    model, _, _ = fit(frozen, one_device(), unequal_batches(2), optimizer=lambda: AdamW(0.01, average_momentum=0.1))
    model.save(tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras", compile=True)
    assert averages(model)
    assert_close(averages(again), averages(model), rtol=0)
    plain = build(frozen, one_device())
    assert averages_of(plain.optimizer) == []
    before = weights(plain)
    with averaged_weights(plain):
        assert_close(weights(plain), before, rtol=0)
