"""Tensors as torch's pickles describe them: views of storages, whose data is kept outside the pickle."""

from __future__ import annotations

import math
import pickle
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from mrcnn_tf.weights.checkpoint_errors import CheckpointError
from mrcnn_tf.weights.pickle_arrays import STAND_INS, ArrayUnpickler
from mrcnn_tf.weights.pickle_check import check_pickle

STORAGE_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class Storage(NamedTuple):
    """A flat array outside the pickle: its key there, its type, its number of items."""

    key: str
    dtype: str
    size: int

    @property
    def num_bytes(self) -> int:
        """Of its data."""
        return self.size * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


class Tensor:
    """A view of a storage as the pickle describes it, not yet looked at."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def __setstate__(self, state: object) -> None:
        """Ignores what old torch hangs on a parameter (hooks, flags)."""

    def to_array(self, storages: Mapping[str, np.ndarray], where: str) -> np.ndarray:
        """The array: a read-only view of its storage.

        Raises:
            CheckpointError: it does not lie in its storage.
        """
        shape, strides = tuple(self.shape), tuple(self.strides)
        numbers = (self.offset, *shape, *strides)
        if not all(isinstance(n, int) and n >= 0 for n in numbers) or len(shape) != len(strides):
            raise CheckpointError(f"{where}: impossible shape, strides or offset {reprlib.repr(numbers)}")
        flat = storages[self.storage.key]
        last = self.offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
        # The last test refuses strides of 0, which would let a small file ask for any amount of memory.
        if math.prod(shape) and (last >= flat.size or math.prod(shape) > flat.size):
            raise CheckpointError(
                f"{where}: shape {reprlib.repr(shape)} with strides {reprlib.repr(strides)} at {self.offset} does not fit in a "
                f"storage of {flat.size} items"
            )
        steps = [stride * flat.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], shape, steps, writeable=False)


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: object = None, _hooks: object = None, flags: object = None
) -> Tensor:
    """Stands for `torch._utils._rebuild_tensor_v2`, and for the first version with its four arguments."""
    if not isinstance(storage, Storage) or flags:
        raise pickle.UnpicklingError("a tensor without storage, or conjugated or negated")
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_: object) -> Tensor:
    """Stands for `torch._utils._rebuild_parameter` and the class `Parameter` of old files."""
    if not isinstance(tensor, Tensor):
        raise pickle.UnpicklingError("a parameter without tensor")
    return tensor


_TORCH_STAND_INS = {
    **STAND_INS,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()},
}


class _TensorUnpickler(ArrayUnpickler):
    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream, _TORCH_STAND_INS)
        self.storages: dict[str, Storage] = {}

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, size, *view = pid
        known = kind == "storage" and dtype in STORAGE_DTYPES.values() and isinstance(key, str) and isinstance(size, int)
        if not known or size < 0 or any(view):
            raise pickle.UnpicklingError(f"unknown storage {reprlib.repr(pid)}")
        storage = Storage(key, dtype, size)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key} is described twice, differently")
        return storage


def load_next(stream: IO[bytes], path: Path) -> tuple[Any, dict[str, Storage]]:
    """Read the pickle that starts here and leave the stream after it.

    Args:
        stream: seekable.
        path: of the file, for messages.

    Returns:
        The object, with a `Tensor` for each tensor, and the storages it describes by key.

    Raises:
        UnsafeCheckpointError: it asks for more than tensors; nothing of it has been run.
        BROKEN_FILE_ERRORS: it is no pickle, or inconsistent.
    """
    start = stream.tell()
    check_pickle(stream, _TORCH_STAND_INS, path, persistent_ids=True)
    end = stream.tell()
    stream.seek(start)
    unpickler = _TensorUnpickler(stream)
    loaded = unpickler.load()
    stream.seek(end)
    return loaded, unpickler.storages
