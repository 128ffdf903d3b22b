"""Whole runs on a few drawn shapes: what is left behind, and what stops a run."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest

import mrcnn_tf
from mrcnn_tf.config import ConfigError, load_config
from mrcnn_tf.data.coco import DataError
from mrcnn_tf.modeling.mask_rcnn import load_model
from mrcnn_tf.train import build_model, train


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    return train(tiny_config, tmp_path_factory.mktemp("runs") / "run", progress=False)


def rows(run):
    with (run.output / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_files(run, tiny_config):
    assert run.steps == tiny_config.train.num_steps
    assert {path.name for path in run.output.iterdir()} >= {
        "config.yaml",
        "metrics.csv",
        "last.keras",
        "best.keras",
        "tensorboard",
    }
    assert load_config(run.output / "config.yaml") == tiny_config
    found = rows(run)
    assert [int(row["step"]) for row in found] == [2, 4]
    assert all(float(row["mask_loss"]) > 0 for row in found)
    assert 0 <= float(found[-1]["val_segm_AP"]) <= 1
    assert float(found[0]["learning_rate"]) > float(found[1]["learning_rate"])
    assert list((run.output / "tensorboard").rglob("*tfevents*"))


def test_last_is_the_model_in_memory(run):
    loaded = load_model(run.output / "last.keras")
    for first, second in zip(run.model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(first), keras.ops.convert_to_numpy(second))


def test_a_folder_with_a_run_is_not_overwritten(run, tiny_config):
    with pytest.raises(ConfigError, match="already holds a run"):
        train(tiny_config, run.output)


def changed(config, **train_section):
    return config.model_copy(update={"train": config.train.model_copy(update=train_section)})


def test_an_odd_number_of_steps_and_a_time_limit_end_the_run(tiny_config, tmp_path):
    assert train(changed(tiny_config, num_steps=3, eval_every=0), tmp_path / "odd", progress=False).steps == 3
    assert (
        train(changed(tiny_config, num_steps=50, max_minutes=1e-6, eval_every=0), tmp_path / "short", progress=False).steps == 1
    )


def test_progress_tells_losses_and_ap(tiny_config, tmp_path, capsys):
    train(changed(tiny_config, num_steps=2, epoch_steps=1), tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("step 1/2") and "rpn_box" in line and "lr " in line for line in lines)
    assert [line.split(":")[0] for line in lines if "segm_AP" in line] == ["step 1", "step 2"]


def test_box_only_data_trains_faster_rcnn_and_says_so(tiny_config, shapes_dir, tmp_path, capsys):
    content = json.loads((shapes_dir / "instances_train.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    data = tiny_config.data.model_copy(
        update={"train": tiny_config.data.train.model_copy(update={"annotations": str(tmp_path / "boxes.json")})}
    )
    run = train(changed(tiny_config, num_steps=2).model_copy(update={"data": data}), tmp_path / "run", progress=False)
    assert "no masks" in capsys.readouterr().err
    assert run.model.mask_head is None
    assert "mask_loss" not in rows(run)[0]
    assert load_config(run.output / "config.yaml").model.mask_head.enabled is False


def test_a_broken_picture_stops_with_its_name(tiny_config, tmp_path):
    from mrcnn_tf.data.shapes import write_shapes

    write_shapes(tmp_path, num_images=4, seed=3, image_size=(128, 128))
    (tmp_path / "images" / "train_000002.png").write_bytes(b"\x89PNG broken")
    data = tiny_config.data.model_copy(update={"root": str(tmp_path), "val": type(tiny_config.data.val)()})
    with pytest.raises(DataError, match=r"image 3: .*train_000002\.png"):
        train(tiny_config.model_copy(update={"data": data}), tmp_path / "run", progress=False)


def test_the_script_of_the_documents(shapes_dir, tmp_path):
    """The first block of docs/training.md, run as it stands on a copy of the data."""
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    script = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in script.splitlines() if line]) <= 12
    (tmp_path / "shapes").symlink_to(shapes_dir)
    (tmp_path / "script.py").write_text(script + "\nprint(len(found), type(model).__name__)\n")
    finished = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.split()[-1] == "MaskRCNN"


def test_the_seed_gives_the_same_weights_in_every_process(tiny_config, tmp_path):
    (tmp_path / "config.yaml").write_text(tiny_config.to_yaml())
    code = (
        "import sys, zlib, numpy as np; from mrcnn_tf.config import load_config; from mrcnn_tf.train import build_model; "
        "model = build_model(load_config(sys.argv[1])); "
        "print(zlib.crc32(b''.join(np.asarray(w).tobytes() for w in model.weights)))"
    )
    model = build_model(tiny_config)
    expected = zlib.crc32(b"".join(np.asarray(w).tobytes() for w in model.weights))
    command = [sys.executable, "-c", code, str(tmp_path / "config.yaml")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert int(finished.stdout.split()[-1]) == expected


def test_a_file_loads_in_a_fresh_process(run):
    code = "import sys, mrcnn_tf; assert 'keras' not in sys.modules; import keras; " + (
        f"print(type(keras.saving.load_model({str(run.output / 'last.keras')!r})).__name__)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.split()[-1] == mrcnn_tf.MaskRCNN.__name__
