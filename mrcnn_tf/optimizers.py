"""The optimiser and learning-rate schedules of the published recipes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.config import TrainConfig

_X1_STEPS, _X1_MILESTONES = 90_000, (60_000, 80_000)
_X3_STEPS, _X3_MILESTONES = 270_000, (210_000, 250_000)
_RECIPE_BATCH_SIZE = 16


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class CoupledSGD(keras.optimizers.SGD):
    """SGD with momentum whose weight decay is part of the gradient, as in detectron2 and torchvision.

    Keras' own `weight_decay` shrinks the weights beside the update and so is ten times weaker at momentum 0.9. Norms and biases
    (weights of fewer than two dimensions) are not decayed.
    """

    def __init__(
        self, learning_rate: Any = 0.02, momentum: float = 0.9, l2: float = 1e-4, name: str = "sgd", **kwargs: Any
    ) -> None:
        """Make the optimiser.

        Args:
            learning_rate: number or schedule.
            momentum: in 0..1.
            l2: weight decay, added to the gradient as `l2 * weight`.
            name: of the optimiser.
            **kwargs: as for `keras.optimizers.SGD` (`global_clipnorm`, ...).
        """
        super().__init__(learning_rate=learning_rate, momentum=momentum, name=name, **kwargs)
        self.l2 = l2

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Update one variable."""
        if len(variable.shape) > 1 and self.l2:
            gradient = gradient + tf.cast(self.l2, gradient.dtype) * tf.convert_to_tensor(variable)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict:
        """Constructor arguments."""
        return {**super().get_config(), "l2": self.l2}


class _Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from `warmup_factor` times the rate; subclasses say how the rate goes on."""

    def __init__(self, learning_rate: float, warmup_steps: int, warmup_factor: float) -> None:
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.warmup_factor = warmup_factor

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Rate of step `step` (0-based): float32 scalar."""
        step = tf.cast(step, tf.float32)
        progress = tf.minimum(step / max(self.warmup_steps, 1), 1.0) if self.warmup_steps else 1.0
        return self.learning_rate * self._factor(step) * (self.warmup_factor * (1 - progress) + progress)

    def _factor(self, step: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def get_config(self) -> dict:
        return {"learning_rate": self.learning_rate, "warmup_steps": self.warmup_steps, "warmup_factor": self.warmup_factor}


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class WarmupMultiStep(_Warmup):
    """Warm-up, then a tenfold fall at each milestone (step numbers)."""

    def __init__(
        self, learning_rate: float, milestones: Sequence[int], warmup_steps: int = 1000, warmup_factor: float = 0.001
    ) -> None:
        super().__init__(learning_rate, warmup_steps, warmup_factor)
        self.milestones = tuple(milestones)

    def _factor(self, step: tf.Tensor) -> tf.Tensor:
        passed = tf.reduce_sum(tf.cast(step >= tf.constant(self.milestones, tf.float32), tf.float32)) if self.milestones else 0.0
        return tf.pow(0.1, passed)

    def get_config(self) -> dict:
        """Constructor arguments."""
        return {**super().get_config(), "milestones": list(self.milestones)}


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class WarmupCosine(_Warmup):
    """Warm-up, then half a cosine down to 0 at `num_steps`."""

    def __init__(self, learning_rate: float, num_steps: int, warmup_steps: int = 1000, warmup_factor: float = 0.001) -> None:
        super().__init__(learning_rate, warmup_steps, warmup_factor)
        self.num_steps = num_steps

    def _factor(self, step: tf.Tensor) -> tf.Tensor:
        return 0.5 * (1 + tf.cos(math.pi * tf.minimum(step / self.num_steps, 1.0)))

    def get_config(self) -> dict:
        """Constructor arguments."""
        return {**super().get_config(), "num_steps": self.num_steps}


def num_steps(config: TrainConfig) -> int:
    """Steps of the whole run; 1x and 3x see the same images whatever the batch size."""
    recipe = {"1x": _X1_STEPS, "3x": _X3_STEPS}.get(config.schedule)
    return config.num_steps if recipe is None else _for_batch(recipe, config)


def build_schedule(config: TrainConfig) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning-rate schedule of a configuration, its rate scaled linearly with the batch (Goyal et al., 2017)."""
    rate = config.learning_rate * config.batch_size / config.reference_batch_size
    if config.schedule == "cosine":
        return WarmupCosine(rate, config.num_steps, config.warmup_steps, config.warmup_factor)
    if config.schedule == "steps":
        milestones = [round(fraction * config.num_steps) for fraction in config.milestones]
        return WarmupMultiStep(rate, milestones, config.warmup_steps, config.warmup_factor)
    recipe = _X1_MILESTONES if config.schedule == "1x" else _X3_MILESTONES
    milestones = [_for_batch(step, config) for step in recipe]
    return WarmupMultiStep(rate, milestones, _for_batch(config.warmup_steps, config), config.warmup_factor)


def build_optimizer(config: TrainConfig) -> CoupledSGD:
    """SGD as the configuration asks for, clipping included."""
    return CoupledSGD(build_schedule(config), config.momentum, config.weight_decay, global_clipnorm=config.clip_norm)


def _for_batch(steps: int, config: TrainConfig) -> int:
    return round(steps * _RECIPE_BATCH_SIZE / config.batch_size)
