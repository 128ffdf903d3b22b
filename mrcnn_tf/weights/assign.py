"""Puts arrays of a foreign checkpoint onto the layers of a model, each exactly once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from mrcnn_tf.modeling.layers import ConvNorm


class PretrainedWeightsError(ValueError):
    """Pretrained weights that cannot be had or do not fit; the message says what to do."""


@dataclass(frozen=True)
class NormArrays:
    """A batch norm of a checkpoint, four arrays [C]."""

    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def conv_norm_arrays(
    layer: ConvNorm, kernel: np.ndarray, norm: NormArrays, *, epsilon: float, bias: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The arrays that make `layer` compute convolution, `bias` and `norm`.

    The bias moves into the mean, and a difference of the epsilons into the variance: both are exact.

    Args:
        layer: with norm "frozen", "batch" or "sync_batch".
        kernel: [height, width, in, out], or [height, width, C, 1] for a depthwise layer.
        norm: of the convolution's output.
        epsilon: that `norm` was trained with.
        bias: [out] of the convolution, or None.

    Returns:
        Weight name to array.

    Raises:
        PretrainedWeightsError: the layer's norm has no place for the statistics.
    """
    if layer.norm not in ("frozen", "batch", "sync_batch"):
        raise PretrainedWeightsError(
            f"{layer.name}: the weights hold batch-norm statistics, which norm={layer.norm} has no place for; "
            "use frozen, batch or sync_batch, or set backbone.weights to null"
        )
    return {
        "kernel": kernel,
        "gamma": norm.gamma,
        "beta": norm.beta,
        "moving_mean": norm.mean if bias is None else norm.mean - bias,
        "moving_variance": norm.variance + np.float32(epsilon - layer.norm_epsilon),
    }


def assign_layers(model: keras.Model, arrays: Mapping[str, Mapping[str, np.ndarray]], source: str) -> None:
    """Assign every weight of `model` from `arrays`; nothing is assigned unless all fit.

    Args:
        model: functional, its layers' weights named uniquely within a layer.
        arrays: layer name to weight name to array.
        source: where the arrays come from, for messages.

    Raises:
        PretrainedWeightsError: a weight without array, an array without weight, or another shape.
    """
    weights = {(layer.name, weight.name): weight for layer in model.layers for weight in layer.weights}
    flat = {(layer, name): array for layer, named in arrays.items() for name, array in named.items()}
    missing, unused = sorted(weights.keys() - flat.keys()), sorted(flat.keys() - weights.keys())
    if missing or unused:
        raise PretrainedWeightsError(f"{source} does not fit {model.name}: missing {missing[:5]}, left over {unused[:5]}")
    for key, weight in weights.items():
        if tuple(weight.shape) != flat[key].shape:
            raise PretrainedWeightsError(
                f"{source}: {'/'.join(key)} of {model.name} has shape {tuple(weight.shape)}, got {flat[key].shape}"
            )
    for key, weight in weights.items():
        weight.assign(flat[key])


class Parameters:
    """The parameters of a checkpoint, handed out by name; what is missing, misshapen or left over is told all at once.

    Take everything first, then `finish`, then assign: so nothing is assigned unless all fits.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], source: str) -> None:
        """Start with nothing taken.

        Args:
            arrays: name to array, in the checkpoint's own layout.
            source: where they come from, for messages.
        """
        self._arrays = arrays
        self._source = source
        self._taken: set[str] = set()
        self._missing: list[str] = []
        self._misshapen: list[str] = []

    def take(self, name: str, shape: Sequence[int]) -> np.ndarray:
        """The array of that name; zeros, and a note for `finish`, where there is none of this shape.

        Args:
            name: in the checkpoint.
            shape: that the model needs, in the checkpoint's layout.

        Returns:
            The array, of `shape`.
        """
        shape = tuple(shape)
        array = self._arrays.get(name)
        self._taken.add(name)
        if array is None:
            self._missing.append(f"{name} {list(shape)}")
        elif array.shape != shape:
            self._misshapen.append(f"{name} is {list(array.shape)}, the model needs {list(shape)}")
        else:
            return array
        return np.zeros(shape, np.float32)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def finish(self) -> None:
        """Check that every parameter was taken and fitted.

        Raises:
            PretrainedWeightsError: lists names and shapes of both sides.
        """
        left = [f"{name} {list(array.shape)}" for name, array in self._arrays.items() if name not in self._taken]
        faults = {
            "the model needs, but the checkpoint lacks": self._missing,
            "the shapes differ": self._misshapen,
            "the checkpoint has, but the model has no place for": left,
        }
        if any(faults.values()):
            lines = [f"  {what}: {', '.join(names)}" for what, names in faults.items() if names]
            raise PretrainedWeightsError("\n".join([f"{self._source} does not fit the model:", *lines]))


Assignments = list[tuple[keras.Variable, np.ndarray]]
"""Weights and what goes into them."""


def layer_assignments(layer: keras.layers.Layer, arrays: Mapping[str, np.ndarray]) -> Assignments:
    """Pair the weights of one layer with arrays by name, each exactly once.

    Args:
        layer: its weights are named uniquely.
        arrays: weight name to array, in the layer's layout.

    Returns:
        The pairs.

    Raises:
        PretrainedWeightsError: a weight without array, an array without weight, or another shape.
    """
    weights = {weight.name: weight for weight in layer.weights}
    if weights.keys() != arrays.keys():
        raise PretrainedWeightsError(f"{layer.name} has the weights {sorted(weights)}, got {sorted(arrays)}")
    for name, weight in weights.items():
        if tuple(weight.shape) != arrays[name].shape:
            raise PretrainedWeightsError(f"{layer.name}/{name} has shape {tuple(weight.shape)}, got {arrays[name].shape}")
    return [(weight, arrays[name]) for name, weight in weights.items()]


def assign_all(assignments: Assignments) -> None:
    """Put every array into its weight."""
    for weight, array in assignments:
        weight.assign(array)
