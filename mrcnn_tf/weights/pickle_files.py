"""Reads plain pickles of numpy arrays: the `.pkl` files of detectron2's and Detectron's model zoos.

Written by Python 2 or 3 and numpy 1 or 2, protocols 2 to 5: `{"model": {name: array}, "__author__": ...}`, `{"blobs": {...}}`, or
names and arrays themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mrcnn_tf.weights.checkpoint_errors import reading
from mrcnn_tf.weights.pickle_arrays import STAND_INS, ArrayUnpickler, PickledArray, select_arrays
from mrcnn_tf.weights.pickle_check import check_pickle


def read_pickle_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the arrays of a pickle without running what it asks for.

    Args:
        path: of the file.

    Returns:
        Name to array, in the file's order; arrays may be read-only.

    Raises:
        UnsafeCheckpointError: the pickle names anything but the machinery that rebuilds arrays, or holds Python objects.
        CheckpointError: not such a file, truncated, inconsistent, or without arrays.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    with path.open("rb") as file, reading(path, "a pickle of arrays"):
        check_pickle(file, STAND_INS, path)
        file.seek(0)
        loaded = ArrayUnpickler(file).load()
        arrays = select_arrays(loaded, (PickledArray,), path)
        return {name: array.to_array(f"{path}, array {name}") for name, array in arrays.items()}
