"""Reads checkpoints of other systems: recognises the format by what is in the file, and gives names and arrays.

The readers take files from strangers. None runs anything a file asks for, and none takes memory that a file only claims to need.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mrcnn_tf.weights.checkpoint_errors import CheckpointError
from mrcnn_tf.weights.h5_files import H5_MAGIC, read_h5_file
from mrcnn_tf.weights.pickle_files import read_pickle_file
from mrcnn_tf.weights.safetensors_files import read_safetensors_file
from mrcnn_tf.weights.tensorflow_files import find_prefix, read_tensorflow_checkpoint
from mrcnn_tf.weights.torch_files import LEGACY_START, ZIP_MAGIC, read_torch_file

Kind = Literal["torch", "pickle", "safetensors", "tensorflow", "h5"]

_READERS: dict[Kind, Callable[[Path], dict[str, np.ndarray]]] = {
    "torch": read_torch_file,
    "pickle": read_pickle_file,
    "safetensors": read_safetensors_file,
    "tensorflow": read_tensorflow_checkpoint,
    "h5": read_h5_file,
}
_KNOWN = (
    "torch (.pth, zip or legacy), pickled numpy arrays (.pkl, protocol 2 to 5), safetensors, weights of Keras 1 and 2 (.h5), "
    "TensorFlow checkpoints (the path without .index, or their folder)"
)
_TABLE_END = bytes.fromhex("57fb808b247547db")
"""Last bytes of a TensorFlow index, which is a LevelDB table."""
_HEADER_LENGTH_BYTES, _MAX_HEADER_LENGTH = 8, 100_000_000
"""A safetensors file starts with the length of its JSON header, of at most 100 MB by its specification."""
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_NUM_MAGIC_BYTES = 32
_PARALLEL_PREFIX = "module."
"""What torch's DataParallel puts before every name."""


@dataclass(frozen=True)
class Checkpoint:
    """Names and arrays of a checkpoint, in its own layout.

    Attributes:
        path: as given by the user.
        kind: format of the file.
        arrays: bools, integers and floats by the file's own names (of `kind` "h5": `LAYER/WEIGHT`); may be read-only.
    """

    path: Path
    kind: Kind
    arrays: dict[str, np.ndarray]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint of any known format.

    Args:
        path: a file; or a TensorFlow checkpoint's path without `.index`, or the folder of one.

    Returns:
        All its arrays. `module.` before every name (torch's DataParallel) is dropped.

    Raises:
        UnsafeCheckpointError: the file asks for more than arrays; nothing of it has been run.
        CheckpointError: the file is missing, truncated, of no known format, or holds no arrays.
    """
    path = Path(path)
    kind, source = _recognise(path)
    checkpoint = Checkpoint(path, kind, _READERS[kind](source))
    if not checkpoint.arrays:
        raise CheckpointError(f"{path}: the file holds no arrays")
    return _without_parallel_prefix(checkpoint)


def _recognise(path: Path) -> tuple[Kind, Path]:
    """The format, and what its reader takes."""
    if path.is_dir():
        return "tensorflow", find_prefix(path)
    if not path.exists():
        if path.with_name(f"{path.name}.index").is_file():
            return "tensorflow", path
        raise CheckpointError(f"{path}: no such file, and no TensorFlow checkpoint of that name")
    start, end = _ends(path)
    if end == _TABLE_END and path.suffix == ".index":
        return "tensorflow", path.with_suffix("")
    return _kind_of(start, path), path


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The first and the last bytes of a file."""
    try:
        with path.open("rb") as file:
            start = file.read(_NUM_MAGIC_BYTES)
            file.seek(-min(len(_TABLE_END), len(start)), os.SEEK_END)
            return start, file.read()
    except OSError as error:
        raise CheckpointError(f"{path}: not readable: {error}") from error


def _kind_of(start: bytes, path: Path) -> Kind:
    if start.startswith(H5_MAGIC):
        return "h5"
    if start.startswith(ZIP_MAGIC):
        return "torch"
    if start.startswith(_PICKLE_STARTS):
        return "torch" if LEGACY_START in start else "pickle"
    length = int.from_bytes(start[:_HEADER_LENGTH_BYTES], "little")
    if start[_HEADER_LENGTH_BYTES:][:1] == b"{" and length <= _MAX_HEADER_LENGTH:
        return "safetensors"
    begins = f"it begins with {start[:16]!r}" if start else "it is empty"
    raise CheckpointError(f"{path} is no checkpoint of a known format, {begins}; known are {_KNOWN}")


def _without_parallel_prefix(checkpoint: Checkpoint) -> Checkpoint:
    if not all(name.startswith(_PARALLEL_PREFIX) for name in checkpoint.arrays):
        return checkpoint
    arrays = {name.removeprefix(_PARALLEL_PREFIX): array for name, array in checkpoint.arrays.items()}
    return replace(checkpoint, arrays=arrays)
