"""The learning-rate schedules of the published recipes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from mrcnn_tf.config import TrainConfig

_X1_STEPS, _X1_MILESTONES = 90_000, (60_000, 80_000)
_X3_STEPS, _X3_MILESTONES = 270_000, (210_000, 250_000)
_RECIPE_BATCH_SIZE = 16


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


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class StagedRate(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule times a factor that changes at given steps."""

    def __init__(
        self, schedule: keras.optimizers.schedules.LearningRateSchedule, starts: Sequence[int], factors: Sequence[float]
    ) -> None:
        """Combine.

        Args:
            schedule: of the rate.
            starts: first steps of the stages, ascending; the first is 0.
            factors: of the rate in each stage.
        """
        self.schedule = schedule
        self.starts = tuple(starts)
        self.factors = tuple(factors)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Rate of step `step` (0-based): float32 scalar."""
        begun = tf.reduce_sum(tf.cast(tf.cast(step, tf.int64) >= tf.constant(self.starts, tf.int64), tf.int32))
        return self.schedule(step) * tf.gather(tf.constant(self.factors, tf.float32), begun - 1)

    def get_config(self) -> dict:
        """Constructor arguments."""
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "starts": list(self.starts), "factors": list(self.factors)}

    @classmethod
    def from_config(cls, config: dict) -> StagedRate:
        """Rebuild from `get_config`."""
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["starts"], config["factors"])


def num_steps(config: TrainConfig) -> int:
    """Steps of the whole run; 1x and 3x see the same images whatever the batch size."""
    recipe = {"1x": _X1_STEPS, "3x": _X3_STEPS}.get(config.schedule)
    return config.num_steps if recipe is None else _for_batch(recipe, config)


def build_schedule(config: TrainConfig) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning-rate schedule of a configuration, its rate scaled linearly with the batch (Goyal et al., 2017)."""
    schedule = _recipe(config)
    if not config.stages:
        return schedule
    return StagedRate(schedule, [stage.start for stage in config.stages], [stage.learning_rate_factor for stage in config.stages])


def _recipe(config: TrainConfig) -> keras.optimizers.schedules.LearningRateSchedule:
    rate = config.learning_rate * config.batch_size / config.reference_batch_size
    if config.schedule == "cosine":
        return WarmupCosine(rate, config.num_steps, config.warmup_steps, config.warmup_factor)
    if config.schedule == "steps":
        milestones = [round(fraction * config.num_steps) for fraction in config.milestones]
        return WarmupMultiStep(rate, milestones, config.warmup_steps, config.warmup_factor)
    recipe = _X1_MILESTONES if config.schedule == "1x" else _X3_MILESTONES
    milestones = [_for_batch(step, config) for step in recipe]
    return WarmupMultiStep(rate, milestones, _for_batch(config.warmup_steps, config), config.warmup_factor)


def _for_batch(steps: int, config: TrainConfig) -> int:
    return round(steps * _RECIPE_BATCH_SIZE / config.batch_size)
