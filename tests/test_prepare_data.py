"""`mrcnn-tf prepare-data`: which options go together, and what it says."""

import json

import pytest
from typer.testing import CliRunner

import mrcnn_tf.cli
from mrcnn_tf.cli import app
from mrcnn_tf.data.tfds_index import read_index
from mrcnn_tf.data.tfds_truth import truth_of
from mrcnn_tf.prepare_data import prepare_data
from tests.data.voc_files import write_voc, write_voc_tar


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(mrcnn_tf.cli, "silence_tensorflow", lambda: None)
    return lambda *arguments: CliRunner().invoke(app, ["prepare-data", *map(str, arguments)])


def options(shapes_dir, split="val"):
    return ["--images", shapes_dir / "images", "--annotations", shapes_dir / f"instances_{split}.json"]


def test_any_set_split_by_split(run, shapes_dir, tmp_path):
    done = run("coco", *options(shapes_dir, "train"), "--output", tmp_path / "out", "--workers", 1)
    assert done.exit_code == 0, done.output
    assert "train: 12 images in 1 shards, " in done.stdout
    done = run("coco", *options(shapes_dir), "--output", tmp_path / "out", "--split", "val", "--shards", 3, "--workers", 1)
    assert "val: 6 images in 3 shards, " in done.stdout
    again = run("coco", *options(shapes_dir), "--output", tmp_path / "out", "--split", "val", "--shards", 3, "--workers", 1)
    assert "; 3 shards were there already" in again.stdout


def test_voc_from_its_archive(run, tmp_path):
    write_voc(tmp_path / "unpacked")
    write_voc_tar(tmp_path / "VOCtrainval_11-May-2012.tar", tmp_path / "unpacked")
    done = run("voc2012", "--source", tmp_path, "--output", tmp_path / "out", "--workers", 1)
    assert done.exit_code == 0, done.output
    assert "train: 3 images in 1 shards" in done.stdout
    assert "val: 1 images in 1 shards" in done.stdout
    assert all("segmentation" in entry for entry in truth_of(str(tmp_path / "out"), "train")["annotations"])
    done = run("voc2012", "--source", tmp_path, "--output", tmp_path / "boxes", "--image-set", "Main", "--workers", 1)
    assert done.exit_code == 0, done.output
    assert not read_index(str(tmp_path / "boxes"), "val").masks


def test_faults_are_listed(run, tmp_path):
    root = write_voc(tmp_path)
    (root / "Annotations/2007_000001.xml").unlink()
    command = ("voc2012", "--source", tmp_path, "--output", tmp_path / "out", "--workers", 1)
    done = run(*command)
    assert done.exit_code == 1
    assert "error: missing file: image 2007_000001: " in done.stdout
    assert "errors: 1 (1 missing file)" in done.stdout
    assert "train: not finished; mend the data, or leave out what is faulty with --skip-bad" in done.stdout
    done = run(*command, "--skip-bad")
    assert done.exit_code == 0, done.output
    assert "train: 2 images in 1 shards" in done.stdout
    assert "left out 1 faulty records, see " in done.stdout
    assert json.loads((tmp_path / "out" / "skipped-train.json").read_text())[0]["record"] == "image 2007_000001"


def test_an_error_is_one_line(run, tmp_path):
    done = run("coco2017", "--source", tmp_path, "--output", tmp_path / "out")
    assert done.exit_code == 1
    assert "expected annotations/instances_train2017.json there, or annotations_trainval2017.zip" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("nonsense", {}, "the kind of a data set must be coco or coco2017 or lvis or voc2007 or voc2012, got 'nonsense'"),
        ("coco", {}, "coco needs --images and --annotations"),
        ("coco", {"images": "a", "annotations": "b", "splits": ("x", "y")}, "at most one --split"),
        ("coco", {"images": "a", "annotations": "b", "source": "c"}, "no --source"),
        ("lvis", {}, "lvis needs --source"),
        ("voc2012", {"source": "c", "images": "a"}, "neither --images nor --annotations"),
        ("coco2017", {"source": "c", "image_set": "Main"}, "--image-set is Segmentation or Main, and for VOC only"),
        ("voc2012", {"source": "c", "image_set": "Layout"}, "got 'Layout'"),
    ],
)
def test_options_that_do_not_go_together(kind, given, message, tmp_path):
    paths = {key: tmp_path / value if isinstance(value, str) and key != "image_set" else value for key, value in given.items()}
    with pytest.raises(ValueError, match=message):
        prepare_data(kind, str(tmp_path / "out"), **paths)


def test_no_folder(tmp_path):
    with pytest.raises(NotADirectoryError, match="no such folder"):
        prepare_data("lvis", str(tmp_path / "out"), source=tmp_path / "nothing")
