"""Reads tensors from torch's `.pth` files without torch, and without running what a pickle asks for.

A `.pth` file is a pickle that names functions to call. Here the pickle's opcodes are checked against a short list first;
only the names that rebuild tensors are known, and each stands for a function of this module. Formats: the zip archive of
torch >= 1.6 (`<name>/data.pkl`, `<name>/data/<key>`) and the legacy stream before it (magic number, protocol version,
system facts, pickle, list of keys, raw storages), as read from the files themselves.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE_BYTES = 64 * 2**20
"""Of the description of the tensors, without their data: a longer one is cut off. A detection model's is below 1 MiB."""
ZIP_MAGIC = b"PK\x03\x04"

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
ALLOWED_GLOBALS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *(("torch", name) for name in STORAGE_DTYPES),
}
# torch writes pickle protocol 2. Nothing that looks names up from the stack, makes objects by class or uses the extension
# registry is among these.
ALLOWED_OPCODES = frozenset(
    (
        *("PROTO", "STOP", "MARK", "POP", "POP_MARK", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"),
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE"),
        *("EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
        *("GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
    )
)
# What the unpickler, zipfile and the functions of this module raise on nonsense.
BROKEN_FILE_ERRORS = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError),
    *(ValueError, TypeError, LookupError, AttributeError, RuntimeError, OSError),
)


class CheckpointError(ValueError):
    """A file that cannot be read as a torch checkpoint; the message says which and why."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that asks for more than tensors; nothing of it has been run."""


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    size: int

    @property
    def num_bytes(self) -> int:
        return self.size * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StateDict(dict[Any, Any]):
    """Stands for `OrderedDict`; the attributes that torch hangs on it (`_metadata`) are dropped."""

    def __setstate__(self, state: object) -> None:
        pass


def read_torch_file(path: str | os.PathLike[str], key: str | None = None) -> dict[str, np.ndarray]:
    """Read the tensors of a torch checkpoint.

    Args:
        path: a `.pth` file, zip or legacy format.
        key: entry of the file that holds the tensors ("model", "state_dict"); None: the file itself does.

    Returns:
        Name to array, in the file's order and the tensors' own dtypes; bfloat16 comes as float32 (exactly), numpy has none.

    Raises:
        UnsafeCheckpointError: the pickle names anything but the machinery that rebuilds tensors.
        CheckpointError: not such a file, truncated, inconsistent, or without tensors at `key`.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    with path.open("rb") as file:
        read = _read_zip if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC else _read_legacy
        file.seek(0)
        try:
            loaded, storages = read(file, path)
        except CheckpointError:
            raise
        except BROKEN_FILE_ERRORS as error:
            raise CheckpointError(f"{path} is truncated or not a torch checkpoint: {error}") from error
    tensors = _select(loaded, key, path)
    return {name: _to_array(tensor, storages, f"{path}, tensor {name}") for name, tensor in tensors.items()}


def _read_zip(file: BinaryIO, path: Path) -> tuple[object, dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        members = _checked_members(archive, path)
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{path}: expected one data.pkl in the archive, found {len(pickles)}")
        root = pickles[0].removesuffix("data.pkl")
        # Files from before the member was introduced are little-endian in practice.
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise CheckpointError(f"{path}: the tensors are big-endian, only little-endian files are read")
        with archive.open(pickles[0]) as stream:
            loaded, wanted = _load_next(stream, path)
        return loaded, {key: archive.read(f"{root}data/{key}") for key in wanted}


def _checked_members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members by name. torch stores them uncompressed, so together they cannot be larger than the file."""
    infos = archive.infolist()
    packed = [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(f"{path}: {packed[0]} is compressed; torch stores members uncompressed, so this is refused")
    declared = sum(info.file_size for info in infos)
    actual = path.stat().st_size
    if declared > actual:
        raise CheckpointError(f"{path}: the archive declares {declared} bytes but the file has {actual}")
    return {info.filename: info for info in infos}


def _read_legacy(file: BinaryIO, path: Path) -> tuple[object, dict[str, bytes]]:
    if _load_next(file, path)[0] != LEGACY_MAGIC:
        raise CheckpointError(f"{path} is not a torch checkpoint: it is no zip archive and has not the legacy magic number")
    protocol, system = _load_next(file, path)[0], _load_next(file, path)[0]
    if protocol != LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{path}: expected protocol {LEGACY_PROTOCOL} and little-endian, got {protocol} and {system}")
    loaded, wanted = _load_next(file, path)
    keys = _load_next(file, path)[0]
    if not isinstance(keys, list) or sorted(keys) != sorted(wanted):
        raise CheckpointError(f"{path}: the list of storages does not match the tensors")
    return loaded, {key: _read_storage(file, wanted[key], path) for key in keys}


def _read_storage(file: BinaryIO, storage: _Storage, path: Path) -> bytes:
    (size,) = struct.unpack("<q", file.read(8))
    remaining = os.fstat(file.fileno()).st_size - file.tell()
    if size != storage.size or storage.num_bytes > remaining:
        raise CheckpointError(
            f"{path}: truncated or inconsistent; storage {storage.key} should have {storage.size} items "
            f"({storage.num_bytes} bytes), the file says {size} and has {remaining} bytes left"
        )
    return file.read(storage.num_bytes)


def _load_next(stream: IO[bytes], path: Path) -> tuple[Any, dict[str, _Storage]]:
    """Read the pickle that starts here and leave the stream after it.

    Returns:
        The object, with a `_Tensor` for each tensor, and the storages it needs by key.
    """
    start = stream.tell()
    # In memory, so that a length that the pickle only claims is not allocated.
    head = io.BytesIO(stream.read(MAX_PICKLE_BYTES))
    _check_pickle(head, path)
    stream.seek(start + head.tell())
    unpickler = _TensorUnpickler(io.BytesIO(head.getvalue()[: head.tell()]))
    return unpickler.load(), unpickler.storages


def _check_pickle(stream: io.BytesIO, path: Path) -> None:
    """Read one pickle and refuse it if it could do more than describe tensors. Looks at opcodes only, runs nothing."""
    operations: Iterator[tuple[Any, Any, Any]] = pickletools.genops(stream)
    for opcode, argument, position in operations:
        if opcode.name not in ALLOWED_OPCODES:
            raise UnsafeCheckpointError(f"{path}: refused, its pickle uses the operation {opcode.name}")
        if opcode.name == "GLOBAL" and tuple(argument.split(" ", 1)) not in ALLOWED_GLOBALS:
            name = argument.replace(" ", ".")
            raise UnsafeCheckpointError(f"{path}: refused, its pickle asks for {name}; only tensors are read")
        # The unpickler allocates its memo up to the index, and no pickle needs one beyond its own length.
        if opcode.name == "LONG_BINPUT" and argument > position:
            raise UnsafeCheckpointError(f"{path}: refused, its pickle asks for {argument} memo entries")


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise UnsafeCheckpointError(f"refused, the pickle asks for {module}.{name}")
        if module == "torch":
            # Text, not a dtype: the pickle may hand attributes to any object that takes them.
            return STORAGE_DTYPES[name]
        return {"OrderedDict": _StateDict, "_rebuild_tensor_v2": _rebuild_tensor, "_rebuild_parameter": _rebuild_parameter}[name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *view = pid
        known = kind == "storage" and dtype in STORAGE_DTYPES.values() and isinstance(key, str) and isinstance(size, int)
        if not known or size < 0 or any(view):
            raise pickle.UnpicklingError(f"unknown storage {pid!r}")
        storage = _Storage(key, dtype, size)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key} is described twice, differently")
        return storage


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> _Tensor:
    """Stands for `torch._utils._rebuild_tensor_v2`; checks that the view lies in its storage."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(isinstance(n, int) and n >= 0 for n in numbers) or len(shape) != len(strides):
        raise pickle.UnpicklingError(f"impossible tensor: storage {storage}, offset {offset}, shape {shape}, strides {strides}")
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    # The second test refuses strides of 0, which would let a small file ask for any amount of memory.
    if math.prod(shape) and (last >= storage.size or math.prod(shape) > storage.size):
        raise pickle.UnpicklingError(f"tensor of shape {shape}, strides {strides} at {offset} does not fit in {storage}")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: Any, *_: object) -> Any:
    return tensor


def _select(loaded: object, key: str | None, path: Path) -> Mapping[str, _Tensor]:
    found = loaded if key is None else loaded.get(key) if isinstance(loaded, dict) else None
    if isinstance(found, dict) and all(isinstance(k, str) and isinstance(v, _Tensor) for k, v in found.items()):
        return found
    names = ", ".join(map(repr, list(loaded)[:20])) if isinstance(loaded, dict) else type(loaded).__name__
    where = "the file" if key is None else f"entry {key!r}"
    raise CheckpointError(f"{path}: {where} should map names to tensors; the file holds {names}")


def _to_array(tensor: _Tensor, storages: Mapping[str, bytes], where: str) -> np.ndarray:
    storage, data = tensor.storage, storages[tensor.storage.key]
    if len(data) != storage.num_bytes:
        raise CheckpointError(f"{where}: its storage should have {storage.num_bytes} bytes, the file has {len(data)}")
    if storage.dtype == "bfloat16":
        # A bfloat16 is the upper half of a float32.
        flat = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        flat = np.frombuffer(data, np.dtype(storage.dtype).newbyteorder("<"))
    strides = [stride * flat.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides).copy()
