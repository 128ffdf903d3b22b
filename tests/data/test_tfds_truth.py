"""Prepared data to evaluate on: what the JSON says, and the pictures that the files hold."""

import json

import numpy as np
import pytest

from mrcnn_tf.data.coco import DataError, load_coco
from mrcnn_tf.data.images import load_image
from mrcnn_tf.data.masks import segmentation_to_rle
from mrcnn_tf.data.prepare import prepare_split
from mrcnn_tf.data.sources import Source, voc_source
from mrcnn_tf.data.tfds_truth import PreparedImages, truth_of
from tests.data.voc_files import write_voc


def by_id(records):
    return {record["id"]: record for record in records}


def test_the_truth_is_that_of_the_file(prepared_dir, shapes_dir):
    content, truth = load_coco(shapes_dir / "instances_val.json"), truth_of(str(prepared_dir), "val")
    assert by_id(truth["images"]) == by_id(content["images"])
    assert truth["categories"] == content["categories"]
    assert by_id(truth["annotations"]) == {key: {**entry, "difficult": 0} for key, entry in by_id(content["annotations"]).items()}


def test_odd_entries_come_back(tmp_path, shapes_dir):
    """Crowd regions of uncompressed run lengths, areas that are missing, boxes beyond the image, floats of many digits."""
    content = load_coco(shapes_dir / "instances_val.json")
    crowd = {"size": [128, 128], "counts": [128 * 64, 128 * 64]}
    content["annotations"] = [
        {"id": 5, "image_id": 1, "category_id": 2, "bbox": [64, 0, 64, 128], "iscrowd": 1, "segmentation": crowd},
        {"id": 7, "image_id": 1, "category_id": 1, "bbox": [-0.5, 0.1, 1 / 3, 5e-3], "segmentation": [[0, 0, 1 / 7, 1, 2, 3]]},
        {"id": 6, "image_id": 2, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 1e-7, "iscrowd": 1},
    ]
    content["annotations"][1]["bbox"] = [-0.5, 0.1, 100 / 3, 50.005]
    content["annotations"][1]["segmentation"] = [[0, 0.1, 100 / 3, 50, 2, 30.3]]
    source = Source(content, tmp_path / "made.json", shapes_dir / "images")
    done = prepare_split(source, str(tmp_path / "out"), "val", name="made", num_workers=1)
    assert [fault.kind for fault in done.faults] == []
    found = by_id(truth_of(str(tmp_path / "out"), "val")["annotations"])
    assert found[5]["segmentation"] == segmentation_to_rle(crowd, (128, 128))
    assert (found[5]["iscrowd"], found[5]["area"]) == (1, 64 * 128)
    assert found[7]["bbox"] == [-0.5, 0.1, 100 / 3, 50.005]
    assert found[7]["area"] == 100 / 3 * 50.005
    assert found[7]["segmentation"] == content["annotations"][1]["segmentation"]
    assert "segmentation" not in found[6]
    assert found[6]["area"] == 1e-7


def test_voc_keeps_what_is_difficult(tmp_path):
    write_voc(tmp_path)
    source = voc_source(tmp_path, "train", year="2012")
    prepare_split(source, str(tmp_path / "out"), "train", name="voc", num_workers=1)
    truth = truth_of(str(tmp_path / "out"), "train")
    assert by_id(truth["annotations"]) == by_id(source.content["annotations"])
    assert sum(entry["difficult"] for entry in truth["annotations"]) == 1
    assert len(truth["categories"]) == 20


@pytest.mark.parametrize("step", [1, -1])
def test_pictures_in_any_order(prepared_dir, shapes_dir, step):
    images = PreparedImages(str(prepared_dir), "val")
    assert images.is_dir()
    for image in truth_of(str(prepared_dir), "val")["images"][::step]:
        file = images / image["file_name"]
        assert file.is_file()
        np.testing.assert_array_equal(load_image(file), load_image(shapes_dir / "images" / image["file_name"]))
        np.testing.assert_array_equal(load_image(file), load_image(file))


def test_a_picture_that_is_not_there(prepared_dir):
    file = PreparedImages(str(prepared_dir), "val") / "nothing.png"
    assert not file.is_file()
    with pytest.raises(FileNotFoundError, match=r"val/nothing\.png"):
        file.open("rb")


def test_a_split_that_is_not_there(prepared_dir):
    with pytest.raises(DataError, match=r"index-test\.json: there is no such file"):
        truth_of(str(prepared_dir), "test")
    with pytest.raises(DataError, match=r"index-test\.json: there is no such file"):
        PreparedImages(str(prepared_dir), "test")


def test_no_objects_at_all(tmp_path, shapes_dir):
    content = {**load_coco(shapes_dir / "instances_val.json"), "annotations": []}
    source = Source(content, tmp_path / "made.json", shapes_dir / "images")
    prepare_split(source, str(tmp_path / "out"), "val", name="made", num_workers=1)
    assert json.dumps(truth_of(str(tmp_path / "out"), "val")) == json.dumps(content)
