"""Puts arrays of a foreign checkpoint onto the layers of a model, each exactly once."""

from __future__ import annotations

from collections.abc import Mapping
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
