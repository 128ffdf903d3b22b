import json
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mrcnn_tf.weights.checkpoint_errors import CheckpointError
from mrcnn_tf.weights.safetensors_files import read_safetensors_file

RNG = np.random.default_rng(0)
VALUES = {
    "weight": RNG.normal(size=(2, 3, 4)).astype("f4"),
    "double": RNG.normal(size=3),
    "half": np.array([1.5, -2.0], "f2"),
    "count": np.array(7, "i8"),
    "bytes": np.array([0, 255], "u1"),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), "f4"),
}


def write(path, values=VALUES, metadata=None):
    save_file(values, path, metadata)
    return path


def by_hand(path, header, data=b""):
    """A file whose header says what one likes."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_all_types(tmp_path):
    read = read_safetensors_file(write(tmp_path / "a.safetensors", metadata={"format": "pt"}))
    assert read.keys() == VALUES.keys()
    for name, value in VALUES.items():
        assert (read[name].dtype, read[name].shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(read[name], value)


def test_bfloat16_becomes_float32(tmp_path):
    values = np.array([1.0, -3.140625, 1e30], ml_dtypes.bfloat16)
    read = read_safetensors_file(write(tmp_path / "a.safetensors", {"x": values}))["x"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype("f4"))


def test_truncated_files(tmp_path):
    path = write(tmp_path / "a.safetensors")
    whole = path.read_bytes()
    for size in [*range(0, len(whole) - 1, 17), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"a\.safetensors is truncated, broken or not a safetensors file"):
            read_safetensors_file(path)


def test_damaged_files_give_arrays_or_a_checkpoint_error(tmp_path):
    path, rng = write(tmp_path / "a.safetensors"), np.random.default_rng(0)
    whole, refused = path.read_bytes(), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert all(isinstance(value, np.ndarray) for value in read_safetensors_file(path).values())
        except CheckpointError:
            refused += 1
    assert refused > 50


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"x": entry(shape=[2**40], offsets=[0, 2**42])}, bytes(4)),
        ({"x": entry(shape=[2**40])}, bytes(4)),
        ({"x": entry(shape=[2**62, 2**62])}, bytes(4)),
        ({"x": entry(offsets=[4, 8])}, bytes(4)),
        ({"x": entry(), "y": entry()}, bytes(4)),
        ({"x": entry()}, bytes(8)),
        ({"x": entry(dtype="object")}, bytes(4)),
        ({"x": entry(dtype="C64", offsets=[0, 8])}, bytes(8)),
        (b"{" + b"[" * 100_000, b""),
        (b"{'x': 1}", b""),
    ],
)
def test_headers_that_do_not_fit(tmp_path, header, data):
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        read_safetensors_file(by_hand(tmp_path / "a.safetensors", header, data))


def test_memory(tmp_path):
    path = write(tmp_path / "a.safetensors", {str(number): RNG.integers(0, 256, 2**20, "u1") for number in range(8)})
    tracemalloc.start()
    read = read_safetensors_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * path.stat().st_size
    assert len(read) == 8


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        read_safetensors_file(tmp_path / "none.safetensors")
