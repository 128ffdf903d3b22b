"""A whole run on prepared data: it trains, is evaluated, killed and resumed as on JSON data."""

import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import mrcnn_tf.cli
from mrcnn_tf import train as train_module
from mrcnn_tf.callbacks import FiniteLosses
from mrcnn_tf.cli import app
from mrcnn_tf.data.coco import DataError, load_coco
from mrcnn_tf.data.masks import bitmap_to_rle, decode_rle, segmentation_to_rle
from mrcnn_tf.data.tfds_batches import tfds_batches
from mrcnn_tf.data.tfds_truth import truth_of
from mrcnn_tf.evaluate import coco_metrics
from mrcnn_tf.modeling.mask_rcnn import load_model
from mrcnn_tf.run_data import data_errors
from mrcnn_tf.train import train

SIZE = (128, 128)
STEPS = 7
"""A pass over the data is six."""


class Killed(BaseException):
    """Leaves a run as SIGKILL does, without its closing words."""


@pytest.fixture(scope="module")
def config(tiny_config, prepared_dir):
    """Without categories, as a user's configuration is."""
    split = type(tiny_config.data.train)
    return tiny_config.model_copy(
        update={
            "model": tiny_config.model.model_copy(update={"categories": ()}),
            "data": tiny_config.data.model_copy(
                update={
                    "root": str(prepared_dir.parent),
                    "train": split(tfds=prepared_dir.name),
                    "val": split(tfds=str(prepared_dir)),
                }
            ),
            "train": tiny_config.train.model_copy(update={"num_steps": STEPS, "epoch_steps": 3, "eval_every": 2}),
        }
    )


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    return train(config, tmp_path_factory.mktemp("prepared_run") / "run", progress=False)


def test_categories_come_with_the_data(unbroken):
    assert [category.name for category in unbroken.model.config.categories] == ["circle", "rectangle", "triangle", "star"]


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(config, unbroken, tmp_path, monkeypatch):
    class Trap(FiniteLosses):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self.steps == 5:
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "FiniteLosses", Trap)
        with pytest.raises(Killed):
            train(config, tmp_path / "run", progress=False)
    assert train(config, tmp_path / "run", progress=False, resume=True).steps == STEPS
    for ours, theirs in zip(
        *(load_model(run / "last.keras").weights for run in (tmp_path / "run", unbroken.output)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_damaged_shard_ends_the_run_with_a_message(config, prepared_dir, tmp_path):
    """One as long as it was, with another byte in the middle."""
    shutil.copytree(prepared_dir, tmp_path / "data")
    path = tmp_path / "data" / "shapes-train.tfrecord-00001-of-00005"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    batches = tfds_batches(str(tmp_path / "data"), "train", config).endless().take(6)
    with pytest.raises(DataError, match=r"a shard of data\.train\.tfds is damaged \(.*corrupted record at"), data_errors(False):
        list(batches)


def test_evaluation_gives_the_figures_of_the_files(unbroken, prepared_dir, shapes_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(mrcnn_tf.cli, "silence_tensorflow", lambda: None)
    sources = {
        "prepared": ["--tfds", prepared_dir],
        "files": ["--images", shapes_dir / "images", "--annotations", shapes_dir / "instances_val.json"],
    }
    for name, source in sources.items():
        command = ["evaluate", unbroken.output / "last.keras", "--output", tmp_path / name, "--score-threshold", 0, *source]
        done = CliRunner().invoke(app, [str(argument) for argument in command])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "prepared" / "metrics.json").read_text() == (tmp_path / "files" / "metrics.json").read_text()
    done = CliRunner().invoke(app, ["evaluate", "model.keras", "--output", "out", "--tfds", "here", "--images", "there"])
    assert "give --images and --annotations, or --tfds, not both" in done.output


def test_figures_are_equal_where_there_is_something_to_measure(prepared_dir, shapes_dir):
    """Of results that are the truth, moved a little."""
    files = load_coco(shapes_dir / "instances_val.json")
    random = np.random.default_rng(0)
    masks = {entry["id"]: decode_rle(segmentation_to_rle(entry["segmentation"], SIZE), SIZE) for entry in files["annotations"]}
    results = [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": (np.array(entry["bbox"]) + random.uniform(0, 4, 4)).tolist(),
            "segmentation": bitmap_to_rle(np.roll(masks[entry["id"]], random.integers(4, size=2), (0, 1))),
            "score": random.random(),
        }
        for entry in files["annotations"]
    ]
    for kind in ("bbox", "segm"):
        figures = coco_metrics(files, results, kind)
        assert 0 < figures["AP"] < 1
        assert coco_metrics(truth_of(str(prepared_dir), "val"), results, kind) == figures
