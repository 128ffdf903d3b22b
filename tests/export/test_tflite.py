"""The TFLite bundle: what stands in the file, that it finds what the model finds, and what is said when it does not."""

import json
import zipfile
from dataclasses import replace

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from typer.testing import CliRunner

from mrcnn_tf import cli
from mrcnn_tf.data.images import load_image
from mrcnn_tf.export import tflite as module
from mrcnn_tf.export.agreement import agreement
from mrcnn_tf.export.bundle import Bundle
from mrcnn_tf.export.edge_inputs import EdgeInput, edge_input
from mrcnn_tf.export.edge_parity import TOLERANCES, compare_with_model, detections_of, reference
from mrcnn_tf.export.edge_runtimes import EdgeRunner
from mrcnn_tf.export.folders import ExportError
from mrcnn_tf.export.tflite import export_tflite
from mrcnn_tf.export.tflite_convert import operations
from mrcnn_tf.export.tflite_pack import pack_shared
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.predict import Predictor
from tests.batches import with_model

SIZE = (128, 128)
STAGES = ["trunk", "propose", "box", "detect", "mask"]


@pytest.fixture(scope="module")
def bundle(tiny_model, pictures, tmp_path_factory):
    return export_tflite(tiny_model, tmp_path_factory.mktemp("edge") / "bundle", image_size=SIZE, calibration=[pictures["png"]])


@pytest.fixture(scope="module")
def content(bundle):
    return (bundle / "model.tflite").read_bytes()


@pytest.fixture(scope="module")
def run(content):
    return EdgeRunner(content)


@pytest.fixture
def converted_before(content, monkeypatch):
    """The float32 file in place of another conversion of the same model."""
    plain = content[: content.rindex(b"PK\x03\x04")]
    monkeypatch.setattr(module, "convert", lambda *_, **__: plain)


def full(run):
    return lambda picture: run("full", picture._asdict())


def test_files(bundle, tiny_model):
    assert {path.name for path in bundle.iterdir()} == {"model.tflite", "model.json", "labels.txt", "detect.py", "README.md"}
    names = [category.name for category in tiny_model.config.categories]
    assert (bundle / "labels.txt").read_text().split() == names
    with zipfile.ZipFile(bundle / "model.tflite") as archive:
        assert archive.read("labels.txt").decode().split() == names
    assert "4 classes" in (bundle / "README.md").read_text()


def test_model_json_describes_every_tensor(bundle, content):
    described = json.loads((bundle / "model.json").read_text())["signatures"]
    assert sorted(described) == sorted(["full", *STAGES])
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    for name, tensors in described.items():
        runner = interpreter.get_signature_runner(name)
        for kind, details in (("inputs", runner.get_input_details()), ("outputs", runner.get_output_details())):
            assert set(details) == set(tensors[kind])
            for key, tensor in tensors[kind].items():
                assert details[key]["shape"].tolist() == tensor["shape"]
                assert details[key]["shape_signature"].tolist() == tensor["shape"]
                assert np.dtype(details[key]["dtype"]).name == tensor["dtype"]
                assert tensor["meaning"]
    integers = {
        key for tensors in described.values() for key, tensor in tensors["outputs"].items() if tensor["dtype"] != "float32"
    }
    assert integers == set()


def test_built_in_operations_without_control_flow(content):
    names = {name for name, _ in operations(content)}
    assert {"NON_MAX_SUPPRESSION_V4", "GATHER", "CONV_2D", "TRANSPOSE_CONV"} <= names
    assert not {
        name for name in names if name in ("CUSTOM", "DELEGATE", "WHILE", "IF", "CALL", "CALL_ONCE") or "VAR_HANDLE" in name
    }
    # Delegates of phones refuse newer ones.
    versions = dict(operations(content).keys())
    assert versions["TRANSPOSE_CONV"] <= 3
    assert versions["STRIDED_SLICE"] <= 2


def test_signatures_share_the_weights(content, tiny_model):
    weights = sum(4 * int(np.prod(variable.shape)) for variable in tiny_model.variables)
    assert len(content) < 1.15 * weights


def test_finds_what_the_model_finds(run, tiny_model, pictures):
    inputs = [edge_input(load_image(path), tiny_model.config, SIZE) for path in pictures.values()]
    found = compare_with_model(full(run), reference(tiny_model), inputs, tiny_model.config, 0.0)
    assert found.objects > 20
    assert TOLERANCES["float32"].holds(found), found


@pytest.mark.parametrize("size", [(128, 128), (1, 1), (128, 3), (40, 128)])
def test_boxes_without_area(run, tiny_model, size):
    """In a picture of one pixel most proposals are cut to nothing: TFLite's kernel would choose such a box again and again."""
    random = np.random.default_rng(0)
    picture = EdgeInput(random.integers(0, 256, (1, *SIZE, 3)).astype(np.uint8), np.array([size], np.int32))
    found = compare_with_model(full(run), reference(tiny_model), [picture], tiny_model.config, 0.0)
    assert TOLERANCES["float32"].holds(found), found


def test_stages_give_what_full_gives(bundle, pictures):
    detector = Bundle(bundle)._detector
    for name in ("jpeg", "turned", "grey", "one_pixel"):
        image = load_image(pictures[name])
        staged, whole = detector(image), detector.detect_full(image)
        for key in ("boxes", "classes", "scores", "mask_probs"):
            np.testing.assert_array_equal(getattr(staged, key), getattr(whole, key))


def test_a_bundle_finds_what_the_predictor_finds(bundle, tiny_model, pictures):
    """But for the last grey level of resizing, which Pillow does on a device."""
    detect, predict = Bundle(bundle), Predictor(tiny_model, min_size=128, max_size=128)
    images = [load_image(pictures[name]) for name in ("jpeg", "png", "turned", "alpha")]
    found = agreement((predict(image), detect(image)) for image in images)
    assert found.matched > 0.8
    assert found.mean_boxes < 0.1
    assert detect.categories == predict.categories


def test_evaluate_takes_a_bundle(bundle, shapes_dir, tmp_path):
    arguments = ["--images", shapes_dir / "images", "--annotations", shapes_dir / "instances_val.json", "--output", tmp_path]
    result = CliRunner().invoke(cli.app, ["evaluate", str(bundle), *map(str, arguments), "--runtime", "litert"])
    assert result.exit_code == 0, result.output
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {"bbox", "segm", "classes"}
    refused = CliRunner().invoke(cli.app, ["evaluate", str(bundle), *map(str, arguments), "--min-size", "99"])
    assert refused.exit_code == 1
    assert "in one size" in refused.output


@pytest.mark.usefixtures("converted_before")
def test_float16_halves_the_file(tiny_model, content, pictures, tmp_path):
    folder = export_tflite(tiny_model, tmp_path / "half", image_size=SIZE, precision="float16", calibration=[pictures["jpeg"]])
    assert (folder / "model.tflite").stat().st_size < 0.56 * len(content)
    assert json.loads((folder / "model.json").read_text())["parity"]["ai-edge-litert"]["matched"] >= 0.97


@pytest.mark.usefixtures("converted_before")
def test_int8_with_float_geometry(tiny_model, content, pictures, tmp_path):
    names = ("jpeg", "png", "turned", "alpha", "turned_png", "grey")
    folder = export_tflite(
        tiny_model, tmp_path / "int8", image_size=SIZE, precision="int8", calibration=[pictures[name] for name in names]
    )
    data = (folder / "model.tflite").read_bytes()
    assert len(data) < 0.4 * len(content)
    assert {"QUANTIZE", "DEQUANTIZE"} <= {name for name, _ in operations(data)}
    assert_no_pixel_between_steps(data, tiny_model.config)
    run, picture = EdgeRunner(data), edge_input(load_image(pictures["jpeg"]), tiny_model.config, SIZE)
    outputs = run("full", picture._asdict())
    packed_again = EdgeRunner(pack_shared(data))("full", picture._asdict())
    for name, value in outputs.items():
        np.testing.assert_array_equal(packed_again[name], value)
    assert {value.dtype for value in outputs.values()} == {np.dtype(np.float32)}
    expected = reference(tiny_model)(picture)
    ours, theirs = (detections_of(found, tiny_model.config) for found in (expected, outputs))
    assert len(theirs) > 0
    np.testing.assert_allclose(theirs.scores[0], ours.scores[0], atol=0.05)


def input_steps(data):
    """Scale and zero point of the input of the trunk's first convolution."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    inputs = {
        (float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0]))
        for subgraph in model.subgraphs
        for tensor in subgraph.tensors
        if tensor.type == schema.TensorType.INT8 and list(tensor.shape) == [1, *SIZE, 3]
    }
    # The same in `full` and `trunk`.
    (steps,) = inputs
    return steps


def assert_no_pixel_between_steps(data, config):
    scale, zero = input_steps(data)
    mean, std = (np.array(values) for values in (config.preprocessing.pixel_mean, config.preprocessing.pixel_std))
    steps = (np.arange(256)[:, None] - mean) / std / scale + zero
    assert np.abs(steps - np.floor(steps) - 0.5).min() > 1e-3
    # None is cut off either.
    assert steps.min() > -128.6
    assert steps.max() < 127.6


def test_refusals(tiny_model, tiny_config, pictures, tmp_path):
    with pytest.raises(ExportError, match="int8 needs pictures"):
        export_tflite(tiny_model, tmp_path / "x", image_size=SIZE, precision="int8")
    with pytest.raises(ValueError, match=r"multiples of 64, got 100 x 128"):
        export_tflite(tiny_model, tmp_path / "x", image_size=(100, 128))
    (tmp_path / "there").mkdir()
    with pytest.raises(ExportError, match=r"there exists"):
        export_tflite(tiny_model, tmp_path / "there", image_size=SIZE)
    pooled = MaskRCNN(with_model(tiny_config, roi_align={"kind": "pool"}))
    with pytest.raises(ExportError, match=r"roi_align\.kind pool"):
        export_tflite(pooled, tmp_path / "x", image_size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.usefixtures("converted_before")
def test_a_file_that_disagrees_is_not_written(tiny_model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TOLERANCES", {"float32": replace(TOLERANCES["float32"], most={"boxes": -1.0})})
    with pytest.raises(ExportError, match=r"does not find what the model finds in ai-edge-litert.*--allow-mismatch"):
        export_tflite(tiny_model, tmp_path / "x", image_size=SIZE, calibration=[pictures["png"]])
    assert list(tmp_path.iterdir()) == []
    export_tflite(tiny_model, tmp_path / "x", image_size=SIZE, calibration=[pictures["png"]], allow_mismatch=True)
    assert (tmp_path / "x" / "model.tflite").is_file()


def test_adaptive_sampling_is_replaced_and_the_effect_is_told(tiny_config, pictures, tmp_path, monkeypatch):
    """What detectron2's models have; the conversion itself is that of the others."""
    keras.utils.set_random_seed(3)
    model = MaskRCNN(with_model(tiny_config, roi_align={"sampling_ratio": 0}))
    inputs = [edge_input(load_image(pictures["jpeg"]), model.config, SIZE)]
    static, told = module._with_static_pooling(model, inputs)
    assert static.config.roi_align.sampling_ratio == 2
    for ours, theirs in zip(model.get_weights(), static.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert told["substituted"]["what"] == "roi_align.sampling_ratio 0 (adaptive) by 2"
    assert 0 <= told["substituted"]["effect"]["matched"] <= 1
    same, nothing = module._with_static_pooling(static, inputs)
    assert (same, nothing) == (static, {})


def test_fewer_regions(tiny_model):
    limited = module._limited(tiny_model, 7, 3)
    assert limited.config.rpn.post_nms_top_k_test == 7
    assert limited.config.box_head.max_detections == 3
    for ours, theirs in zip(tiny_model.get_weights(), limited.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert module._limited(tiny_model, None, 3).config.rpn == tiny_model.config.rpn


def test_a_call_of_mask_is_filled_where_there_are_fewer_rows():
    rows = np.arange(10)[:, None]
    assert module._mask_call(rows).ravel().tolist() == list(range(8))
    assert module._mask_call(rows[:3]).ravel().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.slow
def test_boxes_only(tiny_config, pictures, tmp_path):
    model = MaskRCNN(with_model(tiny_config, mask_head={"enabled": False}))
    folder = export_tflite(model, tmp_path / "boxes", image_size=(64, 128), calibration=[pictures["png"]])
    content = json.loads((folder / "model.json").read_text())
    assert sorted(content["signatures"]) == ["box", "detect", "full", "propose", "trunk"]
    assert content["paste"] is None
    found = Bundle(folder)(load_image(pictures["jpeg"]))
    assert found.mask_probs is None
    assert found.image_size == (300, 400)


def test_input_is_resized_to_fit(tiny_model):
    config = tiny_model.config
    for height, width in ((300, 400), (1, 1), (9, 700), (700, 9)):
        picture = edge_input(np.full((height, width, 3), 7, np.uint8), config, (64, 128))
        assert picture.image.shape == (1, 64, 128, 3)
        rows, columns = picture.image_size[0]
        assert 1 <= rows <= 64
        assert 1 <= columns <= 128
        assert (picture.image[0, :rows, :columns] == 7).all()
        assert picture.image.sum() == rows * columns * 3 * 7
