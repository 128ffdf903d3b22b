"""Loss scaling for float16, and an optimizer with or without it."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class DynamicLossScale(keras.optimizers.LossScaleOptimizer):
    """Keras' loss scaling for float16 (Micikevicius et al., 2018) that also counts the steps whose gradients overflowed.

    Such a step updates nothing and leaves `iterations`, on which the learning rate depends, as it was. The batch has been used
    nevertheless, so the place in the data is `num_batches`.
    """

    def build(self, variables: list[keras.Variable]) -> None:
        """Make the state."""
        self.num_batches = self.add_variable(
            shape=(), dtype="int", initializer="zeros", aggregation="only_first_replica", name="num_batches"
        )
        super().build(variables)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Unscale, and update unless a gradient is infinite or NaN."""
        super().apply(grads, trainable_variables)
        self.num_batches.assign_add(1)


def steps_made(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """The number of batches that an optimizer has been given."""
    return optimizer.num_batches if isinstance(optimizer, DynamicLossScale) else optimizer.iterations


def unwrapped(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer that updates, without loss scaling."""
    return getattr(optimizer, "inner_optimizer", optimizer)
