"""Foreign files to models: what the user says and hears, and the files that come of it."""

import json
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file
from typer.testing import CliRunner

from mrcnn_tf import cli
from mrcnn_tf.config import BackboneConfig, ConfigError, ModelConfig, load_config, parse, stored_model_config
from mrcnn_tf.data.shapes import CATEGORIES
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN, load_model
from mrcnn_tf.predict import Predictor
from mrcnn_tf.weights import complete
from mrcnn_tf.weights.assign import PretrainedWeightsError
from mrcnn_tf.weights.checkpoint import Checkpoint
from mrcnn_tf.weights.importer import choose_importer, import_weights
from mrcnn_tf.weights.trunks import import_trunk, load_file, read_trunk
from tests.batches import make_batch
from tests.parity import stages
from tests.parity.gains import detectron2_gains
from tests.parity.seeded import image, weight

TRUNK = "backbone.bottom_up."
WIDTH, CLASSES = 8, 2
NARROW_HEADS = {
    **{f"backbone.fpn_lateral{level}.weight": (WIDTH, 128 * 2 ** (level - 1), 1, 1) for level in (2, 3, 4, 5)},
    **{f"backbone.fpn_output{level}.weight": (WIDTH, WIDTH, 3, 3) for level in (2, 3, 4, 5)},
    "proposal_generator.rpn_head.conv.weight": (WIDTH, WIDTH, 3, 3),
    "proposal_generator.rpn_head.objectness_logits.weight": (3, WIDTH, 1, 1),
    "proposal_generator.rpn_head.anchor_deltas.weight": (12, WIDTH, 1, 1),
    "roi_heads.box_head.fc1.weight": (16, WIDTH * 49),
    "roi_heads.box_head.fc2.weight": (16, 16),
    "roi_heads.box_predictor.cls_score.weight": (CLASSES + 1, 16),
    "roi_heads.box_predictor.bbox_pred.weight": (4 * CLASSES, 16),
    "roi_heads.mask_head.mask_fcn1.weight": (WIDTH, WIDTH, 3, 3),
    "roi_heads.mask_head.deconv.weight": (WIDTH, WIDTH, 2, 2),
    "roi_heads.mask_head.predictor.weight": (CLASSES, WIDTH, 1, 1),
}


@pytest.fixture(scope="module")
def arrays():
    """A detectron2 network with an ordinary trunk and narrow heads, of two classes."""
    whole = stages.parameter_shapes("detectron2_mask_rcnn_R_50_FPN.tsv")
    shapes = {name: shape for name, shape in whole.items() if name.startswith(TRUNK)}
    shapes |= NARROW_HEADS
    for name, shape in NARROW_HEADS.items():
        outputs = shape[1] if "deconv" in name else shape[0]
        shapes[name.replace(".weight", ".bias")] = (outputs,)
    return {name: weight(0, name, shape, detectron2_gains()) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(arrays, tmp_path_factory):
    """The same network as a pickle and as safetensors, and its trunk alone."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "model_final.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "a test"}, protocol=2))
    save_file(arrays, folder / "model.safetensors")
    trunk = {name.removeprefix(TRUNK): array for name, array in arrays.items() if name.startswith(TRUNK)}
    (folder / "R-50.pkl").write_bytes(pickle.dumps({"model": trunk, "__author__": "a test"}, protocol=2))
    return folder


@pytest.fixture(scope="module")
def imported(files):
    return import_weights(files / "model_final.pkl")


@pytest.fixture(autouse=True)
def keep_stderr(monkeypatch):
    """The command line redirects the process's stderr, which the runner has replaced."""
    monkeypatch.setattr(cli, "silence_tensorflow", lambda: None)


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def detect(model):
    found = Predictor(model, min_size=64, max_size=96)(image(0, 64, 96))
    return found.boxes, found.classes, found.scores, found.mask_probs


def test_found_and_numbered_classes(imported):
    assert imported.found.architecture == "detectron2 mask_rcnn_R_50_FPN"
    assert [(c.id, c.name) for c in imported.model.config.categories] == [(1, "class 1"), (2, "class 2")]
    config = imported.model.config
    assert (config.fpn.width, config.box_head.fc_width, config.mask_head.num_convs) == (WIDTH, 16, 1)
    assert (config.preset, config.roi_align.sampling_ratio) == ("detectron2", 0)


def test_formats_hold_the_same(imported, files):
    other = import_weights(files / "model.safetensors")
    for first, second in zip(imported.model.weights, other.model.weights, strict=True):
        np.testing.assert_array_equal(first, second)


def test_command_writes_a_file_that_detects_the_same(imported, files, tmp_path):
    done = run("import-weights", files / "model_final.pkl", "--output", tmp_path / "model.keras")
    assert done.exit_code == 0, done.output
    assert "found detectron2 mask_rcnn_R_50_FPN, 2 classes" in done.output
    assert "note: stride in the 1x1 convolution" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    expected = detect(imported.model)
    assert len(expected[0]) > 10
    for found, value in zip(detect(load_model(tmp_path / "model.keras")), expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-5)


def test_class_names(files, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "coco.json").write_text(json.dumps({"categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]}))
    for source, ids in (("names.txt", (1, 2)), ("coco.json", (17, 18))):
        output = tmp_path / "model.keras"
        done = run("import-weights", files / "model_final.pkl", "--output", output, "--class-names", tmp_path / source)
        assert done.exit_code == 0, done.output
        stored = load_config_of(output).categories
        assert [(c.id, c.name) for c in stored] == [(ids[0], "cat"), (ids[1], "dog")]
    (tmp_path / "names.txt").write_text("cat\ndog\nbird\n")
    done = run("import-weights", files / "model_final.pkl", "--output", output, "--class-names", tmp_path / "names.txt")
    assert (done.exit_code, "has 2 classes, got 3 names" in done.output) == (1, True)


def load_config_of(path):
    return ModelConfig.model_validate(stored_model_config(path, "test"))


def test_eps_and_overrides(files):
    model = import_weights(
        files / "model_final.pkl",
        norm_epsilon=0.01,
        overrides=["model.backbone.stride_in=3x3", "model.preprocessing.channel_order=rgb"],
    ).model
    assert model.backbone.get_layer("stem").norm_epsilon == 0.01
    assert model.backbone.get_layer("res3_0_conv2").strides == 2
    assert model.config.preprocessing.channel_order == "rgb"
    with pytest.raises(ConfigError, match=r"did you mean model\.backbone\.stride_in"):
        import_weights(files / "model_final.pkl", overrides=["model.backbone.stride=3x3"])


def test_format_is_checked(files):
    with pytest.raises(PretrainedWeightsError, match=r"not torchvision's; they look like detectron2's"):
        import_weights(files / "model_final.pkl", format="torchvision")
    with pytest.raises(PretrainedWeightsError, match=r"format must be auto, torchvision.*got 'caffe'"):
        import_weights(files / "model_final.pkl", format="caffe")


def test_unknown_names_and_trunks_say_what_to_do(files):
    with pytest.raises(PretrainedWeightsError, match=r"names of none of torchvision, .*stem\.conv1\.weight.*--part backbone"):
        import_weights(files / "R-50.pkl")


@pytest.mark.parametrize("name", ["conv_rpn_fpn2_w", "conv_rpn_w", "bbox_pred_w"])
def test_models_of_detectron_are_refused_by_name(name):
    checkpoint = Checkpoint(stages.Path("model_final.pkl"), "pickle", {name: np.zeros(1), "conv1_w": np.zeros(1)})
    with pytest.raises(PretrainedWeightsError, match=r"Detectron \(Caffe2\).*quantised.*use detectron2's model"):
        choose_importer(checkpoint)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "model.h5"), "--output must be a .keras file"),
        (("--output", "model.keras", "--part", "neck"), "--part must be all or backbone"),
    ],
)
def test_wrong_options(files, arguments, message):
    done = run("import-weights", files / "model_final.pkl", *arguments)
    assert (done.exit_code, message in done.output) == (1, True)


def test_a_broken_file_leaves_nothing_behind(files, tmp_path):
    (tmp_path / "cut.pkl").write_bytes((files / "model_final.pkl").read_bytes()[:5000])
    done = run("import-weights", tmp_path / "cut.pkl", "--output", tmp_path / "model.keras")
    assert (done.exit_code, "cut.pkl" in done.output) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["cut.pkl"]


def test_imported_models_train(files):
    """One step from the imported weights."""
    model = import_weights(files / "model.safetensors").model
    batch = make_batch(side=128, rows=3)
    batch["gt_classes"] = np.minimum(batch["gt_classes"], CLASSES)
    model.compile(keras.optimizers.SGD(1e-6), jit_compile=False)
    before = np.asarray(model.box_head.get_layer("fc0").kernel)
    history = model.fit(tf.data.Dataset.from_tensors(batch), verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert np.abs(np.asarray(model.box_head.get_layer("fc0").kernel) - before).max() > 0


# Trunks.


def test_trunk_as_a_model_of_its_own(files, arrays, tmp_path):
    done = run("import-weights", files / "R-50.pkl", "--part", "backbone", "--output", tmp_path / "r50.keras")
    assert done.exit_code == 0, done.output
    assert "found resnet50 as of detectron2" in done.output
    assert "stride_in 1x1" in done.output
    model, _ = import_trunk(files / "R-50.pkl")
    loaded = keras.saving.load_model(tmp_path / "r50.keras")
    inputs = {"images": image(0, 64, 64)[None].astype("float32"), "windows": np.float32([[0, 0, 64, 64]])}
    for level, values in model(inputs).items():
        assert values.shape[1] == 64 // 2 ** int(level[1])
        np.testing.assert_allclose(loaded(inputs)[level], values, atol=1e-5)


def trunk_config(weights, **values):
    return parse(ModelConfig, {"backbone": {"weights": str(weights), **values}, "categories": CATEGORIES}, "test")


@pytest.mark.parametrize("source", ["R-50.pkl", "model_final.pkl", "trunk.keras", "model.keras"])
def test_backbone_weights_of_a_configuration(files, imported, tmp_path, source):
    if source == "model.keras":
        imported.model.save(tmp_path / source)
    if source == "trunk.keras":
        import_trunk(files / "R-50.pkl")[0].save(tmp_path / source)
    path = files / source if source.endswith(".pkl") else tmp_path / source
    model = MaskRCNN(trunk_config(path))
    for found, expected in zip(model.backbone.weights, imported.model.backbone.weights, strict=True):
        np.testing.assert_array_equal(found, expected)
    config = model.config
    assert (config.backbone.stride_in, config.backbone.norm_epsilon) == ("1x1", 1e-5)
    assert config.preprocessing.pixel_mean == (103.53, 116.28, 123.675)


def test_what_the_configuration_gives_is_kept(files):
    config = complete(trunk_config(files / "R-50.pkl", norm_epsilon=0.1))
    assert config.backbone.norm_epsilon == 0.1
    with_mean = trunk_config(files / "R-50.pkl").model_copy(
        update={"preprocessing": trunk_config("x").preprocessing.model_copy(update={"pixel_mean": (1.0, 2.0, 3.0)})}
    )
    assert complete(with_mean).preprocessing.pixel_mean == (1.0, 2.0, 3.0)


def test_batch_norm_takes_the_statistics_too(files, arrays):
    model = MaskRCNN(trunk_config(files / "R-50.pkl", norm="batch"))
    stem = model.backbone.get_layer("stem").norm_layer
    np.testing.assert_array_equal(stem.moving_mean, arrays[f"{TRUNK}stem.conv1.norm.running_mean"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "resnet101"}, r"holds resnet50 as of detectron2; set model\.backbone\.name to resnet50 \(it is resnet101\)"),
        ({"stride_in": "3x3"}, r"stride in the 1x1 convolution; set model\.backbone\.stride_in to it \(it is 3x3\)"),
        ({"norm": "group"}, r"with frozen norm, model\.backbone\.norm is group"),
    ],
)
def test_what_contradicts_the_trunk_is_an_error(files, values, message):
    with pytest.raises(PretrainedWeightsError, match=message):
        MaskRCNN(trunk_config(files / "R-50.pkl", **values))


def test_no_trunk(files, tmp_path):
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"some.weight": np.zeros(3, np.float32)}, protocol=2))
    with pytest.raises(PretrainedWeightsError, match=r"no ResNet-50.* is recognised.*some\.weight"):
        read_trunk(tmp_path / "other.pkl")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.save(tmp_path / "other.keras")
    with pytest.raises(PretrainedWeightsError, match="neither a MaskRCNN nor a trunk"):
        read_trunk(tmp_path / "other.keras")
    with pytest.raises(PretrainedWeightsError, match=r"model\.backbone\.name is resnet101"):
        load_file(imported, BackboneConfig(name="resnet101", weights=str(files / "R-50.pkl")))


def test_shipped_recipe_starts_from_a_trunk_file(files):
    config = load_config("mask_rcnn_r50_fpn_1x", [f"model.backbone.weights={files / 'R-50.pkl'}"]).model
    assert complete(config).preprocessing.pixel_mean == (103.53, 116.28, 123.675)


@pytest.mark.parametrize(
    "values",
    [{"name": "efficientnet_lite0"}, {"name": "resnet50", "stride_in": "3x3", "padding": "same", "pool_padding": "same"}],
    ids=["efficientnet_lite0", "resnet50"],
)
def test_own_trunks_keep_what_belongs_to_them(values, tmp_path):
    config = parse(ModelConfig, {"backbone": {**values, "weights": None}, "categories": CATEGORIES}, "test")
    MaskRCNN(config).save(tmp_path / "model.keras")
    import_trunk(tmp_path / "model.keras")[0].save(tmp_path / "trunk.keras")
    for name in ("model.keras", "trunk.keras"):
        found = read_trunk(tmp_path / name).backbone
        assert {key: found[key] for key in values} == values
