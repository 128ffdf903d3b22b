"""The optimizers of the published recipes, and what Keras' own lack for them.

Both optimizers here can keep a moving average of the weights they train, which `averaged_weights` puts into the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.config import TrainConfig
from mrcnn_tf.modeling.loss_scale import unwrapped
from mrcnn_tf.schedules import build_schedule


class _Averaging(keras.optimizers.Optimizer):
    """An optimizer that can average the weights it updates.

    After step t (from 0) `average = m * average + (1 - m) * weight` with m = min(average_momentum, t / (10 + t)): the weights of
    the first steps, when there are few to average, count less. Keras' own `use_ema` overwrites the weights with their average at
    the end of `fit`, so that training cannot go on from them.
    """

    def __init__(self, *, average_momentum: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.average_momentum = average_momentum
        self.averages: list[keras.Variable] = []

    def build(self, variables: list[keras.Variable]) -> None:
        """Make the averages, equal to the weights for now."""
        super().build(variables)
        if self.average_momentum is not None:
            self.averages = self.add_optimizer_variables(variables, "average")
            for average, variable in zip(self.averages, variables, strict=True):
                average.assign(variable)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Update one variable and its average."""
        super().update_step(gradient, variable, learning_rate)
        if self.averages:
            average = self.averages[self._get_variable_index(variable)]
            step = tf.cast(self.iterations, variable.dtype)
            momentum = tf.minimum(tf.cast(self.average_momentum, variable.dtype), step / (10 + step))
            self.assign_sub(average, (1 - momentum) * (average - variable))

    def get_config(self) -> dict:
        """Constructor arguments."""
        return {**super().get_config(), "average_momentum": self.average_momentum}


class _FusedSGD(keras.optimizers.SGD):
    """Keras' SGD, its update with momentum by one operation of TensorFlow: no temporaries as large as the weights."""

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Update one variable."""
        if not self.momentum:
            super().update_step(gradient, variable, learning_rate)
            return
        velocity = self.momentums[self._get_variable_index(variable)]
        # Keras gives its own variables, or under a strategy TensorFlow's of one replica.
        weight, velocity = (one.value if isinstance(one, keras.Variable) else one for one in (variable, velocity))
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=weight.handle,
            accum=velocity.handle,
            lr=tf.cast(learning_rate, weight.dtype),
            grad=tf.cast(gradient, weight.dtype),
            momentum=tf.constant(self.momentum, weight.dtype),
            use_nesterov=self.nesterov,
        )


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class CoupledSGD(_Averaging, _FusedSGD):
    """SGD with momentum whose weight decay is part of the gradient, as in detectron2 and torchvision.

    Keras' own `weight_decay` shrinks the weights beside the update and so is ten times weaker at momentum 0.9. Norms and biases
    (weights of fewer than two dimensions) are not decayed.
    """

    def __init__(
        self, learning_rate: Any = 0.02, momentum: float = 0.9, l2: float = 1e-4, name: str = "sgd", **kwargs: Any
    ) -> None:
        """Make the optimizer.

        Args:
            learning_rate: number or schedule.
            momentum: in 0..1.
            l2: weight decay, added to the gradient as `l2 * weight`.
            name: of the optimizer.
            **kwargs: `average_momentum` (keep a moving average of the weights), and as for `keras.optimizers.SGD`
                (`global_clipnorm`, ...).
        """
        super().__init__(learning_rate=learning_rate, momentum=momentum, name=name, **kwargs)
        self.l2 = l2

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Update one variable."""
        if _is_decayed(variable) and self.l2:
            gradient = gradient + tf.cast(self.l2, gradient.dtype) * tf.convert_to_tensor(variable)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict:
        """Constructor arguments."""
        return {**super().get_config(), "l2": self.l2}


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class AdamW(_Averaging, keras.optimizers.Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019).

    Norms and biases (weights of fewer than two dimensions) are not decayed; of Keras' own AdamW they would have to be excluded by
    name, and the exclusion would be lost in a file.
    """

    def __init__(self, learning_rate: Any = 1e-4, decay: float = 0.05, name: str = "adamw", **kwargs: Any) -> None:
        """Make the optimizer.

        Args:
            learning_rate: number or schedule.
            decay: weight decay; each step takes `learning_rate * decay * weight` off, beside the update.
            name: of the optimizer.
            **kwargs: `average_momentum` (keep a moving average of the weights), and as for `keras.optimizers.Adam` (`beta_1`,
                `global_clipnorm`, ...).
        """
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.decay = decay

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Update one variable."""
        if _is_decayed(variable) and self.decay:
            rate = tf.cast(learning_rate, variable.dtype)
            self.assign_sub(variable, rate * tf.cast(self.decay, variable.dtype) * variable)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict:
        """Constructor arguments."""
        return {**super().get_config(), "decay": self.decay}


def averages_of(optimizer: keras.optimizers.Optimizer) -> list[tuple[keras.Variable, keras.Variable]]:
    """Each weight of an optimizer with its average; none where it keeps no averages."""
    optimizer = unwrapped(optimizer)
    if not isinstance(optimizer, _Averaging) or not optimizer.averages:
        return []
    return list(zip(optimizer._trainable_variables, optimizer.averages, strict=True))


@contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """The model with the moving average of its weights, for as long as this lasts; as it is where its optimizer keeps none."""
    pairs = averages_of(model.optimizer)
    before = [keras.ops.convert_to_numpy(variable) for variable, _ in pairs]
    for variable, average in pairs:
        variable.assign(keras.ops.convert_to_numpy(average))
    try:
        yield
    finally:
        for (variable, _), value in zip(pairs, before, strict=True):
            variable.assign(value)


def build_optimizer(config: TrainConfig) -> keras.optimizers.Optimizer:
    """The optimizer that the configuration asks for, clipping and averaging included."""
    shared: dict[str, Any] = {"global_clipnorm": config.clip_norm, "average_momentum": config.average_momentum}
    if config.optimizer == "adamw":
        return AdamW(build_schedule(config), config.weight_decay, **shared)
    return CoupledSGD(build_schedule(config), config.momentum, config.weight_decay, **shared)


def _is_decayed(variable: tf.Variable) -> bool:
    return len(variable.shape) > 1
