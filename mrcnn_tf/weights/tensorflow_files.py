"""Reads TensorFlow checkpoints: `NAME.index` with `NAME.data-00000-of-00001` beside it."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from mrcnn_tf.weights.checkpoint_errors import CheckpointError, reading
from mrcnn_tf.weights.plain_arrays import plain_array

STATE_FILE = "checkpoint"
"""In which TensorFlow notes the newest checkpoint of a folder."""


def read_tensorflow_checkpoint(prefix: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all variables.

    Args:
        prefix: path of the checkpoint, without `.index`.

    Returns:
        Variable to array by the checkpoint's own keys, sorted: counters and an optimizer's slots too, but no texts (the object
        graph is one); bfloat16 comes as float32.

    Raises:
        CheckpointError: not such a checkpoint, truncated, a part is missing, or of a type that is no bool, integer or float.
    """
    prefix = Path(prefix)
    with reading(prefix, "a TensorFlow checkpoint"):
        try:
            reader = tf.train.load_checkpoint(str(prefix))
            types = reader.get_variable_to_dtype_map()
            names = sorted(name for name, dtype in types.items() if dtype != tf.string)
            _check_sizes({name: (types[name], reader.get_variable_to_shape_map()[name]) for name in names}, prefix)
            return {name: plain_array(np.asarray(reader.get_tensor(name)), f"{prefix}, {name}") for name in names}
        except tf.errors.OpError as error:
            raise CheckpointError(f"{prefix} is truncated or broken: {error.message}") from error


def find_prefix(folder: Path) -> Path:
    """The checkpoint of a folder: the one that its `checkpoint` file names, or its only one.

    Args:
        folder: with `checkpoint`, or with one `*.index` file.

    Returns:
        Path without `.index`.

    Raises:
        CheckpointError: there is none, or one must choose.
    """
    if (folder / STATE_FILE).is_file():
        with reading(folder / STATE_FILE, "a note of the newest checkpoint"):
            state = tf.train.get_checkpoint_state(str(folder))
            # The name only: the folder may have been moved since.
            return folder / Path(state.model_checkpoint_path).name
    found = sorted(folder.glob("*.index"))
    if len(found) != 1:
        listed = f": {', '.join(path.name for path in found[:10])}; give the path of one" if found else ""
        raise CheckpointError(
            f"{folder}: expected a file {STATE_FILE} or one *.index file in the folder, found {len(found)}{listed}"
        )
    return found[0].with_suffix("")


def _check_sizes(variables: dict[str, tuple[tf.DType, list[int]]], prefix: Path) -> None:
    """Refuse to take more memory than there is data; the index only claims shapes."""
    needed = sum(dtype.size * int(np.prod(shape, dtype=object)) for dtype, shape in variables.values())
    files = list(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*-of-*"))
    present = sum(path.stat().st_size for path in files)
    if needed > present:
        raise CheckpointError(f"{prefix}: the variables need {needed} bytes, its {len(files)} data files have {present}")
