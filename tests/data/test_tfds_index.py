"""The index of a split: written, read, and what a run makes of it."""

import json

import numpy as np
import pytest

from mrcnn_tf.data.coco import DataError, read_annotations
from mrcnn_tf.data.tfds_index import (
    ShardIndex,
    SplitIndex,
    index_of,
    index_path,
    prepared_categories,
    read_index,
    select,
    write_index,
    write_text,
)


def shard(**columns):
    numbers = columns.pop("num_targets")
    full = {"fingerprint": "a", "num_bytes": 1, "skipped": [], "num_solid": numbers, "num_objects": numbers} | columns
    of_images = {key: list(range(len(numbers))) for key in ("image_id", "height", "width")}
    return ShardIndex(**of_images, file_name=[f"{n}.png" for n in range(len(numbers))], num_targets=numbers, **full)


def test_it_is_read_back(tmp_path, shapes_dir):
    found = read_annotations(shapes_dir / "instances_val.json")
    index = SplitIndex(True, (index_of(found, "print", 7, []), index_of(found, "print", 8, [{"kind": "x"}])))
    write_index(index, str(tmp_path), "val")
    assert read_index(str(tmp_path), "val") == index
    assert index.shards[0].num_targets == [len(record.objects) for record in found.records]
    assert len(index.shards[0]) == 6


def test_selection(tmp_path):
    index = SplitIndex(True, (shard(num_targets=[2, 0], num_solid=[3, 1], num_objects=[4, 1]), shard(num_targets=[])))
    some = select(index, tmp_path, max_ground_truth=2, keep_empty=False)
    assert [flags.tolist() for flags in some.kept] == [[True, False], []]
    assert some.num_rows == 2
    report = some.report
    assert (report.num_images, report.num_objects, report.empty_images) == (1, 2, ("1.png",))
    assert (report.flat_objects, report.cut_images) == ({"0.png": 1}, {"0.png": 1})
    everything = select(index, tmp_path, max_ground_truth=9, keep_empty=True)
    assert (everything.num_rows, everything.report.num_images, everything.report.num_objects) == (3, 2, 4)


@pytest.mark.parametrize("shards", [(shard(num_targets=[]),), (shard(num_targets=[0]),)])
def test_nothing_to_select(tmp_path, shards):
    found = select(SplitIndex(False, shards), tmp_path, max_ground_truth=9, keep_empty=False)
    assert (found.num_rows, found.report.num_images) == (1, 0)
    assert not any(np.any(flags) for flags in found.kept)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"masks": true, "shards": [{}]}'])
def test_a_broken_index(tmp_path, text):
    write_text(text, index_path(str(tmp_path), "val"))
    with pytest.raises(DataError, match=r"index-val\.json: no index of a prepared split"):
        read_index(str(tmp_path), "val")


def test_categories(prepared_dir, tmp_path):
    assert [category["id"] for category in prepared_categories(str(prepared_dir))] == [1, 2, 3, 4]
    for text in (None, "{}", json.dumps({"categories": [{"id": 1}]})):
        if text is not None:
            (tmp_path / "metadata.json").write_text(text)
        with pytest.raises(DataError, match=r"metadata\.json: no categories of a data set that `mrcnn-tf prepare-data`"):
            prepared_categories(str(tmp_path))


def test_a_file_replaces_the_one_before(tmp_path):
    for text in ("one", "two"):
        write_text(text, str(tmp_path / "a.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "two"
