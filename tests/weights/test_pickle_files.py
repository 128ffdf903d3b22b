import collections
import contextlib
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from mrcnn_tf.weights.checkpoint_errors import CheckpointError, UnsafeCheckpointError
from mrcnn_tf.weights.pickle_files import read_pickle_file
from tests.weights.exploits import RECONSTRUCT, Reduced, refused_pickles, text, working_exploits

RNG = np.random.default_rng(0)
VALUES = {
    "conv.weight": RNG.normal(size=(2, 3, 4)).astype("f4"),
    "fortran": np.asfortranarray(RNG.normal(size=(3, 4)).astype("f4")),
    "transposed": RNG.normal(size=(5, 4)).T,
    "strided": RNG.normal(size=(6, 6))[::2, ::3],
    "big_endian": RNG.normal(size=3).astype(">f4"),
    "half": np.array([1.5, -2.0], "f2"),
    "ints": np.array([1, -2], "i8"),
    "bytes": np.array([0, 127, 128, 255], "u1"),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), "f4"),
    "no sides": np.array(3.5, "f4"),
    "scalar": np.float32(2.5),
}
PROTOCOLS = [2, 3, 4, 5]
RECORD = np.array([(1, 2.0)], [("a", "i4"), ("b", "f4")])


def write(path, content, protocol=4):
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


def assert_values(read, expected):
    assert list(read) == list(expected)
    for name, value in expected.items():
        assert read[name].dtype == value.dtype.newbyteorder("=")
        assert read[name].shape == value.shape
        np.testing.assert_array_equal(read[name], value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda values: values,
        collections.OrderedDict,
        lambda values: {"model": values, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True},
        lambda values: {"blobs": values, "cfg": "MODEL: {}"},
    ],
    ids=["bare", "ordered", "detectron2", "caffe2"],
)
def test_all_layouts_protocols_and_types(tmp_path, wrap, protocol):
    assert_values(read_pickle_file(write(tmp_path / "a.pkl", wrap(VALUES), protocol)), VALUES)


@pytest.mark.parametrize("core", [b"numpy.core.", b"numpy._core."])
def test_numpy_1_and_2_name_their_functions_differently(tmp_path, core):
    data = np.arange(6, dtype="f4")
    content = b"B" + struct.pack("<I", data.nbytes) + data.tobytes()
    entries = {
        "array": array(b"K\x02K\x03\x86", data=data.tobytes(), fortran=b"\x88"),
        "scalar": b"cnumpy.core.multiarray\nscalar\n" + dtype("f4") + b"C\x04" + data[5:].tobytes() + b"\x86R",
        "buffer": b"cnumpy.core.numeric\n_frombuffer\n(" + content + dtype("f4") + b"K\x06\x85" + text("C") + b"tR",
    }
    items = b"".join(text(name) + entry for name, entry in entries.items())
    read = read_pickle_file(write(tmp_path / "a.pkl", b"\x80\x03}(" + items.replace(b"numpy.core.", core) + b"u."))
    assert_values(read, {"array": data.reshape(3, 2).T, "scalar": data[5], "buffer": data})


def test_python_2_writes_data_as_strings(tmp_path):
    """`U` and `T`: short and long byte strings, which Python 3 takes for text."""
    data = np.arange(256, dtype="u1").tobytes()
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01K\x08K\x08\x86" + dtype + b"\x88T" + struct.pack("<i", 256) + data + b"tb"
    array = RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state
    content = b"\x80\x02}U\x05blobs}U\x07conv1_w" + array + b"ss."
    expected = np.frombuffer(data, "<f4").reshape(8, 8, order="F")
    plain = pickle.loads(content, encoding="latin1")["blobs"]["conv1_w"]
    for value in (plain, read_pickle_file(write(tmp_path / "a.pkl", content))["conv1_w"]):
        assert value.tobytes("F") == expected.tobytes("F")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"expected a dict of names and arrays, got list"),
        ({"x": 1.5}, r"the file should map names to arrays; it also holds 'x' \(float\)"),
        ({1: np.ones(1)}, r"the file should map names to arrays; it also holds 1 \(PickledArray\)"),
        ({"model": {"x": np.ones(1), "y": "text"}}, r"entry 'model' should map names to arrays; it also holds 'y' \(str\)"),
        ({"x": np.array(["text"])}, r"array x: expected bools, integers or floats, got the type 'U4'"),
        ({"x": np.array([1j])}, r"array x: expected bools, integers or floats, got the type 'c16'"),
        ({"x": np.array(["2020-01-01"], "M8[D]")}, r"array x: expected bools, integers or floats, got the type 'M8'"),
        ({"x": RECORD}, "array has fields"),
    ],
)
def test_other_contents(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=r"a\.pkl.*" + message):
        read_pickle_file(write(tmp_path / "a.pkl", content))


def test_exploits_are_refused_and_not_run(tmp_path):
    marker = tmp_path / "marker"
    for name, content in working_exploits(marker).items():
        with pytest.raises(UnsafeCheckpointError, match=r"a\.pkl: refused, its pickle"):
            read_pickle_file(write(tmp_path / "a.pkl", content))
        assert not marker.exists(), name


def test_the_exploits_run_in_a_plain_unpickler(tmp_path):
    marker = tmp_path / "marker"
    for name, content in working_exploits(marker).items():
        # Some fail after they have done their harm.
        with contextlib.suppress(Exception):
            pickle.loads(content)
        assert marker.exists(), name
        marker.unlink()


@pytest.mark.parametrize("name", list(refused_pickles()))
def test_what_no_array_needs_is_refused(tmp_path, name):
    with pytest.raises(UnsafeCheckpointError, match=r"a\.pkl: refused, its pickle"):
        read_pickle_file(write(tmp_path / "a.pkl", refused_pickles()[name]))


def test_torch_is_not_known_here(tmp_path):
    for content in (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.", b"\x80\x02X\x01\0\0\0aQ."):
        with pytest.raises(UnsafeCheckpointError, match=r"asks for torch\._utils|uses the operation BINPERSID"):
            read_pickle_file(write(tmp_path / "a.pkl", content))


def test_refusals_leave_the_stand_ins_as_they_were(tmp_path):
    """Hostile files may not change how later ones are read."""
    for content in refused_pickles().values():
        with pytest.raises(UnsafeCheckpointError):
            read_pickle_file(write(tmp_path / "a.pkl", content))
    assert_values(read_pickle_file(write(tmp_path / "a.pkl", VALUES)), VALUES)


def dtype(code):
    return b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R"


def array(shape, code="f4", data=b"", fortran=b"\x89", dtype_state=b""):
    """An array whose state says what one likes; `shape` is a pickle of its own."""
    content = b"B" + struct.pack("<I", len(data)) + data
    return (
        RECONSTRUCT
        + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
        + shape
        + dtype(code)
        + dtype_state
        + fortran
        + content
        + b"tb"
    )


@pytest.mark.parametrize(
    "entry",
    [
        array(b"J" + struct.pack("<i", 2**30) + b"\x85", data=bytes(4)),
        array(b"J" + struct.pack("<i", 2**30) + b"J" + struct.pack("<i", 2**30) + b"\x86", data=bytes(4)),
        array(b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85", data=bytes(4)),
        array(b"J" + struct.pack("<i", -1) + b"\x85", data=bytes(4)),
        array(b"G" + struct.pack(">d", 1.0) + b"\x85", data=bytes(4)),
        array(b"K\x01", data=bytes(4)),
        array(b"K\x01\x85", data=bytes(3)),
        array(b"K\x01\x85", data=bytes(8)),
        array(b"K\x01\x85", code="f16", data=bytes(16)),
        array(b"K\x01\x85", code="f3", data=bytes(3)),
        array(b"K\x01\x85", code="f4,f4", data=bytes(8)),
        array(b"K\x01\x85", code="(1000000000,)f4", data=bytes(4)),
        array(b"K\x01\x85", data=bytes(4), dtype_state=b"(K\x03" + text("!") + b"NNNK\x00K\x00K\x00tb"),
        array(b"K\x01\x85", data=bytes(4), dtype_state=b"(K\x03" + text("<") + b"K\x05NNK\x00K\x00K\x00tb"),
        array(b"(" + b"K\x01" * 70 + b"t", data=bytes(4)),
        # Never given a state, given one that is none, given another object's data.
        RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R",
        RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87RK\x05b",
        RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01K\x01\x85" + dtype("f4") + b"\x89]tb",
        RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01K\x01\x85N\x89C\x04abcdtb",
        b"cnumpy.core.multiarray\nscalar\n" + dtype("f4") + b"C\x03abc\x86R",
        b"cnumpy.core.numeric\n_frombuffer\n(C\x04abcd" + dtype("f4") + b"K\x01\x85" + text("A") + b"tR",
        # Text that is no latin1, another codec, bytes of a length.
        b"c_codecs\nencode\n" + text("é€") + text("latin1") + b"\x86R",
        b"c_codecs\nencode\n" + text("x") + text("zip_codec") + b"\x86R",
        b"c__builtin__\nbytes\n\x8a\x05\xff\xff\xff\xff\x7f\x85R",
    ],
)
def test_impossible_arrays(tmp_path, entry):
    with pytest.raises(CheckpointError, match=r"a\.pkl"):
        read_pickle_file(write(tmp_path / "a.pkl", b"\x80\x03}" + text("x") + entry + b"s."))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62),
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40),
        b"\x80\x05\x96" + struct.pack("<Q", 2**40),
        b"\x80\x03B" + struct.pack("<I", 2**32 - 1),
        b"\x80\x03X" + struct.pack("<I", 2**32 - 1),
        b"\x80\x02T" + struct.pack("<i", 2**31 - 1),
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1),
        b"\x80\x04\x95" + struct.pack("<Q", 2**40),
    ],
)
def test_lengths_that_are_only_claimed_cost_no_memory(tmp_path, content):
    path = write(tmp_path / "a.pkl", content + b"abc.")
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"a\.pkl is truncated, .*a pickle says that \d+ bytes follow, there are \d"):
        read_pickle_file(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [b"\x80\x02.", b"\x80\x02(.", b"\x80\x02(\x85.", b"\x80\x02h\x05.", b"\x80\x02R.", b"\x80\x02q\x00."]
)
def test_pickles_that_take_what_is_not_there(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"a\.pkl is truncated, broken or not a pickle of arrays"):
        read_pickle_file(write(tmp_path / "a.pkl", content))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_truncated_files(tmp_path, protocol):
    whole = pickle.dumps({"model": VALUES}, protocol)
    for size in [*range(0, len(whole) - 1, 13), len(whole) - 1]:
        with pytest.raises(CheckpointError, match=r"a\.pkl"):
            read_pickle_file(write(tmp_path / "a.pkl", whole[:size]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_damaged_files_give_arrays_or_a_checkpoint_error(tmp_path, protocol):
    whole, rng = pickle.dumps({"model": VALUES}, protocol), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            damaged[position] = rng.integers(256)
        try:
            assert all(
                isinstance(value, np.ndarray) for value in read_pickle_file(write(tmp_path / "a.pkl", bytes(damaged))).values()
            )
        except CheckpointError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(("protocol", "limit"), [(2, 1.8), (3, 1.2), (4, 1.2), (5, 1.2)])
def test_memory(tmp_path, protocol, limit):
    """Protocol 2 keeps bytes as text, so the file is larger than the arrays and both are in memory for a while."""
    arrays = {str(number): RNG.integers(0, 256, 2**20, "u1") for number in range(8)}
    path = write(tmp_path / "a.pkl", {"model": arrays}, protocol)
    tracemalloc.start()
    read = read_pickle_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < limit * path.stat().st_size
    assert_values(read, arrays)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pickle_file(tmp_path / "none.pkl")


def test_nothing_is_imported(tmp_path):
    """The names stand for functions of ours: even the allowed ones are not looked up."""
    content = (
        b"\x80\x02}"
        + text("model")
        + pickle.dumps({"x": np.ones(1)}, 2)[2:-1]
        + b"s"
        + text("y")
        + b"cpathlib._local\nPosixPath\n)Rs."
    )
    assert list(read_pickle_file(write(tmp_path / "a.pkl", content))) == ["x"]
    with pytest.raises(UnsafeCheckpointError, match=f"asks for {os.system.__module__}.system"):
        read_pickle_file(write(tmp_path / "a.pkl", {"model": {"x": np.ones(1)}, "y": Reduced(os.system, "true")}))
