"""The training step: one against two replicas, XLA against none, clipping, seeds, the empty cases, the compiled file."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.mask_rcnn import MaskRCNN, load_model
from mrcnn_tf.optimizers import CoupledSGD
from tests.batches import make_batch, with_model
from tests.modeling.steps import fit, frozen_trunk, one_device, two_devices, unequal_batches


def test_two_replicas_take_the_step_of_one(tiny_config):
    batches = unequal_batches()
    _, expected, expected_losses = fit(tiny_config, one_device(), batches)
    _, found, losses = fit(tiny_config, two_devices(), batches)
    for first, second in zip(expected, found, strict=True):
        np.testing.assert_allclose(second, first, atol=1e-5)
    for name, value in expected_losses.items():
        assert losses[name] == pytest.approx(value, abs=1e-5)


def test_xla_takes_the_same_step_on_one_and_two_replicas(tiny_config):
    """With a frozen trunk, whose gradient XLA would take minutes to compile on two cores."""
    config = with_model(tiny_config, backbone={"frozen_stages": 5})
    batches = unequal_batches(1)
    _, expected, expected_losses = fit(config, one_device(), batches)
    for strategy in (one_device(), two_devices()):
        _, found, losses = fit(config, strategy, batches, jit_compile=True)
        for name, value in expected_losses.items():
            assert losses[name] == pytest.approx(value, abs=2e-4)
        for first, second in zip(expected, found, strict=True):
            np.testing.assert_allclose(second, first, atol=1e-4)


def test_clipping_uses_the_norm_over_all_replicas(tiny_config):
    """Keras clips before the all-reduce; were that mended, `sum_and_clip` could go, and this would still hold."""
    batches = unequal_batches(1)

    def clipped():
        return keras.optimizers.SGD(1.0, global_clipnorm=0.01)

    _, expected, _ = fit(tiny_config, one_device(), batches, optimizer=clipped)
    _, found, _ = fit(tiny_config, two_devices(), batches, optimizer=clipped)
    keras.utils.set_random_seed(7)
    start = [keras.ops.convert_to_numpy(variable) for variable in MaskRCNN(tiny_config).trainable_variables]
    moved = np.sqrt(sum(np.sum((after - before) ** 2) for after, before in zip(expected, start, strict=True)))
    assert moved == pytest.approx(0.01, rel=1e-3)
    for first, second in zip(expected, found, strict=True):
        np.testing.assert_allclose(second, first, atol=1e-6)


def test_keras_still_clips_before_the_all_reduce():
    """When this fails Keras has mended its clipping, and `sum_and_clip` can go."""
    strategy = two_devices()
    with strategy.scope():
        variable = keras.Variable(0.0)
        optimizer = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
        optimizer.build([variable])

    def step():
        gradient = tf.where(tf.distribute.get_replica_context().replica_id_in_sync_group == 0, 10.0, -9.0)
        optimizer.apply_gradients([(gradient, variable)])

    strategy.run(tf.function(step))
    assert float(keras.ops.convert_to_numpy(variable)) == pytest.approx(0.0)


def test_gradients_go_through_the_network_once(tiny_config, monkeypatch):
    """When the last line but one fails, Keras adds up no longer, and `leave_the_sum_to_us` can go."""
    summed = []
    all_reduce = tf.distribute.ReplicaContext.all_reduce

    def counting(self, how, value, *args):
        summed.append(sum(tensor.shape.num_elements() for tensor in tf.nest.flatten(value)))
        return all_reduce(self, how, value, *args)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", counting)
    model, _, _ = fit(frozen_trunk(tiny_config), two_devices(), unequal_batches(1))
    size = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    assert sum(summed) == pytest.approx(2 * size, rel=1e-3)
    summed.clear()
    with (strategy := two_devices()).scope():
        variable = keras.Variable(np.zeros(7))
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build([variable])
    strategy.run(tf.function(lambda: optimizer.apply_gradients([(tf.ones(7), variable)])))
    assert sum(summed) == 2 * 7
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), -2)


@pytest.mark.parametrize("empty", [(0,), (0, 1)], ids=["one", "all"])
def test_images_without_objects_give_finite_losses_and_updates(tiny_config, empty):
    model, weights, losses = fit(tiny_config, one_device(), [make_batch(2, empty=empty)])
    assert all(np.isfinite(value) for value in losses.values())
    assert all(np.isfinite(weight).all() for weight in weights)
    if len(empty) == 2:
        assert losses["mask_loss"] == losses["box_loss"] == losses["rpn_box_loss"] == 0
    assert losses["loss"] == pytest.approx(sum(losses[name] for name in model.loss_weights), rel=1e-5)


def test_one_pixel_and_zero_area_boxes_give_finite_losses(tiny_config):
    batch = make_batch(2)
    batch["gt_boxes"][0, 0] = [5, 5, 6, 6]
    batch["gt_boxes"][0, 1] = [9, 9, 9, 30]
    _, weights, losses = fit(tiny_config, one_device(), [batch])
    assert all(np.isfinite(value) for value in losses.values())
    assert all(np.isfinite(weight).all() for weight in weights)


def test_the_sample_depends_on_seed_and_step_only(tiny_config):
    batches = [make_batch(2, seed=5)]
    _, _, first = fit(tiny_config, one_device(), batches, seed=1)
    _, _, again = fit(tiny_config, one_device(), batches, seed=1)
    _, _, other = fit(tiny_config, one_device(), batches, seed=2)
    assert first == again
    assert any(first[name] != other[name] for name in first)


def test_loss_weights(tiny_config):
    batches = [make_batch(2)]
    _, _, plain = fit(tiny_config, one_device(), batches)
    _, _, doubled = fit(with_model(tiny_config, mask_head={"loss_weight": 2.0}), one_device(), batches)
    assert doubled["mask_loss"] == pytest.approx(2 * plain["mask_loss"], rel=1e-5)
    assert doubled["class_loss"] == pytest.approx(plain["class_loss"], rel=1e-5)


def test_a_loaded_model_goes_on_training(tiny_config, tmp_path):
    model, _, _ = fit(tiny_config, one_device(), [make_batch(2)], optimizer=lambda: CoupledSGD(0.05))
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = load_model(path, compile=True)
    assert int(keras.ops.convert_to_numpy(loaded.optimizer.iterations)) == 1
    batch = make_batch(2, seed=9)
    expected = model.train_on_batch(batch, return_dict=True)
    assert loaded.train_on_batch(batch, return_dict=True)["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for first, second in zip(model.trainable_variables, loaded.trainable_variables, strict=True):
        np.testing.assert_allclose(second.numpy(), first.numpy(), atol=1e-6)


def test_evaluate_and_predict_take_the_training_batches(tiny_config):
    model, _, _ = fit(tiny_config, one_device(), [make_batch(2)])
    dataset = tf.data.Dataset.from_tensors(make_batch(2)).repeat(2)
    losses = model.evaluate(dataset, verbose=0, return_dict=True)
    assert set(losses) == {"loss", *model.loss_weights, *model.observed}
    found = model.predict(dataset, verbose=0)
    assert found["detection_boxes"].shape == (4, model.config.box_head.max_detections, 4)


def test_synchronised_norm_turns_xla_off_and_says_why(tiny_config, caplog):
    model = MaskRCNN(with_model(tiny_config, fpn={"norm": "sync_batch"}))
    with caplog.at_level("WARNING", logger="mrcnn_tf.train"):
        model.compile(keras.optimizers.SGD(0.1), jit_compile=True)
    assert "XLA is off" in caplog.text
    assert np.isfinite(model.train_on_batch(make_batch(2), return_dict=True)["loss"])


def test_fit_traces_once(tiny_config):
    model = MaskRCNN(tiny_config)
    model.compile(keras.optimizers.SGD(0.01))
    traces = []
    step = model.train_step
    model.train_step = lambda data: (traces.append(1), step(data))[1]
    dataset = tf.data.Dataset.from_tensors(make_batch(2)).repeat(6)
    model.fit(dataset, epochs=2, steps_per_epoch=3, verbose=0, shuffle=False)
    assert len(traces) == 1


@pytest.mark.slow
def test_one_picture_overfits(tiny_config):
    """The losses of a batch that is seen again and again fall to a fraction."""
    keras.utils.set_random_seed(0)
    model = MaskRCNN(tiny_config)
    model.compile(CoupledSGD(0.02, global_clipnorm=5.0))
    dataset = tf.data.Dataset.from_tensors(make_batch(2)).repeat(600)
    model.fit(dataset.take(1), verbose=0, shuffle=False)
    first = model.evaluate(dataset.take(1), verbose=0, return_dict=True)
    model.fit(dataset, verbose=0, shuffle=False)
    last = model.evaluate(dataset.take(1), verbose=0, return_dict=True)
    assert last["class_loss"] + last["box_loss"] < 0.5 * (first["class_loss"] + first["box_loss"])
