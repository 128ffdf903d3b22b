"""What is common to all formats: recognising them by content, and errors. Each format has its own tests beside these."""

import json
import pickle
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from mrcnn_tf.weights.checkpoint import read_checkpoint
from mrcnn_tf.weights.checkpoint_errors import CheckpointError, UnsafeCheckpointError
from tests.weights.exploits import Reduced, working_exploits
from tests.weights.test_torch_files import state_dict, tensors_of, write_legacy, write_zip

FILES = Path(__file__).parent.parent / "data_files" / "checkpoints"
VALUES = {"conv/kernel": np.arange(6, dtype="f4").reshape(2, 3) / 7, "conv/bias": np.array([1.5, -2.0, 0.0], "f4")}


def write_torch(path, values, legacy=False):
    body = state_dict(tensors_of(values, legacy))
    if legacy:
        return write_legacy(path, body, values)
    return write_zip(path, body, {name: value.tobytes() for name, value in values.items()})


def write_h5(path, values):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        file.create_group("conv").attrs["weight_names"] = [f"{name}:0".encode() for name in values]
        for name, value in values.items():
            file["conv"][f"{name}:0"] = value


WRITERS = {
    "torch": write_torch,
    "torch, legacy": lambda path, values: write_torch(path, values, legacy=True),
    "pickle": lambda path, values: path.write_bytes(pickle.dumps({"model": values, "__author__": "me"}, 4)),
    "safetensors": lambda path, values: save_file(values, path),
    "h5": write_h5,
}


def write_tensorflow(prefix, values):
    tf.train.Checkpoint(**{name.replace("/", "_"): tf.Variable(value) for name, value in values.items()}).write(str(prefix))


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.h5", "a.safetensors", "a.index", "a"])
@pytest.mark.parametrize("writer", list(WRITERS))
def test_files_are_recognised_by_content_not_by_name(tmp_path, writer, name):
    path = tmp_path / name
    WRITERS[writer](path, VALUES)
    checkpoint = read_checkpoint(str(path))
    assert (checkpoint.kind, checkpoint.path) == (writer.split(",")[0], path)
    assert checkpoint.arrays.keys() == VALUES.keys()
    for key, value in VALUES.items():
        assert checkpoint.arrays[key].dtype == value.dtype
        np.testing.assert_array_equal(checkpoint.arrays[key], value)


@pytest.mark.parametrize("given", ["folder/model.ckpt-1", "folder/model.ckpt-1.index", "folder"])
def test_tensorflow_checkpoints_have_a_prefix_or_a_folder(tmp_path, given):
    write_tensorflow(tmp_path / "folder" / "model.ckpt-1", VALUES)
    checkpoint = read_checkpoint(tmp_path / given)
    assert (checkpoint.kind, checkpoint.path) == ("tensorflow", tmp_path / given)
    np.testing.assert_array_equal(checkpoint.arrays["conv_bias/.ATTRIBUTES/VARIABLE_VALUE"], VALUES["conv/bias"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol(tmp_path, protocol):
    path = tmp_path / "a"
    path.write_bytes(pickle.dumps(VALUES, protocol))
    assert read_checkpoint(path).kind == "pickle"


@pytest.mark.parametrize("name", ["torch_2.13_zip.pth", "torch_2.13_legacy.pth"])
def test_training_checkpoints_of_torch_itself(name):
    checkpoint = read_checkpoint(FILES / name)
    shapes = {
        "conv.weight": (3, 2, 1, 1),
        "conv.bias": (3,),
        **{f"bn.{part}": (3,) for part in ("weight", "bias", "running_mean", "running_var")},
        "bn.num_batches_tracked": (),
    }
    assert checkpoint.kind == "torch"
    assert {key: value.shape for key, value in checkpoint.arrays.items()} == shapes
    for number, (key, value) in enumerate(checkpoint.arrays.items()):
        assert value.dtype == ("int64" if key.endswith("tracked") else "float32")
        np.testing.assert_array_equal(value.ravel(), np.arange(value.size) + 10 * number)


def test_a_pickle_of_python_2_itself():
    checkpoint = read_checkpoint(FILES / "python_2.7_numpy_1.16.pkl")
    assert checkpoint.kind == "pickle"
    assert checkpoint.arrays.keys() == {"conv1_w", "conv1_b", "lr"}
    np.testing.assert_array_equal(checkpoint.arrays["conv1_w"], np.arange(12, dtype="f4").reshape(3, 4).T / 7)
    np.testing.assert_array_equal(checkpoint.arrays["conv1_b"], np.array([0.0, 255.0, -1.5], "f4"))
    assert checkpoint.arrays["lr"] == np.float32(0.02)


@pytest.mark.parametrize("writer", ["torch", "torch, legacy", "pickle", "safetensors"])
def test_the_prefix_of_data_parallel_is_dropped(tmp_path, writer):
    path = tmp_path / "a"
    WRITERS[writer](path, {f"module.{name}": value for name, value in VALUES.items()})
    assert read_checkpoint(path).arrays.keys() == VALUES.keys()
    some = {"module.a": np.zeros(1, "f4"), "b": np.zeros(1, "f4")}
    WRITERS[writer](path, some)
    assert read_checkpoint(path).arrays.keys() == some.keys()


@pytest.mark.parametrize("name", ["a", "folder/a"])
def test_missing_files(tmp_path, name):
    with pytest.raises(CheckpointError, match=rf"{tmp_path / name}: no such file, and no TensorFlow checkpoint of that name"):
        read_checkpoint(tmp_path / name)


def test_a_folder_without_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a file checkpoint or one \*\.index file in the folder, found 0"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "begins"),
    [
        (b"", "it is empty"),
        (b"P", r"it begins with b'P'"),
        (b"hello, world, this is text", r"it begins with b'hello, world, th'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "it begins with b'version https://'"),
        (b"<!DOCTYPE html><html>", "it begins with b'<!DOCTYPE html><'"),
        (bytes(1000), "it begins with"),
        (pickle.dumps(VALUES, 0), "it begins with"),
        (pickle.dumps(VALUES, 1), "it begins with"),
        (b"\x80\x06" + pickle.dumps(VALUES, 5)[2:], "it begins with"),
        (struct.pack("<Q", 2**40) + b"{}", "it begins with"),
    ],
)
def test_unknown_files(tmp_path, content, begins):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=rf"model\.pth is no checkpoint of a known format, {begins}.*known are torch.*safetensors"
    ):
        read_checkpoint(path)


def test_other_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({}))
    with pytest.raises(CheckpointError, match=r"model\.keras: expected one data\.pkl in the archive, found 0 in config\.json"):
        read_checkpoint(tmp_path / "model.keras")


@pytest.mark.parametrize("writer", ["torch", "torch, legacy", "pickle"])
def test_empty_checkpoints(tmp_path, writer):
    WRITERS[writer](tmp_path / "a", {})
    with pytest.raises(CheckpointError, match="a: the file holds no arrays"):
        read_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("writer", list(WRITERS))
def test_files_truncated_anywhere(tmp_path, writer):
    path = tmp_path / "model"
    WRITERS[writer](path, VALUES)
    whole = path.read_bytes()
    for size in [*range(0, min(len(whole), 64)), *range(64, len(whole) - 1, 61), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=f"{path}"):
            read_checkpoint(path)


def test_exploits_are_refused_and_not_run(tmp_path):
    """Whatever the name; protocols 0 and 1 are not even taken for checkpoints."""
    marker = tmp_path / "marker"
    for name, content in working_exploits(marker).items():
        for path in (tmp_path / "model_final.pkl", tmp_path / "model.pth", tmp_path / "model.h5"):
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match=f"{path}") as error:
                read_checkpoint(path)
            assert isinstance(error.value, UnsafeCheckpointError) == (content[:1] == b"\x80")
        assert not marker.exists(), name


def test_exploits_inside_other_formats(tmp_path):
    marker = tmp_path / "marker"
    exploit = pickle.dumps(Reduced(open, str(marker), "w"), 2)
    write_zip(tmp_path / "a", exploit, {})
    write_legacy(tmp_path / "b", exploit, {})
    for name in "ab":
        with pytest.raises(UnsafeCheckpointError, match=r"refused, its pickle asks for .*open"):
            read_checkpoint(tmp_path / name)
    # Pickles that no reader looks at.
    with h5py.File(tmp_path / "c", "w") as file:
        file.attrs["layer_names"] = np.frombuffer(exploit, "u1")
    save_file({"x": np.frombuffer(exploit, "u1")}, tmp_path / "d", {"pickle": exploit.decode("latin1")})
    with pytest.raises(CheckpointError, match="should be names"):
        read_checkpoint(tmp_path / "c")
    assert read_checkpoint(tmp_path / "d").arrays["x"].tobytes() == exploit
    assert not marker.exists()
