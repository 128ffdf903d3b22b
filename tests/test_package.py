"""The package as a whole: a quick and quiet import, lazy names, and who may import whom."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mrcnn_tf

PACKAGE = Path(mrcnn_tf.__file__).parent
HEAVY = ("tensorflow", "keras", "matplotlib", "pycocotools", "PIL", "numpy")
BACKBONES = {"backbones", "resnet", "efficientnet_lite"}
"""One stage in three files: the choice and the two families."""
LAYERS = {"mrcnn_tf.modeling.layers", "mrcnn_tf.modeling.norms"}
WIRING = {"mask_rcnn", "trainer", "freezing", "executions", "gradients"}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_import_loads_nothing_heavy_and_prints_nothing():
    done = run(f"import sys, mrcnn_tf; sys.exit(' '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_reading_a_configuration_loads_no_tensorflow():
    done = run("import sys, mrcnn_tf; mrcnn_tf.load_config(mrcnn_tf.shipped_configs()[0]); sys.exit('tensorflow' in sys.modules)")
    assert (done.returncode, done.stderr) == (0, "")


def test_import_asks_for_keras_on_tensorflow():
    done = run("import os; os.environ.pop('KERAS_BACKEND', None); import mrcnn_tf; print(os.environ['KERAS_BACKEND'])")
    assert done.stdout == "tensorflow\n"


@pytest.mark.parametrize("name", mrcnn_tf.__all__)
def test_public_names_exist(name):
    assert getattr(mrcnn_tf, name) is not None
    assert name in dir(mrcnn_tf)


@pytest.mark.parametrize("name", ["data", "ops", "modeling", "train", "evaluate", "predict"])
def test_submodules_come_when_asked_for(name):
    assert getattr(mrcnn_tf, name) is importlib.import_module(f"mrcnn_tf.{name}")


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = mrcnn_tf.Nonsense


def imports_of(path):
    """Modules that a file imports anywhere in it, but for those only a type checker sees."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from mrcnn_tf.ops import boxes` names a module, `from mrcnn_tf.ops.boxes import clip` a function of one
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder):
    found = sorted((PACKAGE / folder).rglob("*.py"))
    assert found
    return [pytest.param(path, id=str(path.relative_to(PACKAGE))) for path in found]


def assert_only(path, *allowed):
    """Of third parties and of this package, only what starts with one of the given names (whole parts of the dotted name)."""
    for module in imports_of(path):
        top = module.split(".")[0]
        fine = top in sys.stdlib_module_names or any(f"{module}.".startswith(f"{name}.") for name in allowed)
        assert fine, f"{path.relative_to(PACKAGE)} must not import {module}"


@pytest.mark.parametrize("path", files("ops"))
def test_ops_know_tensorflow_and_numpy_only(path):
    assert_only(path, "tensorflow", "numpy", "mrcnn_tf.ops")


@pytest.mark.parametrize("path", files("data"))
def test_data_knows_neither_keras_nor_the_model(path):
    third_parties = ("tensorflow", "numpy", "PIL", "pycocotools", "rich", "tensorflow_datasets", "defusedxml")
    assert_only(path, *third_parties, "mrcnn_tf.ops", "mrcnn_tf.config", "mrcnn_tf.data", "mrcnn_tf.files")


@pytest.mark.parametrize("path", files("metrics"))
def test_metrics_know_neither_tensorflow_nor_the_model(path):
    third_parties = ("numpy", "pycocotools", "faster_coco_eval", "hotcoco")
    assert_only(path, *third_parties, "mrcnn_tf.metrics", "mrcnn_tf.paste")


@pytest.mark.parametrize("path", [p for p in files("modeling") if p.values[0].stem not in {*WIRING, "__init__"}])
def test_stages_know_ops_and_layers_only(path):
    of_the_stage = {f"mrcnn_tf.modeling.{name}" for name in BACKBONES} if path.stem in BACKBONES else set()
    assert_only(path, "tensorflow", "keras", "numpy", "mrcnn_tf.ops", *LAYERS, *of_the_stage)


@pytest.mark.parametrize("path", [p for p in files("modeling") if p.values[0].stem in WIRING])
def test_wiring_knows_the_stages_and_the_configuration(path):
    assert_only(path, "tensorflow", "keras", "numpy", "mrcnn_tf.ops", "mrcnn_tf.modeling", "mrcnn_tf.config", "mrcnn_tf.weights")


@pytest.mark.parametrize("path", files("."))
def test_only_the_command_line_knows_the_exporters(path):
    if path.stem != "cli":
        assert not [module for module in imports_of(path) if module.startswith("mrcnn_tf.export")]


@pytest.mark.parametrize("name", ["evaluate", "predict", "tta", "detections", "visualize", "paste"])
def test_evaluation_and_prediction_take_any_detector(name):
    """They stand above the model without knowing it, so that other runtimes plug in."""
    assert not [module for module in imports_of(PACKAGE / f"{name}.py") if module.startswith("mrcnn_tf.modeling")]


def test_layering_test_sees_a_forbidden_import(tmp_path):
    path = tmp_path / "stage.py"
    path.write_text("def f():\n    from mrcnn_tf.config import Config\n    import keras.layers\n", encoding="utf-8")
    assert list(imports_of(path)) == ["mrcnn_tf.config.Config", "keras.layers"]
