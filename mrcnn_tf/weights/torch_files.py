"""Reads tensors from torch's `.pth` files without torch, and without running what a pickle asks for.

Formats: the zip archive of torch >= 1.6 (`<name>/data.pkl`, `<name>/data/<key>`) and the legacy stream before it (magic number,
protocol version, system facts, pickle, list of keys, raw storages), as read from the files themselves. The pickle describes the
tensors; see `pickle_check` for what it may do. Only the data of the wanted tensors is read, not that of an optimizer beside them.
"""

from __future__ import annotations

import io
import os
import pickle
import reprlib
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mrcnn_tf.weights.checkpoint_errors import CheckpointError, reading
from mrcnn_tf.weights.pickle_arrays import PickledArray, select_arrays
from mrcnn_tf.weights.torch_tensors import Storage, Tensor, load_next

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = pickle.dumps(LEGACY_MAGIC, 2)[2:-1]
"""Stands in the first bytes of a legacy file, after the pickle's protocol."""
LEGACY_PROTOCOL = 1001
ZIP_MAGIC = b"PK\x03\x04"


def read_torch_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the tensors of a torch checkpoint.

    Args:
        path: a `.pth` file, zip or legacy format: tensors by name, or a training checkpoint with such an entry (`model`,
            `state_dict`, `model_state_dict`).

    Returns:
        Name to read-only array, in the file's order and the tensors' own dtypes; bfloat16 comes as float32, exactly.

    Raises:
        UnsafeCheckpointError: the pickle names anything but the machinery that rebuilds tensors and a few harmless types.
        CheckpointError: not such a file, truncated, inconsistent, or without tensors.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    with path.open("rb") as file, reading(path, "a torch checkpoint"):
        read = _read_zip if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC else _read_legacy
        file.seek(0)
        tensors, storages = read(file, path)
        return {name: _to_array(tensor, storages, f"{path}, tensor {name}") for name, tensor in tensors.items()}


def _to_array(tensor: Tensor | PickledArray, storages: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    return tensor.to_array(where) if isinstance(tensor, PickledArray) else tensor.to_array(storages, where)


_Read = tuple[dict[str, Tensor | PickledArray], dict[str, np.ndarray]]


def _read_zip(file: BinaryIO, path: Path) -> _Read:
    with zipfile.ZipFile(file) as archive:
        members = _checked_members(archive, path)
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            listed = ", ".join(list(members)[:5])
            raise CheckpointError(f"{path}: expected one data.pkl in the archive, found {len(pickles)} in {listed}")
        root = pickles[0].removesuffix("data.pkl")
        # Files from before the member was introduced are little-endian in practice.
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise CheckpointError(f"{path}: the tensors are big-endian, only little-endian files are read")
        loaded, _ = load_next(io.BytesIO(archive.read(pickles[0])), path)
        tensors = select_arrays(loaded, (Tensor, PickledArray), path)
        wanted = _storages_of(tensors)
        return tensors, {key: _flat(archive.read(f"{root}data/{key}"), wanted[key], path) for key in wanted}


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


def _read_legacy(file: BinaryIO, path: Path) -> _Read:
    if load_next(file, path)[0] != LEGACY_MAGIC:
        raise CheckpointError(f"{path} is not a torch checkpoint: it is no zip archive and has not the legacy magic number")
    protocol, system = load_next(file, path)[0], load_next(file, path)[0]
    if protocol != LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(
            f"{path}: expected protocol {LEGACY_PROTOCOL} and little-endian, got {reprlib.repr((protocol, system))}"
        )
    loaded, described = load_next(file, path)
    keys = load_next(file, path)[0]
    if not isinstance(keys, list) or sorted(keys) != sorted(described):
        raise CheckpointError(f"{path}: the list of storages does not match the tensors")
    tensors = select_arrays(loaded, (Tensor, PickledArray), path)
    wanted = _storages_of(tensors)
    storages = {}
    for key in keys:
        start = _check_storage(file, described[key], path)
        if key in wanted:
            storages[key] = _flat(file.read(wanted[key].num_bytes), wanted[key], path)
        file.seek(start + described[key].num_bytes)
    return tensors, storages


def _check_storage(file: BinaryIO, storage: Storage, path: Path) -> int:
    """Read a storage's size; gives where its data starts."""
    (size,) = struct.unpack("<q", file.read(8))
    remaining = os.fstat(file.fileno()).st_size - file.tell()
    if size != storage.size or storage.num_bytes > remaining:
        raise CheckpointError(
            f"{path}: truncated or inconsistent; storage {storage.key} should have {storage.size} items "
            f"({storage.num_bytes} bytes), the file says {size} and has {remaining} bytes left"
        )
    return file.tell()


def _storages_of(tensors: Mapping[str, Tensor | PickledArray]) -> dict[str, Storage]:
    return {tensor.storage.key: tensor.storage for tensor in tensors.values() if isinstance(tensor, Tensor)}


def _flat(data: bytes, storage: Storage, path: Path) -> np.ndarray:
    """A storage's numbers [size]."""
    if len(data) != storage.num_bytes:
        raise CheckpointError(f"{path}: storage {storage.key} should have {storage.num_bytes} bytes, the file has {len(data)}")
    if storage.dtype == "bfloat16":
        # A bfloat16 is the upper half of a float32.
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, np.dtype(storage.dtype).newbyteorder("<"))
