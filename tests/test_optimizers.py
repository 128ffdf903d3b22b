"""The optimizers against the update rule that PyTorch documents, and against Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import TrainConfig
from mrcnn_tf.optimizers import AdamW, CoupledSGD, build_optimizer
from mrcnn_tf.schedules import build_schedule


def rates(schedule, steps):
    return [float(schedule(step)) for step in steps]


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


@pytest.mark.parametrize("nesterov", [False, True])
def test_update_in_one_operation_is_keras_own(nesterov):
    gradient = tf.constant([[0.3, -0.2], [0.1, 0.5]])
    ours, keras_own = keras.Variable([[1.0, 2.0], [3.0, 4.0]]), keras.Variable([[1.0, 2.0], [3.0, 4.0]])
    optimizers = (CoupledSGD(0.1, 0.9, 0.0, nesterov=nesterov), keras.optimizers.SGD(0.1, 0.9, nesterov=nesterov))
    for optimizer, variable in zip(optimizers, (ours, keras_own), strict=True):
        for _ in range(3):
            optimizer.apply([gradient], [variable])
    np.testing.assert_array_equal(ours, keras_own)
    np.testing.assert_array_equal(*(optimizer.momentums[0] for optimizer in optimizers))


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


def test_adamw_is_keras_own_on_kernels_and_without_decay_on_biases():
    random = np.random.default_rng(1)
    start = {"kernel": random.normal(size=(3, 4)).astype(np.float32), "bias": random.normal(size=4).astype(np.float32)}
    gradients = [{name: random.normal(size=value.shape).astype(np.float32) for name, value in start.items()} for _ in range(5)]

    def run(optimizer, names):
        variables = {name: keras.Variable(start[name], name=name) for name in names}
        for step in gradients:
            optimizer.apply_gradients([(tf.constant(step[name]), variables[name]) for name in names])
        return {name: variable.numpy() for name, variable in variables.items()}

    found = run(AdamW(0.01, 0.1), start)
    expected = {**run(keras.optimizers.AdamW(0.01, 0.1), ["kernel"]), **run(keras.optimizers.Adam(0.01), ["bias"])}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_adamw_from_the_configuration_and_back():
    optimizer = build_optimizer(TrainConfig(optimizer="adamw", clip_norm=1.0, average_momentum=0.99, weight_decay=0.02))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert isinstance(again, AdamW)
    assert (again.decay, again.global_clipnorm, again.average_momentum) == (0.02, 1.0, 0.99)
    # Keras would shrink the weights a second time.
    assert again.weight_decay is None


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
