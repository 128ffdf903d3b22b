"""Reads `.safetensors` files."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes  # noqa: F401 - gives numpy its bfloat16, which safetensors asks for by name
import numpy as np
from safetensors import SafetensorError, safe_open

from mrcnn_tf.weights.checkpoint_errors import CheckpointError, reading
from mrcnn_tf.weights.plain_arrays import plain_array


def read_safetensors_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all tensors.

    Args:
        path: of the file.

    Returns:
        Name to array, in the file's order; bfloat16 comes as float32.

    Raises:
        CheckpointError: not such a file, truncated, or of a type that is no bool, integer or float.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    with reading(path, "a safetensors file"):
        try:
            with safe_open(path, framework="np") as file:
                return {name: plain_array(file.get_tensor(name), f"{path}, tensor {name}") for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{path} is truncated, broken or not a safetensors file: {error}") from error
