"""The written version: what is in it, that it computes what the model computes, and that nothing half-written is left."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import mrcnn_tf
from mrcnn_tf.data.images import load_image
from mrcnn_tf.export import saved_model as module
from mrcnn_tf.export.agreement import Agreement
from mrcnn_tf.export.folders import ExportError
from mrcnn_tf.export.saved_model import export_saved_model
from mrcnn_tf.predict import Predictor
from tests.export.pictures import assert_same
from tests.serving.c_session import CSession

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def session(exported):
    with CSession(exported) as session:
        yield session


@pytest.fixture(scope="module")
def predict(tiny_model):
    return Predictor(tiny_model)


def strings(values):
    return np.array(values, object)


def test_the_session_loader_finds_what_predict_finds(session, predict, pictures):
    """One batch of all kinds and sizes."""
    names = list(pictures)
    outputs = session.run_signature("full_masks", {"image_bytes": strings([pictures[name].read_bytes() for name in names])})
    assert set(outputs["image_errors"]) == {b""}
    for row, name in enumerate(names):
        assert_same(outputs, row, predict(load_image(pictures[name])))


def test_serving_default_has_no_full_masks(session, predict, pictures):
    outputs = session.run_signature("serving_default", {"image_bytes": strings([pictures["turned"].read_bytes()])})
    assert "detection_masks_rle_bytes" not in outputs
    assert_same(outputs, 0, predict(load_image(pictures["turned"])))


def test_image_takes_pixels(session, predict, pictures):
    images = np.stack([load_image(pictures["jpeg"]), load_image(pictures["grey"])])
    outputs = session.run_signature("image", {"images": images})
    assert "image_errors" not in outputs
    for row, image in enumerate(images):
        assert_same(outputs, row, predict(image))


def test_a_broken_picture_spoils_no_other(session, predict, pictures):
    good, turned = pictures["png"].read_bytes(), pictures["turned"].read_bytes()
    batch = [good, b"", turned[:2000], b"GIF89a", turned]
    outputs = session.run_signature("full_masks", {"image_bytes": strings(batch)})
    assert [error.decode() for error in outputs["image_errors"]] == [
        "",
        "no bytes; expected a JPEG or PNG picture",
        "broken or truncated JPEG",
        "neither a JPEG nor a PNG picture",
        "",
    ]
    assert outputs["num_detections"][1:4].tolist() == [0, 0, 0]
    assert outputs["image_size"][1:4].tolist() == [[0, 0]] * 3
    assert not outputs["detection_boxes"][1:4].any()
    assert_same(outputs, 0, predict(load_image(pictures["png"])))
    assert_same(outputs, 4, predict(load_image(pictures["turned"])))


def test_only_broken_pictures_and_none_at_all(session):
    outputs = session.run_signature("full_masks", {"image_bytes": strings([b"x", b"y"])})
    assert outputs["num_detections"].tolist() == [0, 0]
    outputs = session.run_signature("full_masks", {"image_bytes": np.zeros(0, object)})
    assert outputs["detection_masks"].shape == (0, 10, 28, 28)
    assert outputs["image_errors"].shape == (0,)


def test_signatures_are_those_of_the_contract(session):
    signatures = {name: signature for name, signature in session.signatures.items() if not name.startswith("__")}
    assert set(signatures) == {"serving_default", "image", "full_masks"}
    for name, signature in signatures.items():
        assert set(signature.inputs) == {"images" if name == "image" else "image_bytes"}
        # TensorFlow Serving merges and splits requests along the first axis.
        for info in signature.outputs.values():
            assert info.tensor_shape.dim[0].size == -1
            assert all(dim.size > 0 for dim in info.tensor_shape.dim[1:])
    common = {f"detection_{name}" for name in ("boxes", "classes", "scores", "masks", "class_names", "category_ids")}
    common |= {"num_detections", "image_size", "mask_paste"}
    assert set(signatures["image"].outputs) == common
    assert set(signatures["serving_default"].outputs) == common | {"image_errors"}
    assert set(signatures["full_masks"].outputs) == common | {"image_errors", "detection_masks_rle_bytes"}


def test_built_in_operations_only_and_no_path_of_this_machine(exported):
    content = saved_model_pb2.SavedModel()
    content.ParseFromString((exported / "saved_model.pb").read_bytes())
    graph = content.meta_graphs[0].graph_def
    functions = {function.signature.name for function in graph.library.function}
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    kinds = {node.op for node in nodes} - functions
    assert "NonMaxSuppressionV4" in kinds
    assert not {kind for kind in kinds if "PyFunc" in kind}
    # Registered in a TensorFlow that has loaded nothing else.
    code = "import sys, tensorflow as tf; sys.exit(' '.join(k for k in sys.argv[1:] if not hasattr(tf.raw_ops, k)) or 0)"
    done = subprocess.run([sys.executable, "-c", code, *sorted(kinds)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for path in exported.rglob("*"):
        if path.is_file():
            for root in (REPOSITORY, exported.parent, Path.home(), Path(sys.prefix)):
                assert f"{root}/".encode() not in path.read_bytes(), path


def test_loads_where_only_tensorflow_is(exported, pictures, predict):
    code = """
import json, sys
sys.modules["mrcnn_tf"] = sys.modules["keras"] = None
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
found = serve(image_bytes=tf.constant([open(sys.argv[2], "rb").read()]))
print(json.dumps(found["detection_scores"].numpy().tolist()))
"""
    arguments = [sys.executable, "-c", code, str(exported), str(pictures["jpeg"])]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    expected = predict(load_image(pictures["jpeg"])).scores
    np.testing.assert_allclose(json.loads(done.stdout)[0][: len(expected)], expected, atol=1e-6)


def test_description(exported, tiny_model):
    content = json.loads((exported / "assets" / "model.json").read_text())
    assert content["format"] == 1
    assert content["categories"] == [{"id": c.id, "name": c.name} for c in tiny_model.config.categories]
    assert (content["paste"], content["dtype_policy"], content["max_detections"]) == ("centred", "float32", 10)
    assert content["mrcnn_tf"] == mrcnn_tf.__version__
    assert content["compared"]["matched"] == 1
    assert content["compared"]["boxes"] <= 0.05


class Quick:
    """An exporter of nothing, for what happens around it."""

    def __init__(self, *_, **__):
        pass

    def signatures(self):
        return {"serving_default": None}


@pytest.fixture
def quick(monkeypatch):
    """Exports take no time, and hold one file."""

    def save(_, folder, **__):
        (Path(folder) / "saved_model.pb").write_bytes(b"graph")

    monkeypatch.setattr(module, "ServingGraph", Quick)
    monkeypatch.setattr(tf.saved_model, "save", save)
    monkeypatch.setattr(module, "compare", lambda *_: Agreement())


def test_versions_count_up_and_are_never_replaced(quick, tiny_model, tmp_path):
    assert export_saved_model(tiny_model, tmp_path) == tmp_path / "1"
    assert export_saved_model(tiny_model, tmp_path, version=12) == tmp_path / "12"
    assert export_saved_model(tiny_model, tmp_path) == tmp_path / "13"
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"old")
    with pytest.raises(ExportError, match=r"12 exists; versions there are 1, 12, 13, and none is replaced"):
        export_saved_model(tiny_model, tmp_path, version=12)
    with pytest.raises(ExportError, match="whole number from 1, got 0"):
        export_saved_model(tiny_model, tmp_path, version=0)
    assert (tmp_path / "1" / "saved_model.pb").read_bytes() == b"old"


def test_an_interrupted_export_leaves_nothing(quick, tiny_model, tmp_path, monkeypatch):
    export_saved_model(tiny_model, tmp_path)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    for step in ("compare", "_write_description", "write_warmup"):
        with monkeypatch.context() as patch:
            patch.setattr(module, step, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                export_saved_model(tiny_model, tmp_path)
        assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_what_a_killed_export_left_is_cleared_and_is_no_version(quick, tiny_model, tmp_path):
    (tmp_path / ".tmp-1").mkdir(parents=True)
    (tmp_path / ".tmp-1" / "half").write_bytes(b"written")
    assert export_saved_model(tiny_model, tmp_path) == tmp_path / "1"
    assert not (tmp_path / ".tmp-1").exists()
    assert not (tmp_path / "1" / "half").exists()


def test_an_export_that_computes_something_else_is_not_written(tiny_model, pictures, exported, tmp_path, monkeypatch):
    """Another model's predictor takes the place of the model's own."""
    with pytest.raises(ExportError, match="does not compute what the model computes"):
        module.compare(
            exported, Predictor(tiny_model, min_size=90, max_size=90), module.read_pictures([pictures["jpeg"]]), "float32"
        )
    monkeypatch.setattr(module, "BOX_TOLERANCE", -1)
    with pytest.raises(ExportError, match="does not compute"):
        export_saved_model(tiny_model, tmp_path, warmup=[pictures["png"]])
    assert list(tmp_path.iterdir()) == []


def test_bfloat16(tiny_model, pictures, tmp_path):
    folder = export_saved_model(tiny_model, tmp_path, precision="bfloat16", max_batch_size=1, warmup=[pictures["png"]])
    content = json.loads((folder / "assets" / "model.json").read_text())
    assert content["dtype_policy"] == "mixed_bfloat16"
    with CSession(folder) as session:
        outputs = session.run_signature("image", {"images": load_image(pictures["jpeg"])[None]})
    assert outputs["detection_scores"].dtype == np.float32
    expected = Predictor(tiny_model)(load_image(pictures["jpeg"]))
    np.testing.assert_allclose(outputs["detection_scores"][0, : len(expected)], expected.scores, atol=0.02)
    assert tiny_model.dtype_policy.name == "float32"
