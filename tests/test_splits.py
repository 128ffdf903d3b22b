"""The data of a run with and without `data.skip_bad`, and the list that a resumed run uses."""

import json
import logging
import sys

import pytest

from mrcnn_tf.config import ConfigError
from mrcnn_tf.data.coco import DataError
from mrcnn_tf.data.shapes import write_shapes
from mrcnn_tf.splits import SKIPPED, prepared_split, read_skipped, training_split, validation_split, write_skipped


@pytest.fixture
def config(tiny_config, tmp_path):
    """Four pictures a split, of which validation lacks one, and an annotation of an unknown category in each."""
    for split in ("train", "val"):
        path = write_shapes(tmp_path, num_images=4, seed=5, image_size=(128, 128), split=split)
        content = json.loads(path.read_text())
        content["annotations"][0]["category_id"] = 77
        path.write_text(json.dumps(content))
    (tmp_path / "images" / "val_000003.png").unlink()
    return tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update={"root": str(tmp_path), "skip_bad": True})})


def changed(config, section, **changes):
    return config.model_copy(update={section: getattr(config, section).model_copy(update=changes)})


def rewrite(config, split, change):
    path = config.data.path(split, "annotations")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_faulty_records_are_left_out_counted_and_named(config, caplog, capsys):
    with caplog.at_level(logging.WARNING, "mrcnn_tf.data"):
        train, val = training_split(config), validation_split(config)
    assert [item.kind for item in train.skipped] == ["unknown category"]
    assert sorted(item.kind for item in val.skipped) == ["missing image", "unknown category"]
    assert (len(train.content["images"]), len(val.content["images"])) == (4, 3)
    first = train.skipped[0].id
    assert first not in [entry["id"] for entry in train.content["annotations"]]
    assert f"(1 unknown category): annotation {first}" in caplog.text
    assert "left out 1 of 4 images (1 missing image): image " in caplog.text
    assert capsys.readouterr().err == ""


def test_reading_shows_a_bar_where_it_is_asked_for(config, capsys):
    training_split(config, progress=True)
    assert "reading images" in capsys.readouterr().err


def test_without_skip_bad_nothing_is_left_out_and_validation_is_looked_at(config):
    config = changed(config, "data", skip_bad=False)
    assert len(training_split(config).content["images"]) == 4
    with pytest.raises(DataError, match=r"instances_val\.json: annotation \d+: unknown category_id 77"):
        validation_split(config)
    rewrite(config, "val", lambda content: content["annotations"].pop(0))
    with pytest.raises(DataError, match=r"image \d+: there is no file .*val_000003\.png"):
        validation_split(config)


def test_no_validation_data_is_no_fault(config):
    assert validation_split(changed(config, "train", eval_every=0)) is None
    assert validation_split(changed(config, "data", val=type(config.data.val)())) is None


def test_a_category_that_the_model_lacks_is_left_out_of_validation(config):
    rewrite(config, "val", lambda content: content["categories"].append({"id": 77, "name": "cow"}))
    val = validation_split(config)
    assert 77 not in [category["id"] for category in val.content["categories"]]
    assert 77 not in [entry["category_id"] for entry in val.content["annotations"]]
    assert ("categories", 77) in [(item.section, item.id) for item in val.skipped]


def test_the_list_is_written_and_used_instead_of_reading_again(config, tmp_path):
    splits = {"train": training_split(config), "val": validation_split(config)}
    write_skipped({name: split.skipped for name, split in splits.items()}, tmp_path)
    written = json.loads((tmp_path / SKIPPED).read_text())
    assert set(written["val"][0]) == {"kind", "record", "message", "file_name", "section", "position", "id"}
    rewrite(config, "train", lambda content: content["annotations"][0].update(category_id=1))
    (tmp_path / "images" / "train_000001.png").unlink()
    listed = read_skipped(tmp_path)
    assert training_split(config, listed) == splits["train"]
    assert validation_split(config, listed) == splits["val"]


def test_an_empty_list(config, tmp_path):
    write_skipped({"train": (), "val": ()}, tmp_path)
    assert read_skipped(tmp_path) == {"train": (), "val": ()}
    assert len(training_split(config, read_skipped(tmp_path)).content["annotations"]) == len(
        json.loads(config.data.path("train", "annotations").read_text())["annotations"]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"skipped\.json cannot be read \(No such file.*resumed with the list it began with"),
        ("{", r"skipped\.json is not a list that a run has written: .*JSON"),
        ('{"train": [{"kind": "x"}]}', r"skipped\.json is not a list that a run has written: train\.0\.record: Field required"),
    ],
)
def test_a_list_that_is_lost(tmp_path, text, message):
    if text is not None:
        (tmp_path / SKIPPED).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_skipped(tmp_path)


def on_prepared(config, folder, **changes):
    split = {"train": type(config.data.train)(tfds=str(folder)), "val": type(config.data.val)(tfds=str(folder))}
    return changed(config, "data", **split, **changes)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_validation_on_prepared_data(config, prepared_dir, shapes_dir, skip_bad):
    config = on_prepared(config, prepared_dir, skip_bad=skip_bad)
    val = validation_split(config)
    assert len(val.content["images"]) == 6
    assert val.skipped == ()
    name = val.content["images"][0]["file_name"]
    assert (val.images / name).open("rb").read() == (shapes_dir / "images" / name).read_bytes()
    assert validation_split(changed(config, "train", eval_every=0)) is None


def test_prepared_data_with_a_category_that_the_model_lacks(config, prepared_dir):
    config = on_prepared(config, prepared_dir, skip_bad=False).with_categories([{"id": 1, "name": "circle"}])
    with pytest.raises(DataError, match=r"val: category 2: the model does not know it"):
        validation_split(config)
    val = validation_split(changed(config, "data", skip_bad=True))
    assert [category["id"] for category in val.content["categories"]] == [1]
    assert len(val.skipped) == 3


def test_prepared_data_that_is_not_there(config, tmp_path):
    with pytest.raises(DataError, match=r"index-val\.json: there is no such file"):
        validation_split(on_prepared(config, tmp_path))


def test_tensorflow_datasets_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mrcnn-tf\[tfds\]'"):
        prepared_split(str(tmp_path), "val")
