"""Published data sets found in a folder: archives and what is unpacked of them."""

import json
import pickle
import zipfile

import numpy as np
import pytest

from mrcnn_tf.data.coco import DataError, parse_annotations
from mrcnn_tf.data.images import encode_png, load_image
from mrcnn_tf.data.sources import CocoFolders, coco_2017_source, coco_source, lvis_source, voc_source
from tests.data.voc_files import write_voc, write_voc_tar

IMAGE = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)


def coco_json(split, *, lvis=False):
    image = {"id": 9, "height": 10, "width": 10}
    url = {"coco_url": f"http://images.cocodataset.org/{split}2017/000000000009.jpg"}
    image |= url | {"neg_category_ids": [3], "not_exhaustive_category_ids": []} if lvis else {"file_name": "000000000009.jpg"}
    annotation = {"id": 1, "image_id": 9, "category_id": 3, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
    annotation |= {"area": 16.0} if lvis else {"area": 16.0, "iscrowd": 0}
    category = {"id": 3, "name": "car"} | ({"frequency": "r", "synset": "car.n.01"} if lvis else {})
    return {"images": [image], "annotations": [annotation], "categories": [category]}


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.fixture
def coco_dir(tmp_path):
    """As a user has it who has downloaded COCO 2017 and LVIS."""
    instances = {f"annotations/instances_{split}2017.json": json.dumps(coco_json(split)) for split in ("train", "val")}
    write_zip(tmp_path / "annotations_trainval2017.zip", instances)
    for split in ("train", "val"):
        write_zip(tmp_path / f"{split}2017.zip", {f"{split}2017/000000000009.jpg": encode_png(IMAGE)})
        write_zip(tmp_path / f"lvis_v1_{split}.json.zip", {f"lvis_v1_{split}.json": json.dumps(coco_json(split, lvis=True))})
    return tmp_path


def records_of(source):
    return parse_annotations(source.content, source.path).records


def assert_complete(source):
    source = pickle.loads(pickle.dumps(source))
    (record,) = records_of(source)
    np.testing.assert_array_equal(load_image(source.images / record.file_name), IMAGE)
    assert source.images.is_dir()
    assert [item.box for item in record.objects] == [(1.0, 1.0, 5.0, 5.0)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_2017(coco_dir, split):
    assert_complete(coco_2017_source(coco_dir, split))


def test_coco_2017_unpacked_in_part(coco_dir):
    with zipfile.ZipFile(coco_dir / "train2017.zip") as archive:
        archive.extractall(coco_dir)
    (coco_dir / "train2017.zip").unlink()
    source = coco_2017_source(coco_dir, "train")
    assert source.images == coco_dir / "train2017"
    assert_complete(source)


@pytest.mark.parametrize("split", ["train", "val"])
def test_lvis(coco_dir, split):
    """Its images have no file names, and their folder is part of their address."""
    source = lvis_source(coco_dir, split)
    assert records_of(source)[0].file_name == f"{split}2017/000000000009.jpg"
    assert_complete(source)


def test_lvis_unpacked(coco_dir):
    (coco_dir / "lvis_v1_val.json").write_text(json.dumps(coco_json("val", lvis=True)))
    (coco_dir / "lvis_v1_val.json.zip").unlink()
    assert_complete(lvis_source(coco_dir, "val"))


def test_an_image_of_a_folder_that_is_not_there(coco_dir):
    with pytest.raises(FileNotFoundError, match=r"expected test2017 there, or test2017\.zip"):
        CocoFolders(coco_dir) / "test2017/1.jpg"


def test_missing_archives_are_named(coco_dir):
    with pytest.raises(FileNotFoundError, match=r"expected annotations/instances_test2017\.json") as caught:
        coco_2017_source(coco_dir.parent, "test")
    assert "annotations_trainval2017.zip" in str(caught.value)
    (coco_dir / "val2017.zip").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected val2017 there, or val2017\.zip"):
        coco_2017_source(coco_dir, "val")
    with pytest.raises(
        DataError, match=r"annotations_trainval2017\.zip: the archive has no annotations/instances_test2017\.json"
    ):
        coco_2017_source(coco_dir, "test")


def test_a_damaged_archive_is_named(coco_dir):
    path = coco_dir / "annotations_trainval2017.zip"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"annotations_trainval2017\.zip: not a readable archive"):
        coco_2017_source(coco_dir, "train")


@pytest.mark.parametrize("year", ["2007", "2012"])
def test_voc(tmp_path, year):
    write_voc(tmp_path, year)
    unpacked = voc_source(tmp_path, "train", year=year)
    assert len(records_of(unpacked)) == 3
    name = {"2007": "VOCtrainval_06-Nov-2007.tar", "2012": "VOCtrainval_11-May-2012.tar"}[year]
    (tmp_path / "archives").mkdir()
    write_voc_tar(tmp_path / "archives" / name, tmp_path)
    packed = voc_source(tmp_path / "archives", "train", year=year)
    assert packed.content == unpacked.content
    file_name = packed.content["images"][0]["file_name"]
    np.testing.assert_array_equal(load_image(packed.images / file_name), load_image(unpacked.images / file_name))


def test_voc_2007_has_its_test_images_elsewhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected VOCdevkit/VOC2007 there, or VOCtest_06-Nov-2007\.tar"):
        voc_source(tmp_path, "test", year="2007")


def test_any_set(shapes_dir):
    source = coco_source(shapes_dir / "images", shapes_dir / "instances_val.json")
    assert len(records_of(source)) == 6
    with pytest.raises(NotADirectoryError, match="no such folder of images"):
        coco_source(shapes_dir / "nothing", shapes_dir / "instances_val.json")
