"""A whole run on faulty data: it stops with advice, or goes on without what is faulty, and is resumed with the same batches."""

import csv
import json
import shutil

import pytest

from mrcnn_tf import train as train_module
from mrcnn_tf.callbacks import FiniteLosses
from mrcnn_tf.config import ConfigError, load_config
from mrcnn_tf.data.coco import DataError
from mrcnn_tf.data.shapes import write_shapes
from mrcnn_tf.train import train

STEPS = 5


def faulty_data(folder):
    """Six training pictures, one of them broken, and four of validation, one missing; an unknown category in each file."""
    for split, count in (("train", 6), ("val", 4)):
        path = write_shapes(folder, num_images=count, seed=7, image_size=(128, 128), split=split)
        content = json.loads(path.read_text())
        content["annotations"][0]["category_id"] = 77
        path.write_text(json.dumps(content))
    shutil.copy(folder / "images" / "train_000004.png", folder / "sound.png")
    (folder / "images" / "train_000004.png").write_bytes(b"\x89PNG broken")
    (folder / "images" / "val_000002.png").unlink()


def config_of(tiny_config, folder, **data):
    """Without categories, as a user's configuration is."""
    model = tiny_config.model.model_copy(update={"categories": ()})
    train_section = tiny_config.train.model_copy(update={"num_steps": STEPS, "epoch_steps": 2, "eval_every": 2})
    section = tiny_config.data.model_copy(update={"root": str(folder), **data})
    return tiny_config.model_copy(update={"model": model, "train": train_section, "data": section})


class Killed(BaseException):
    """Leaves a run as SIGKILL does, without its closing words."""


@pytest.fixture(scope="module")
def runs(tiny_config, tmp_path_factory):
    """A run killed after its third step and resumed when its data had been mended: (config, output, batches of both)."""
    folder = tmp_path_factory.mktemp("faulty")
    faulty_data(folder)
    config, output = config_of(tiny_config, folder, skip_bad=True), folder / "run"
    batches = []

    class Trap(FiniteLosses):
        def __init__(self, folder, file_names, *arguments):
            super().__init__(folder, file_names, *arguments)
            batches.append([file_names(number) for number in range(2 * STEPS)])

        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if len(batches) == 1 and self.steps == 3:
                raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "FiniteLosses", Trap)
        with pytest.raises(Killed):
            train(config, output, progress=False)
        listed = (output / "skipped.json").read_text()
        shutil.copy(folder / "sound.png", folder / "images" / "train_000004.png")
        path = folder / "instances_train.json"
        path.write_text(path.read_text().replace('"category_id": 77', '"category_id": 1'))
        run = train(config, output, progress=False, resume=True)
    assert run.steps == STEPS
    return config, output, batches, listed


def test_the_run_goes_on_without_what_is_faulty_and_lists_it(runs):
    _, output, _, listed = runs
    skipped = json.loads(listed)
    assert [(item["kind"], item["section"]) for item in skipped["train"]] == [
        ("unknown category", "annotations"),
        ("broken image", "images"),
    ]
    assert sorted(item["kind"] for item in skipped["val"]) == ["missing image", "unknown category"]
    assert skipped["train"][1]["file_name"] == "train_000004.png"
    assert (output / "skipped.json").read_text() == listed
    assert load_config(output / "config.yaml").data.skip_bad is True


def test_it_is_evaluated_on_what_is_left(runs):
    with (runs[1] / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "5"]
    assert [bool(row["val_segm_AP"]) for row in rows] == [False, True, True]


def test_a_resumed_run_has_the_same_batches_though_the_data_was_mended(runs):
    first, second = runs[2]
    assert first == second
    assert {name for names in first for name in names} == {f"train_00000{number}.png" for number in (0, 1, 2, 3, 5)}


def test_the_same_run_begun_anew_uses_what_was_mended(runs):
    output = runs[1]
    again = load_config(output / "config.yaml")
    again = again.model_copy(update={"train": again.train.model_copy(update={"num_steps": 1, "eval_every": 0})})
    train(again, output.parent / "again", progress=False)
    assert json.loads((output.parent / "again" / "skipped.json").read_text()) == {"train": [], "val": []}


def test_a_list_that_is_gone_is_not_made_anew(runs, tmp_path):
    config, output, *_ = runs
    shutil.copytree(output, tmp_path / "run")
    (tmp_path / "run" / "skipped.json").unlink()
    with pytest.raises(ConfigError, match=r"skipped\.json cannot be read"):
        train(config, tmp_path / "run", progress=False, resume=True)


def test_without_the_flag_each_fault_stops_the_run_with_advice(tiny_config, tmp_path):
    faulty_data(tmp_path)
    config = config_of(tiny_config, tmp_path)
    advice = r"check-data` lists every fault; `mrcnn-tf train --skip-bad` goes on"

    def mend(split):
        path = tmp_path / f"instances_{split}.json"
        path.write_text(path.read_text().replace('"category_id": 77', '"category_id": 1'))

    with pytest.raises(DataError, match=rf"instances_train\.json: annotation \d+: unknown category_id 77.*{advice}"):
        train(config, tmp_path / "run", progress=False)
    mend("train")
    with pytest.raises(DataError, match=rf"instances_val\.json: annotation \d+: unknown category_id 77.*{advice}"):
        train(config, tmp_path / "run", progress=False)
    mend("val")
    with pytest.raises(DataError, match=rf"there is no file .*val_000002\.png.*{advice}"):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "config.yaml").exists()
    shutil.copy(tmp_path / "sound.png", tmp_path / "images" / "val_000002.png")
    with pytest.raises(DataError, match=rf"train_000004\.png.*{advice}"):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "skipped.json").exists()


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize(("text", "message"), [("{", "broken or truncated JSON"), ("{}", "'categories' is missing")])
def test_a_broken_file_stops_the_run_without_advice(tiny_config, tmp_path, skip_bad, text, message):
    (tmp_path / "images").mkdir()
    (tmp_path / "instances_train.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        train(config_of(tiny_config, tmp_path, skip_bad=skip_bad), tmp_path / "run", progress=False)
    assert "skip-bad" not in str(caught.value)


def test_nothing_left_to_train_on(tiny_config, tmp_path):
    faulty_data(tmp_path)
    for picture in (tmp_path / "images").iterdir():
        picture.unlink()
    with pytest.raises(DataError, match=r"nothing usable is left: all 6 images"):
        train(config_of(tiny_config, tmp_path, skip_bad=True), tmp_path / "run", progress=False)
