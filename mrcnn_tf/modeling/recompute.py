"""Gradient checkpointing (Chen et al., 2016): activations that are computed a second time instead of being kept.

Inside `recomputing()` a `Recomputable` model keeps what it is given and what it answers. What lies between is computed again when
the gradient comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import keras
import tensorflow as tf

_RECOMPUTING: ContextVar[bool] = ContextVar("mrcnn_tf_recomputing", default=False)


@contextmanager
def recomputing(wanted: bool = True) -> Iterator[None]:
    """Trace for a gradient that takes less memory and more time, where it is wanted."""
    token = _RECOMPUTING.set(wanted)
    try:
        yield
    finally:
        _RECOMPUTING.reset(token)


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class Recomputable(keras.Model):
    """A functional model from images to a dict of tensors, each of which is computed from the one before it alone.

    Inside `recomputing()` it is the chain of its segments, from one tensor to the next, and the images get no gradient; elsewhere
    it is a model like any other.
    """

    def __init__(
        self, inputs: keras.KerasTensor, outputs: dict[str, keras.KerasTensor], name: str | None = None, **kwargs: Any
    ) -> None:
        """Make the model and its segments, which share its layers.

        Args:
            inputs: [B, H, W, 3].
            outputs: by name, in the order in which they follow from one another.
            name: of the model.
            **kwargs: for `keras.Model`.
        """
        super().__init__(inputs, outputs, name=name, **kwargs)
        # A plain object, so that Keras does not take the segments for layers with weights of their own.
        self._segments = _Segments(inputs, outputs)

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> dict[str, tf.Tensor]:
        """Compute the outputs."""
        if not _RECOMPUTING.get():
            return super().call(inputs, training=training, mask=mask)
        outputs: dict[str, tf.Tensor] = {}
        trained = False
        for name, segment in self._segments.models.items():
            inputs = outputs[name] = _recomputed(segment, inputs, training, needs_gradient=trained)
            trained = trained or bool(segment.trainable_variables)
        return outputs


class _Segments:
    def __init__(self, inputs: keras.KerasTensor, outputs: dict[str, keras.KerasTensor]) -> None:
        tensors = pairwise([inputs, *outputs.values()])
        self.models = {name: keras.Model(*ends, name=f"to_{name}") for name, ends in zip(outputs, tensors, strict=True)}


def _recomputed(segment: keras.Model, inputs: tf.Tensor, training: bool | None, *, needs_gradient: bool) -> tf.Tensor:
    """What a segment answers, computed again for its gradient; the statistics of batch norms are updated once."""
    trained = segment.trainable_variables
    if not trained and not needs_gradient:
        return segment(inputs, training=training)
    statistics = _statistics(segment)
    constants = [(variable, tf.convert_to_tensor(variable.value)) for variable in segment.non_trainable_variables]

    # `tf.recompute_grad` knows no variables of a distribution strategy, and would assign those of a batch norm twice. So all
    # variables are read outside of it, and nothing is assigned inside.
    @tf.recompute_grad
    def compute(*tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        values, given = tensors[: len(trained)], tensors[len(trained) :]
        with keras.StatelessScope([*zip(trained, values, strict=True), *constants]) as scope:
            outputs = segment(given[0] if given else inputs, training=training)
        return outputs, *(tf.stop_gradient(scope.get_current_value(variable)) for variable in statistics)

    values = [tf.convert_to_tensor(variable.value) for variable in trained]
    # The gradient of all that it is given is computed, asked for or not.
    outputs, *updated = compute(*values, *([inputs] if needs_gradient else []))
    for variable, value in zip(statistics, updated, strict=True):
        variable.assign(value)
    return outputs


def _statistics(segment: keras.Model) -> list[keras.Variable]:
    """What a step changes beside the update: the running statistics of batch norms."""
    norms = [
        layer for layer in segment._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    return [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]
