import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.weights.checkpoint_errors import CheckpointError
from mrcnn_tf.weights.tensorflow_files import find_prefix, read_tensorflow_checkpoint

VALUES = {
    "weight": np.arange(24, dtype="f4").reshape(2, 3, 4) / 7,
    "half": np.array([1.5, -2.0], "f2"),
    "count": np.array(7, "i8"),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), "f4"),
}
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def write(prefix, values=VALUES):
    return tf.train.Checkpoint(**{name: tf.Variable(value) for name, value in values.items()}).write(str(prefix))


def test_variables_by_the_checkpoints_own_keys(tmp_path):
    read = read_tensorflow_checkpoint(write(tmp_path / "model.ckpt-10"))
    assert read.keys() == {f"{name}{SUFFIX}" for name in VALUES}
    for name, value in VALUES.items():
        found = read[f"{name}{SUFFIX}"]
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(found, value)


def test_bfloat16_becomes_float32(tmp_path):
    values = tf.constant([1.0, -3.140625], tf.bfloat16)
    (read,) = read_tensorflow_checkpoint(write(tmp_path / "a", {"x": values})).values()
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, [1.0, -3.140625])


def test_slots_of_an_optimizer_are_left_in(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.fit(np.zeros((2, 2)), np.zeros((2, 3)), verbose=0)
    prefix = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "ckpt"))
    read = read_tensorflow_checkpoint(prefix)
    assert [value.shape for value in read.values()].count((2, 3)) == 2
    assert read[f"save_counter{SUFFIX}"] == 1
    assert "_CHECKPOINTABLE_OBJECT_GRAPH" not in read


def test_other_types_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=rf"a, x{SUFFIX}: expected bools, integers or floats, got complex64"):
        read_tensorflow_checkpoint(write(tmp_path / "a", {"x": np.zeros(2, "c8")}))


def test_the_checkpoint_of_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a file checkpoint or one \*\.index file in the folder, found 0$"):
        find_prefix(tmp_path)
    write(tmp_path / "a.ckpt-1")
    assert find_prefix(tmp_path) == tmp_path / "a.ckpt-1"
    write(tmp_path / "a.ckpt-2")
    with pytest.raises(CheckpointError, match=r"found 2: a\.ckpt-1\.index, a\.ckpt-2\.index; give the path of one"):
        find_prefix(tmp_path)


def test_the_newest_checkpoint_of_a_folder_that_was_moved(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(x=tf.Variable(1.0)), str(before), max_to_keep=3)
    for _ in range(3):
        manager.save()
    assert find_prefix(before) == before / "ckpt-3"
    before.rename(after)
    assert find_prefix(after) == after / "ckpt-3"
    text = (after / "checkpoint").read_text()
    (after / "checkpoint").write_text(text.replace('"ckpt-3"', f'"{before}/ckpt-2"'))
    assert find_prefix(after) == after / "ckpt-2"
    (after / "checkpoint").write_bytes(b"\xff nonsense")
    with pytest.raises(CheckpointError, match=r"after.checkpoint"):
        find_prefix(after)


def test_missing_parts(tmp_path):
    prefix = tmp_path / "a"
    with pytest.raises(CheckpointError, match=r"a is truncated or broken: .*matching files"):
        read_tensorflow_checkpoint(prefix)
    write(prefix)
    (tmp_path / "a.data-00000-of-00001").unlink()
    with pytest.raises(CheckpointError, match=r"a: the variables need \d+ bytes, its 0 data files have 0"):
        read_tensorflow_checkpoint(prefix)


def test_truncated_index(tmp_path):
    prefix = write(tmp_path / "a")
    path = tmp_path / "a.index"
    whole = path.read_bytes()
    for size in [*range(0, len(whole) - 1, 23), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=prefix):
            read_tensorflow_checkpoint(prefix)


def test_truncated_data(tmp_path):
    """The text of the object graph comes last and is not needed."""
    prefix = write(tmp_path / "a")
    path = tmp_path / "a.data-00000-of-00001"
    whole, needed = path.read_bytes(), sum(value.nbytes for value in VALUES.values())
    for size in range(0, needed, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=rf"{prefix}: the variables need {needed} bytes, its 1 data files have {size}"):
            read_tensorflow_checkpoint(prefix)
    # As large as before, but with a hole.
    path.write_bytes(whole[: needed // 2] + bytes(len(whole) - needed // 2))
    with pytest.raises(CheckpointError, match=rf"{prefix} is truncated or broken: "):
        read_tensorflow_checkpoint(prefix)
    path.write_bytes(whole[:needed])
    assert len(read_tensorflow_checkpoint(prefix)) == len(VALUES)


@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
def test_damaged_files_give_arrays_or_a_checkpoint_error(tmp_path, part):
    prefix, rng = write(tmp_path / "a"), np.random.default_rng(0)
    path = tmp_path / f"a.{part}"
    whole, refused = path.read_bytes(), 0
    for _ in range(60):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            damaged[position] ^= 1 + rng.integers(255)
        path.write_bytes(damaged)
        try:
            read_tensorflow_checkpoint(prefix)
        except CheckpointError:
            refused += 1
    assert refused > 10
