"""The command line, as a user meets it."""

from __future__ import annotations

import json

import keras
import pytest
from typer.testing import CliRunner

from mrcnn_tf import cli
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN


@pytest.fixture(autouse=True)
def _plain_stderr(monkeypatch):
    # The filter replaces file descriptor 2 for good, which a test must not do to the others.
    monkeypatch.setattr(cli, "silence_tensorflow", lambda: None)


@pytest.fixture(scope="module")
def model_path(tiny_config, tmp_path_factory):
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.keras"
    MaskRCNN(tiny_config).save(path)
    return path


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_help_lists_the_commands():
    text = call("--help").output
    assert all(command in text for command in ("train", "evaluate", "predict", "shapes", "configs", "demo"))


def test_shapes_and_configs(tmp_path):
    assert call("shapes", "--output", tmp_path, "--num-images", 3, "--split", "val", "--size", 128).exit_code == 0
    assert len(json.loads((tmp_path / "instances_val.json").read_text())["images"]) == 3
    assert "shapes_effnet_lite0" in call("configs").output.split()
    assert "frozen_stages" in call("configs", "shapes_effnet_lite0").output


def test_evaluate(model_path, shapes_dir, tmp_path):
    result = call(
        "evaluate", model_path, "--images", shapes_dir / "images", "--annotations", shapes_dir / "instances_val.json",
        "--output", tmp_path, "--max-detections", 5,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {"bbox", "segm", "classes"}
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "per_class"} <= set(metrics["segm"])
    assert set(metrics["segm"]["per_class"]) == {"circle", "rectangle", "triangle", "star"}
    assert isinstance(json.loads((tmp_path / "detections.json").read_text()), list)
    assert "segm: AP" in result.output


def test_evaluate_can_measure_more(model_path, shapes_dir, tmp_path):
    result = call(
        "evaluate", model_path, "--images", shapes_dir / "images", "--annotations", shapes_dir / "instances_val.json",
        "--output", tmp_path, "--boundary", "--voc", "--errors", "--per-class",
        "--tta-scale", 96, "--tta-scale", 128, "--tta-flip",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {"bbox", "segm", "boundary", "classes", "voc", "errors"}
    for text in ("boundary: AP", "voc segm: AP50", "AP50 lost, bbox: classification", "triangle"):
        assert text in result.output
    assert (tmp_path / "errors.png").is_file()


def test_predict_may_look_several_times(model_path, shapes_dir, tmp_path):
    result = call(
        "predict", model_path, shapes_dir / "images" / "val_000000.png",
        "--output", tmp_path, "--tta-flip", "--score-threshold", 0,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "detections.json").read_text())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "cocoeval"), "pycocotools, faster-coco-eval, hotcoco, got 'cocoeval'"),
        (("--backend", "hotcoco", "--boundary"), "does not compare boundaries"),
        (("--tta-scale", 96, "--min-size", 96), "--min-size or --tta-scale"),
        (("--tta-scale", 96, "--tta-scale", 96), "[96, 96]"),
    ],
)
def test_evaluate_refuses_what_it_cannot_do(model_path, tmp_path, options, message):
    result = call(
        "evaluate", model_path, "--images", tmp_path, "--annotations", tmp_path / "x.json", "--output", tmp_path, *options
    )
    assert result.exit_code == 1
    assert message in result.output


def test_predict_reports_a_broken_picture_and_goes_on(model_path, shapes_dir, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    result = call(
        "predict",
        model_path,
        shapes_dir / "images" / "val_00000[0-1].png",
        broken,
        "--output",
        tmp_path / "out",
        "--score-threshold",
        0,
    )
    assert result.exit_code == 1
    assert "broken.png" in result.output
    assert {"val_000000.png", "val_000001.png", "detections.json"} == {path.name for path in (tmp_path / "out").iterdir()}
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {record["file_name"] for record in records} <= {str(p) for p in ("val_000000.png", "val_000001.png")} | {
        record["file_name"] for record in records if "val_00000" in record["file_name"]
    }
    for record in records:
        assert set(record) == {"file_name", "category_id", "category_name", "bbox", "score", "segmentation"}
        assert record["segmentation"]["size"] == [128, 128]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "shapes_effnet_lite", "--output", "x"), "Did you mean shapes_effnet_lite0"),
        (("train", "shapes_effnet_lite0", "train.batchsize=3", "--output", "x"), "did you mean train.batch_size"),
        (("train", "shapes_effnet_lite0", "data.image_size=[100, 100]", "--output", "x"), "multiples of 64"),
        (("train", "shapes_effnet_lite0", "data.root=nowhere", "--output", "x"), "instances_train.json"),
        (("predict", "no.keras", "picture.png", "--output", "x"), "no model at no.keras"),
        (("predict", "no.keras", "nothing*.png", "--output", "x"), "nothing*.png"),
    ],
)  # fmt: skip
def test_mistakes_are_one_message(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "x" / "metrics.csv").exists()


def test_train(shapes_dir, tmp_path, tiny_config):
    (tmp_path / "tiny.yaml").write_text(tiny_config.to_yaml())
    result = call("train", tmp_path / "tiny.yaml", "train.num_steps=2", "train.eval_every=0", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "last.keras").is_file()
    assert "2 steps" in result.output


def test_train_skip_bad(shapes_dir, tmp_path, tiny_config):
    content = json.loads((shapes_dir / "instances_train.json").read_text())
    content["annotations"][0]["bbox"] = [900, 0, 5, 5]
    (tmp_path / "faulty.json").write_text(json.dumps(content))
    (tmp_path / "tiny.yaml").write_text(tiny_config.to_yaml())
    arguments = [f"data.train.annotations={tmp_path / 'faulty.json'}", "train.num_steps=1", "train.eval_every=0"]
    refused = call("train", tmp_path / "tiny.yaml", *arguments, "--output", tmp_path / "run")
    assert refused.exit_code == 1
    assert "outside image" in refused.output
    assert "train --skip-bad" in refused.output
    result = call("train", tmp_path / "tiny.yaml", *arguments, "--output", tmp_path / "run", "--skip-bad")
    assert result.exit_code == 0, result.output
    skipped = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert [item["kind"] for item in skipped["train"]] == ["box outside"]
    assert "skip_bad: true" in (tmp_path / "run" / "config.yaml").read_text()
