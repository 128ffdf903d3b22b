"""Rebuilds arrays from a pickle that has passed `check_pickle`: every function it may name stands for one of this module."""

from __future__ import annotations

import math
import pickle
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from mrcnn_tf.weights.checkpoint_errors import CheckpointError, UnsafeCheckpointError
from mrcnn_tf.weights.plain_arrays import plain_array

ENTRIES = ("model", "state_dict", "model_state_dict", "blobs")
"""Where training programs keep the arrays beside optimizers, schedules and settings: torchvision's and detectron2's scripts,
timm, torch's tutorials, Caffe2."""
NDARRAY = "numpy.ndarray"
_NUMBER_DTYPE = re.compile(r"[biuf][1248]|\?")


class StateDict(dict[Any, Any]):
    """Stands for `OrderedDict`; the attributes that torch hangs on it (`_metadata`) are dropped."""

    def __setstate__(self, state: object) -> None:
        pass


class Inert:
    """Stands for a harmless object beside the arrays: takes whatever it is given and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *_: object) -> Inert:
        """Drops the arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


class _Dtype:
    """Stands for `numpy.dtype`."""

    __slots__ = ("byte_order", "code")

    def __init__(self, code: Any, *_: object) -> None:
        self.code, self.byte_order = str(code), "="
        if self.code.strip("|=<>").startswith("O"):
            raise UnsafeCheckpointError("refused, its pickle holds an array of Python objects; only numbers are read")

    def __setstate__(self, state: Any) -> None:
        _, self.byte_order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None):
            raise pickle.UnpicklingError("an array has fields; only numbers are read")

    def to_numpy(self, where: str) -> np.dtype[Any]:
        if not _NUMBER_DTYPE.fullmatch(self.code) or self.byte_order not in ("<", ">", "=", "|"):
            raise CheckpointError(f"{where}: expected bools, integers or floats, got the type {reprlib.repr(self.code)}")
        return np.dtype(f"{self.byte_order}{self.code}")


class PickledArray:
    """Stands for a numpy array: what its pickle says, not yet looked at."""

    __slots__ = ("_data", "_dtype", "_order", "_shape")

    def __init__(self, shape: Any, dtype: Any, data: Any, order: Any = "C") -> None:
        self._shape, self._dtype, self._data, self._order = shape, dtype, data, order

    def __setstate__(self, state: Any) -> None:
        *_, self._shape, self._dtype, is_fortran, self._data = state
        self._order = "F" if is_fortran else "C"

    def to_array(self, where: str) -> np.ndarray:
        """The array; a read-only view of the pickle's data where possible.

        Raises:
            CheckpointError: it does not hold numbers, or not as many as its shape says.
        """
        # Python 2 pickled bytes as text.
        data = self._data.encode("latin1") if isinstance(self._data, str) else self._data
        shape = self._shape
        if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise CheckpointError(f"{where}: impossible shape {reprlib.repr(shape)}")
        if not isinstance(self._dtype, _Dtype) or not isinstance(data, bytes | bytearray) or self._order not in ("C", "F"):
            raise CheckpointError(f"{where}: an array without a type, without data, or of unknown order")
        dtype = self._dtype.to_numpy(where)
        if math.prod(shape) * dtype.itemsize != len(data):
            raise CheckpointError(f"{where}: shape {reprlib.repr(shape)} of {dtype.name} does not fit {len(data)} bytes of data")
        return plain_array(np.frombuffer(data, dtype).reshape(shape, order=self._order), where)


def _reconstruct(kind: Any, *_: object) -> PickledArray:
    """Stands for `numpy.core.multiarray._reconstruct`."""
    if kind != NDARRAY:
        raise UnsafeCheckpointError("refused, its pickle asks for an array of another class than numpy's own")
    return PickledArray((0,), None, b"")


def _scalar(dtype: Any, data: Any = b"") -> PickledArray:
    """Stands for `numpy.core.multiarray.scalar`."""
    return PickledArray((), dtype, data)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *_: object) -> PickledArray:
    """Stands for `numpy.core.numeric._frombuffer` (protocol 5)."""
    return PickledArray(shape, dtype, data, order)


def _encode(text: Any, encoding: Any = "") -> bytes:
    """Stands for `_codecs.encode`, with which protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"expected text to be encoded as latin1, got {reprlib.repr(encoding)}")
    return text.encode("latin1")


def _empty_bytes(*arguments: object) -> bytes:
    """Stands for `bytes`, by which protocol 2 writes an empty one."""
    if arguments:
        raise pickle.UnpicklingError("expected bytes to be called without arguments")
    return b""


_HARMLESS = {
    "collections": ("Counter", "defaultdict"),
    "argparse": ("Namespace",),
    "torch": (
        *("Size", "device", "float64", "float32", "float16", "bfloat16"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    ),
}
_BUILTINS = ("bool", "complex", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")

STAND_INS: dict[tuple[str, str], Any] = {
    **{(module, name): Inert for module, names in _HARMLESS.items() for name in names},
    **{(module, name): Inert for module in ("builtins", "__builtin__") for name in _BUILTINS},
    **{(module, name): Inert for module in ("pathlib", "pathlib._local") for name in _PATHS},
    ("collections", "OrderedDict"): StateDict,
    ("_codecs", "encode"): _encode,
    **{(module, "bytes"): _empty_bytes for module in ("builtins", "__builtin__")},
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): NDARRAY,
    # numpy 1 and 2.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}
"""(module, name) that a pickle may name to what it gets: nothing of the real ones is imported."""


class ArrayUnpickler(pickle.Unpickler):
    """Knows the names of a table, and no others."""

    def __init__(self, stream: IO[bytes], stand_ins: Mapping[tuple[str, str], Any] = STAND_INS) -> None:
        super().__init__(stream, encoding="latin1")
        self._stand_ins = stand_ins

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in."""
        if (module, name) not in self._stand_ins:
            raise UnsafeCheckpointError(f"refused, its pickle asks for {module}.{name}; only arrays are read")
        return self._stand_ins[module, name]


def select_arrays(loaded: object, kinds: tuple[type, ...], path: Path) -> dict[str, Any]:
    """Find the arrays of a file: what it holds as a whole, or one of its `ENTRIES`.

    Args:
        loaded: what was unpickled.
        kinds: what counts as an array.
        path: of the file, for messages.

    Returns:
        Name to array, in the file's order.

    Raises:
        CheckpointError: there are none, or something else among them.
    """
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: expected a dict of names and arrays, got {type(loaded).__name__}")
    entry = next((entry for entry in ENTRIES if isinstance(loaded.get(entry), dict)), None)
    found, where = (loaded, "the file") if entry is None else (loaded[entry], f"entry {entry!r}")
    others = [(key, value) for key, value in found.items() if not (isinstance(key, str) and isinstance(value, kinds))]
    if others:
        listed = ", ".join(f"{reprlib.repr(key)} ({type(value).__name__})" for key, value in others[:20])
        raise CheckpointError(f"{path}: {where} should map names to arrays; it also holds {listed}")
    return found
