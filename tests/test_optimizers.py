"""Schedules against hand-made tables, and the optimizer against the update rule that PyTorch documents."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import TrainConfig
from mrcnn_tf.optimizers import CoupledSGD, WarmupCosine, WarmupMultiStep, build_optimizer, build_schedule, num_steps


def rates(schedule, steps):
    return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"schedule": "1x"}, {0: 2e-5, 500: 0.01001, 1000: 0.02, 59_999: 0.02, 60_000: 0.002, 79_999: 0.002, 80_000: 0.0002}),
        ({"schedule": "3x"}, {1000: 0.02, 209_999: 0.02, 210_000: 0.002, 250_000: 0.0002, 269_999: 0.0002}),
        # half the batch: half the rate, twice the steps, warm-up included
        (
            {"schedule": "1x", "batch_size": 8},
            {0: 1e-5, 1000: 0.005005, 2000: 0.01, 119_999: 0.01, 120_000: 0.001, 160_000: 1e-4},
        ),
        ({"schedule": "3x", "batch_size": 32}, {500: 0.04, 104_999: 0.04, 105_000: 0.004, 125_000: 0.0004}),
        (
            {"schedule": "steps", "num_steps": 900, "warmup_steps": 10, "warmup_factor": 0.1},
            {0: 0.002, 5: 0.011, 10: 0.02, 599: 0.02, 600: 0.002, 799: 0.002, 800: 0.0002, 900: 0.0002},
        ),
        (
            {"schedule": "steps", "num_steps": 100, "warmup_steps": 0, "milestones": (0.5,), "batch_size": 4},
            {0: 0.005, 49: 0.005, 50: 0.0005},
        ),
        ({"schedule": "steps", "num_steps": 100, "warmup_steps": 0, "milestones": ()}, {0: 0.02, 99: 0.02}),
        (
            {"schedule": "cosine", "num_steps": 400, "warmup_steps": 0, "batch_size": 4, "reference_batch_size": 4},
            {0: 0.02, 100: 0.01 * (1 + math.sqrt(0.5)), 200: 0.01, 400: 0.0, 500: 0.0},
        ),
        (
            {"schedule": "cosine", "num_steps": 400, "warmup_steps": 200, "warmup_factor": 0.0},
            {0: 0.0, 100: 0.005 * (1 + math.sqrt(0.5)), 200: 0.01},
        ),
    ],
)
def test_rates(values, expected):
    schedule = build_schedule(TrainConfig(**values))
    np.testing.assert_allclose(rates(schedule, expected), list(expected.values()), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"schedule": "1x"}, 90_000),
        ({"schedule": "3x"}, 270_000),
        ({"schedule": "1x", "batch_size": 4}, 360_000),
        # the lengths count images, so they go by the recipe's batch of 16, not by the rate's
        ({"schedule": "1x", "batch_size": 4, "reference_batch_size": 4}, 360_000),
        ({"schedule": "3x", "batch_size": 32}, 135_000),
        ({"schedule": "steps", "num_steps": 7, "batch_size": 4}, 7),
        ({"schedule": "cosine", "num_steps": 7, "batch_size": 4}, 7),
    ],
)
def test_num_steps(values, expected):
    assert num_steps(TrainConfig(**values)) == expected


def test_warmup_without_steps_starts_at_the_full_rate():
    assert rates(WarmupMultiStep(0.1, [10], warmup_steps=0), [0, 9, 10]) == pytest.approx([0.1, 0.1, 0.01])


@pytest.mark.parametrize("schedule", [WarmupMultiStep(0.1, [3, 5], 2, 0.5), WarmupCosine(0.1, 7, 2, 0.5)])
def test_schedules_come_back_from_their_configuration(schedule):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert type(again) is type(schedule)
    assert rates(again, range(8)) == rates(schedule, range(8))


def test_schedule_works_inside_a_graph():
    schedule = WarmupMultiStep(0.1, [3, 5], 2, 0.5)
    traced = tf.function(schedule, input_signature=[tf.TensorSpec([], tf.int64)])
    np.testing.assert_allclose([traced(step) for step in range(7)], rates(schedule, range(7)), rtol=1e-6)


def pytorch_sgd(weights, gradients, *, rate, momentum, weight_decay):
    """torch.optim.SGD's documented rule: g += decay * w; v = momentum * v + g; w -= rate * v."""
    weights, velocity = weights.astype(np.float64), np.zeros_like(weights, np.float64)
    for gradient in gradients:
        velocity = momentum * velocity + gradient + weight_decay * weights
        weights = weights - rate * velocity
    return weights


def test_update_is_pytorchs_with_decay_on_kernels_only():
    random = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,), "scale": ()}
    start = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    gradients = [{name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(10)]
    variables = {name: keras.Variable(value, name=name) for name, value in start.items()}
    optimizer = CoupledSGD(0.1, 0.9, l2=0.05)
    for step in gradients:
        optimizer.apply_gradients([(tf.constant(step[name]), variables[name]) for name in shapes])
    for name, variable in variables.items():
        decay = 0.05 if name == "kernel" else 0.0
        expected = pytorch_sgd(start[name], [step[name] for step in gradients], rate=0.1, momentum=0.9, weight_decay=decay)
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_decay_alone_shrinks_kernels_and_leaves_biases(momentum):
    kernel, bias = keras.Variable(np.ones((2, 2), np.float32)), keras.Variable(np.ones(2, np.float32))
    optimizer = CoupledSGD(0.5, momentum, l2=0.1)
    optimizer.apply_gradients([(tf.zeros([2, 2]), kernel), (tf.zeros([2]), bias)])
    np.testing.assert_allclose(kernel.numpy(), 0.95, rtol=1e-6)
    np.testing.assert_array_equal(bias.numpy(), 1)


def test_clipping_bounds_the_global_norm_before_decay():
    first, second = keras.Variable(np.full((1, 1), 2, np.float32)), keras.Variable(np.zeros((1, 1), np.float32))
    optimizer = CoupledSGD(1.0, 0.0, l2=0.5, global_clipnorm=1.0)
    optimizer.apply_gradients([(tf.constant([[3.0]]), first), (tf.constant([[4.0]]), second)])
    np.testing.assert_allclose([first.numpy().item(), second.numpy().item()], [2 - 0.6 - 0.5 * 2, -0.8], rtol=1e-5)


def test_optimizer_comes_back_from_its_configuration():
    config = TrainConfig(schedule="cosine", num_steps=50, weight_decay=0.03, momentum=0.8, clip_norm=7.0, warmup_steps=5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(build_optimizer(config)))
    assert isinstance(again, CoupledSGD)
    assert (again.l2, again.momentum, again.global_clipnorm) == (0.03, 0.8, 7.0)
    steps = [0, 3, 20, 50]
    np.testing.assert_allclose(
        [float(again._learning_rate(step)) for step in steps], rates(build_schedule(config), steps), rtol=1e-6
    )


def test_build_optimizer_without_clipping():
    assert build_optimizer(TrainConfig()).global_clipnorm is None


def test_saved_model_goes_on_with_its_momentum(tmp_path):
    def step(model):
        model.fit(np.ones((4, 3), np.float32), np.ones((4, 2), np.float32), epochs=1, verbose=0)
        return model.get_weights()

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(build_optimizer(TrainConfig(schedule="steps", num_steps=10, warmup_steps=3)), loss="mse")
    step(model)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert int(again.optimizer.iterations) == 1
    for expected, found in zip(step(model), step(again), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
