"""The files are written by hand here: torch is not needed, and nothing of it may be."""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from mrcnn_tf.weights.checkpoint_errors import CheckpointError, UnsafeCheckpointError
from mrcnn_tf.weights.torch_files import read_torch_file
from tests.weights.exploits import ORDERED_DICT, Reduced, refused_pickles, text, working_exploits

STORAGES = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "i4": "Int", "u1": "Byte", "b1": "Bool", "bf": "BFloat16"}
VALUES = {
    "conv.weight": np.arange(24, dtype="f4").reshape(2, 3, 4) / 7,
    "half": np.array([1.5, -2.0], "f2"),
    "double": np.array([[np.pi]], "f8"),
    "count": np.array(7, "i8"),
    "ints": np.array([1, -2], "i4"),
    "bytes": np.array([0, 255], "u1"),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), "f4"),
}


def integer(value):
    return b"J" + struct.pack("<i", value)


def numbers(values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(key, kind, size, legacy):
    tail = b"N" if legacy else b""
    return (
        b"("
        + text("storage")
        + f"ctorch\n{STORAGES[kind]}Storage\n".encode()
        + text(key)
        + text("cpu")
        + integer(size)
        + tail
        + b"tQ"
    )


def tensor(key, kind, size, shape, strides=None, offset=0, legacy=False):
    if strides is None:
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    view = integer(offset) + numbers(shape) + numbers(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(key, kind, size, legacy) + view + b"\x89" + ORDERED_DICT + b"tR"


def state_dict(entries):
    """A pickle body of name to pickled value, with the `_metadata` attribute that torch hangs on it."""
    items = b"".join(text(name) + value for name, value in entries.items())
    return ORDERED_DICT + b"(" + items + b"u" + b"}" + text("_metadata") + ORDERED_DICT + b"sb"


def tensors_of(values, legacy=False):
    return {name: tensor(name, value.dtype.str[1:], value.size, value.shape, legacy=legacy) for name, value in values.items()}


def write_zip(path, body, data, **extra):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body if body[:1] == b"\x80" else b"\x80\x02" + body + b".")
        archive.writestr("archive/byteorder", extra.get("byteorder", "little"))
        for key, value in data.items():
            archive.writestr(f"archive/data/{key}", value)
    return path


def legacy_parts(body, data):
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "type_sizes": {"int": 4}})]
    storages = b"".join(struct.pack("<q", value.size) + value.tobytes() for value in data.values())
    return [*head, body if body[:1] == b"\x80" else b"\x80\x02" + body + b".", pickle.dumps(list(data), 2), storages]


def write_legacy(path, body, data):
    path.write_bytes(b"".join(legacy_parts(body, data)))
    return path


def write(path, values, legacy):
    body = state_dict(tensors_of(values, legacy))
    if legacy:
        return write_legacy(path, body, values)
    return write_zip(path, body, {name: value.tobytes() for name, value in values.items()})


@pytest.mark.parametrize("legacy", [False, True])
def test_both_formats_and_all_types(tmp_path, legacy):
    read = read_torch_file(write(tmp_path / "a.pth", VALUES, legacy))
    assert list(read) == list(VALUES)
    for name, value in VALUES.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)


def test_bfloat16_becomes_float32(tmp_path):
    values = np.array([1.0, -3.140625, 0.0], "f4")
    upper = (values.view("u4") >> 16).astype("u2").tobytes()
    read = read_torch_file(write_zip(tmp_path / "a.pth", state_dict({"x": tensor("0", "bf", 3, [3])}), {"0": upper}))
    assert read["x"].dtype == np.float32
    np.testing.assert_array_equal(read["x"], values)


def test_views_share_a_storage(tmp_path):
    data = np.arange(12, dtype="f4")
    entries = {
        "transposed": tensor("0", "f4", 12, [4, 3], [1, 4]),
        "tail": tensor("0", "f4", 12, [2, 2], [2, 1], offset=8),
        "parameter": b"ctorch._utils\n_rebuild_parameter\n(" + tensor("0", "f4", 12, [12]) + b"\x88" + ORDERED_DICT + b"tR",
    }
    read = read_torch_file(write_zip(tmp_path / "a.pth", state_dict(entries), {"0": data.tobytes()}))
    np.testing.assert_array_equal(read["transposed"], data.reshape(3, 4).T)
    np.testing.assert_array_equal(read["tail"], data[8:].reshape(2, 2))
    np.testing.assert_array_equal(read["parameter"], data)


def optimizer_state(legacy):
    """As torch's optimizers write it, for one parameter with a buffer of momentum."""
    state = b"}K\x00}" + text("momentum_buffer") + tensor("momentum", "f4", 2, [2], legacy=legacy) + b"ss"
    group = b"]}" + text("lr") + b"G" + struct.pack(">d", 0.02) + b"sa"
    return b"}" + text("state") + state + b"s" + text("param_groups") + group + b"s"


HARMLESS = {
    "args": b"cargparse\nNamespace\n)\x81}" + text("lr") + integer(1) + b"sb",
    "device": b"ctorch\ndevice\n" + text("cuda") + b"\x85R",
    "dtype": b"ctorch\nfloat16\n",
    "size": b"ctorch\nSize\n" + numbers([1, 2]) + b"\x85R",
    "milestones": b"ccollections\nCounter\n}" + integer(16) + integer(1) + b"s\x85R",
    "per_name": b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R" + text("a") + b"]s",
    "seen": b"c__builtin__\nset\n](" + integer(1) + integer(2) + b"e\x85R",
    "folder": b"cpathlib\nPosixPath\n" + text("/") + text("data") + b"\x86R",
    "best": b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + text("f8") + b"\x89\x88\x87R(" + b"K\x03" + text("<") + b"NNNJ"
    b"\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbc_codecs\nencode\n" + text("\0" * 8) + text("latin1") + b"\x86R\x86R",
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("entry", ["model", "state_dict", "model_state_dict"])
def test_training_checkpoints(tmp_path, entry, legacy):
    inner = state_dict({"x": tensor("weight", "f4", 2, [2], legacy=legacy), "n": tensor("count", "i8", 1, [], legacy=legacy)})
    body = state_dict({"epoch": integer(3), "optimizer": optimizer_state(legacy), **HARMLESS, entry: inner})
    data = {"momentum": np.zeros(2, "f4"), "weight": np.array([1.5, -2.0], "f4"), "count": np.array([7])}
    path = tmp_path / "a.pth"
    if legacy:
        write_legacy(path, body, data)
    else:
        # The optimizer's data is left out: it is not needed.
        write_zip(path, body, {key: data[key].tobytes() for key in ("weight", "count")})
    read = read_torch_file(path)
    assert list(read) == ["x", "n"]
    np.testing.assert_array_equal(read["x"], data["weight"])
    assert read["n"] == 7
    assert read["n"].shape == ()


def test_harmless_objects_do_not_count_as_tensors(tmp_path):
    path = write_zip(tmp_path / "a.pth", state_dict(HARMLESS), {})
    with pytest.raises(CheckpointError, match=r"a\.pth: the file should map names to arrays; it also holds 'args' \(Inert\)"):
        read_torch_file(path)
    body = state_dict({"model": state_dict({"x": tensor("0", "f4", 1, [1]), "epoch": integer(3)})})
    with pytest.raises(CheckpointError, match=r"entry 'model' should map names to arrays; it also holds 'epoch' \(int\)"):
        read_torch_file(write_zip(path, body, {"0": bytes(4)}))
    with pytest.raises(CheckpointError, match=r"a\.pth: expected a dict of names and arrays, got list"):
        read_torch_file(write_zip(path, b"]", {}))


def test_files_of_the_first_torch(tmp_path):
    """Tensors of four arguments, parameters with a state of their own, an OrderedDict made of pairs, Python 2's strings."""
    tensor_v1 = (
        b"ctorch._utils\n_rebuild_tensor\n(" + storage("0", "f4", 2, True) + integer(0) + numbers([2]) + numbers([1]) + b"tR"
    )
    parameter = b"ctorch.nn.parameter\nParameter\n" + tensor_v1 + b"\x85R(\x88\x89" + ORDERED_DICT + b"tb"
    body = b"ccollections\nOrderedDict\n](](U\x01x" + parameter + b"ee\x85R"
    read = read_torch_file(write_legacy(tmp_path / "a.pth", body, {"0": np.array([1.0, 2.0], "f4")}))
    np.testing.assert_array_equal(read["x"], [1.0, 2.0])


def test_empty_state_dict(tmp_path):
    assert read_torch_file(write_zip(tmp_path / "a.pth", ORDERED_DICT, {})) == {}


def torch_exploits():
    """What only the torch reader lets through to its own functions."""
    call = b"cos\nsystem\n(" + text("x") + b"tR"
    return {
        "beside a tensor": b"\x80\x02" + state_dict({"x": tensor("0", "f4", 1, [1]), "y": call}) + b".",
        "as a storage": b"\x80\x02" + call + b"Q.",
        "attributes on the rebuilder": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}" + text("__defaults__") + b"Nsb.",
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_exploits_are_refused_and_not_run(tmp_path, legacy):
    marker, path = tmp_path / "marker", tmp_path / "a.pth"
    for body in [*working_exploits(marker).values(), *refused_pickles().values(), *torch_exploits().values()]:
        write_legacy(path, body, {}) if legacy else write_zip(path, body, {})
        with pytest.raises(UnsafeCheckpointError, match=r"a\.pth: refused"):
            read_torch_file(path)
    assert not marker.exists()


@pytest.mark.parametrize("position", range(5))
def test_every_pickle_of_the_legacy_format_is_guarded(tmp_path, position):
    marker, path = tmp_path / "marker", tmp_path / "a.pth"
    parts = legacy_parts(ORDERED_DICT, {})
    parts[position] = pickle.dumps(Reduced(os.system, f"touch {marker}"), 2)
    path.write_bytes(b"".join(parts))
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system|nt\.system"):
        read_torch_file(path)
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files(tmp_path, legacy):
    path = write(tmp_path / "a.pth", VALUES, legacy)
    whole = path.read_bytes()
    for size in [*range(0, len(whole) - 1, 41), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"a\.pth"):
            read_torch_file(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_give_arrays_or_a_checkpoint_error(tmp_path, legacy):
    path = write(tmp_path / "a.pth", VALUES, legacy)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert all(isinstance(value, np.ndarray) for value in read_torch_file(path).values())
        except CheckpointError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "entry",
    [
        tensor("0", "f4", 4, [5]),
        tensor("0", "f4", 4, [2], offset=3),
        tensor("0", "f4", 4, [2], [-1], offset=1),
        tensor("0", "f4", 4, [1 << 30], [0]),
        tensor("0", "f4", 4, [2, 2], [2]),
        tensor("0", "f4", 5, [5]),
        tensor("missing", "f4", 4, [4]),
        tensor("0", "f8", 4, [4]),
    ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, entry):
    path = write_zip(tmp_path / "a.pth", state_dict({"x": entry}), {"0": bytes(16)})
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        read_torch_file(path)


def test_zip_bombs(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + ORDERED_DICT + b".")
        archive.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="is compressed"):
        read_torch_file(path)
    write_zip(path, ORDERED_DICT, {"0": bytes(100)})
    data = path.read_bytes()
    central = data.rindex(b"PK\x01\x02")
    path.write_bytes(data[: central + 24] + struct.pack("<I", 1 << 30) + data[central + 28 :])
    with pytest.raises(CheckpointError, match=r"declares 10737\d+ bytes but the file has"):
        read_torch_file(path)


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "a.pth"
    for content in (b"", b"hello", bytes(1000), pickle.dumps({"x": 1}, 2), b"\x89HDF\r\n\x1a\n" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.pth"):
            read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no tensors")
    with pytest.raises(CheckpointError, match=r"expected one data\.pkl in the archive, found 0"):
        read_torch_file(path)
    write_zip(path, ORDERED_DICT, {}, byteorder="big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_torch_file(path)
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "none.pth")
