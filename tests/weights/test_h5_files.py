import h5py
import keras
import numpy as np
import pytest

from mrcnn_tf.weights.checkpoint_errors import CheckpointError, UnsafeCheckpointError
from mrcnn_tf.weights.h5_files import read_h5_file

RNG = np.random.default_rng(0)
CONV = {"conv1/kernel:0": RNG.normal(size=(3, 3, 3, 4)).astype("f4"), "conv1/bias:0": RNG.normal(size=4).astype("f4")}
RPN = {
    f"{layer}/{part}:0": RNG.normal(size=(2, 3)).astype("f4")
    for layer in ("rpn_conv_shared", "rpn_class_raw")
    for part in ("kernel", "bias")
}
LAYERS = {"input_image": {}, "conv1": CONV, "rpn_model": RPN}
EXPECTED = {
    "conv1/kernel": CONV["conv1/kernel:0"],
    "conv1/bias": CONV["conv1/bias:0"],
    **{name.removesuffix(":0"): value for name, value in RPN.items()},
}


def names(values):
    """As Keras 2 writes them; for a layer without weights that is an empty array of floats."""
    return np.array([value.encode() for value in values]) if values else np.array([])


def fill(root, layers):
    root.attrs["layer_names"] = names(list(layers))
    for layer, weights in layers.items():
        group = root.create_group(layer)
        group.attrs["weight_names"] = names(list(weights))
        for name, value in weights.items():
            group[name] = value


def write(path, layers=LAYERS, group=None):
    with h5py.File(path, "w") as file:
        fill(file if group is None else file.create_group(group), layers)
        file.attrs["keras_version"] = b"2.0.8"
    return path


def assert_equal(read, expected):
    assert list(read) == list(expected)
    for name, value in expected.items():
        assert isinstance(read[name], np.ndarray)
        assert read[name].dtype == value.dtype.newbyteorder("=")
        np.testing.assert_array_equal(read[name], value)


def test_weights_and_whole_models(tmp_path):
    assert_equal(read_h5_file(write(tmp_path / "a.h5")), EXPECTED)
    path = write(tmp_path / "b.h5", group="model_weights")
    with h5py.File(path, "a") as file:
        fill(file.create_group("optimizer_weights"), {"sgd": {"sgd/momentum:0": np.zeros(4, "f4")}})
    assert_equal(read_h5_file(path), EXPECTED)


@pytest.mark.parametrize(
    ("names_of_weights", "expected"),
    [
        (["conv1/kernel:0", "conv1/bias:0"], ["conv1/kernel", "conv1/bias"]),
        (["conv1_1/kernel:0", "conv1_1/bias:0"], ["conv1/kernel", "conv1/bias"]),
        (["model/conv1/kernel:0", "model/conv1/bias:0"], ["conv1/kernel", "conv1/bias"]),
        (["conv1_W:0", "conv1_b:0"], ["conv1/conv1_W", "conv1/conv1_b"]),
        (["kernel", "bias"], ["conv1/kernel", "conv1/bias"]),
        (["conv1/a/kernel:0", "conv1/b/kernel:0"], ["a/kernel", "b/kernel"]),
    ],
)
def test_names(tmp_path, names_of_weights, expected):
    values = {name: np.full(1, number, "f4") for number, name in enumerate(names_of_weights)}
    read = read_h5_file(write(tmp_path / "a.h5", {"conv1": values}))
    assert_equal(read, dict(zip(expected, values.values(), strict=True)))


def test_lists_of_names_that_keras_cut(tmp_path):
    path = write(tmp_path / "a.h5", {"conv1": CONV, "conv2": CONV})
    with h5py.File(path, "a") as file:
        del file.attrs["layer_names"], file["conv2"].attrs["weight_names"]
        for number, layer in enumerate(("conv1", "conv2")):
            file.attrs[f"layer_names{number}"] = names([layer])
        for number, name in enumerate(CONV):
            file["conv2"].attrs[f"weight_names{number}"] = [name]
    assert list(read_h5_file(path)) == ["conv1/kernel", "conv1/bias", "conv2/kernel", "conv2/bias"]


def test_other_types_of_numbers(tmp_path):
    values = {"x/a:0": np.array([1.0], ">f4"), "x/b:0": np.array([1, 2]), "x/c:0": np.zeros((0, 3), "f4"), "x/d:0": np.array(2.5)}
    read = read_h5_file(write(tmp_path / "a.h5", {"x": values}))
    assert_equal(read, {name.removesuffix(":0"): value for name, value in values.items()})
    assert read["x/a"].dtype.isnative


def test_what_keras_itself_saves(tmp_path):
    inner = keras.Sequential(
        [keras.Input((4, 4, 4)), keras.layers.Conv2D(2, 3, name="rpn_a"), keras.layers.Conv2D(3, 1, name="rpn_b")]
    )
    inputs = keras.Input((4, 4, 3))
    outputs = inner(keras.layers.BatchNormalization(name="bn")(keras.layers.Conv2D(4, 1, name="conv1")(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mse")
    model.save(tmp_path / "a.h5")
    read = read_h5_file(tmp_path / "a.h5")
    layers = {layer.name: layer for layer in (*model.layers, *inner.layers)}
    expected = {
        f"{name}/{weight.name}": weight.numpy() for name in ("conv1", "bn", "rpn_a", "rpn_b") for weight in layers[name].weights
    }
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(read[name], value)


def place_outside(file, path):
    del file["conv1/conv1/bias:0"]
    file["conv1/conv1"].create_dataset("bias:0", (4,), "f4", external=[(str(path), 0, 16)])


def place_virtually(file, path):
    del file["conv1/conv1/bias:0"]
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(path), "x", (4,))
    file["conv1/conv1"].create_virtual_dataset("bias:0", layout)


def link(group, name, target):
    def change(file, path):
        del file[f"{group}/{name}"]
        file[group][name] = target(path)

    return change


@pytest.mark.parametrize(
    "change",
    [
        place_outside,
        place_virtually,
        link("conv1/conv1", "bias:0", lambda path: h5py.ExternalLink(path, "x")),
        link("conv1", "conv1", lambda path: h5py.ExternalLink(path, "/")),
        link("/", "conv1", lambda path: h5py.ExternalLink(path, "/")),
        link("conv1/conv1", "bias:0", lambda path: h5py.SoftLink("/rpn_model/rpn_class_raw/bias:0")),
    ],
)
def test_data_elsewhere_is_refused(tmp_path, change):
    other = tmp_path / "secret.h5"
    with h5py.File(other, "w") as file:
        file["x"] = np.arange(4, dtype="f4")
        file["bias:0"] = np.arange(4, dtype="f4")
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        change(file, other)
    with pytest.raises(UnsafeCheckpointError, match=r"a\.h5.*refused, .*(in another file|another place or file)"):
        read_h5_file(path)


def replace_bias(**options):
    def change(file):
        del file["conv1/conv1/bias:0"]
        file["conv1/conv1"].create_dataset("bias:0", **options)

    return change


def rename(attribute, *values):
    def change(file):
        group, _, key = attribute.rpartition("/")
        file[group or "/"].attrs[key] = names(values)

    return change


def set_names(value):
    def change(file):
        file.attrs["layer_names"] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_bias(data=np.zeros(10**6, "f4"), compression="gzip"), r"conv1/conv1/bias:0: it is compressed or filtered"),
        (replace_bias(data=np.zeros(4, "f4"), shuffle=True, chunks=(2,)), r"it is compressed or filtered"),
        (replace_bias(shape=(2**40,), dtype="f4", chunks=(2**20,)), r"conv1/bias: its shape .* needs 4398046511104 bytes, 0 are"),
        (replace_bias(shape=(2**40,), dtype="f4"), r"conv1/bias: its shape \(1099511627776,\) needs 4398046511104 bytes"),
        (replace_bias(data=["text"]), r"expected bools, integers or floats, got object"),
        (replace_bias(data=np.zeros(2, "c8")), r"expected bools, integers or floats, got complex64"),
        (replace_bias(data=np.zeros(2, [("a", "f4")])), r"expected bools, integers or floats, got"),
        (replace_bias(data=h5py.Empty("f4")), r"conv1/bias:0: expected bools, integers or floats"),
        (rename("conv1/weight_names", "conv1/kernel:0", "conv1/kernel:0"), r"more than one weight is called conv1/kernel"),
        (rename("layer_names", "conv1", "conv1"), r"more than one weight is called conv1/kernel"),
        (rename("layer_names", "conv1", "conv9"), r"there is no 'conv9' in /"),
        (rename("conv1/weight_names", "conv1"), r"expected a data set, it is a group"),
        (rename("conv1/weight_names", "/rpn_model/x"), r"there is no '/rpn_model/x' in /conv1"),
        (rename("layer_names", "conv1/conv1/kernel:0"), r"expected conv1/conv1/kernel:0 to be a group"),
        (set_names(h5py.Empty("S5")), r"not an HDF5 file with weights of Keras"),
        (set_names(np.array([1.5])), r"layer_names of / should be names, got \[.*1\.5"),
        (
            lambda file: file.attrs.__delitem__("layer_names"),
            r"without the layer_names of Keras 1 and 2; it holds conv1, input_image",
        ),
    ],
)
def test_files_that_do_not_hold_what_they_say(tmp_path, change, message):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(CheckpointError, match=rf"a\.h5.*{message}"):
        read_h5_file(path)


def test_one_data_set_under_many_names(tmp_path):
    path = write(tmp_path / "a.h5", {"x": {"x/0": np.zeros(10**5, "f4")}})
    with h5py.File(path, "a") as file:
        many = [f"x/{number}" for number in range(100)]
        for name in many[1:]:
            file["x"][name] = file["x/x/0"]
        file["x"].attrs["weight_names"] = names(many)
    with pytest.raises(CheckpointError, match=r"a\.h5: the weights need 40000000 bytes, the file has 4\d{5}$"):
        read_h5_file(path)


def test_truncated_files(tmp_path):
    path = write(tmp_path / "a.h5")
    whole = path.read_bytes()
    for size in [*range(0, len(whole) - 1, 251), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"a\.h5 is truncated, broken or not an HDF5 file"):
            read_h5_file(path)
