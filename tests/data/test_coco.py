import copy
import json
import subprocess
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO

from mrcnn_tf.data.coco import DataError, read_annotations, read_categories, write_coco

POLYGON = [10.0, 20.0, 40.0, 20.0, 40.0, 60.0]
CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 80, "width": 100},
        {"id": 3, "file_name": "b.png", "height": 4, "width": 5},
    ],
    "categories": [{"id": 90, "name": "dog", "supercategory": "animal"}, {"id": 17, "name": "cat"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 90,
            "bbox": [10, 20, 30, 40],
            "segmentation": [POLYGON],
            "area": 600,
            "iscrowd": 0,
        },
        {"id": 2, "image_id": 7, "category_id": 17, "bbox": [-5.0, 70.0, 10.0, 30.0], "segmentation": []},
        {
            "id": 3,
            "image_id": 3,
            "category_id": 17,
            "bbox": [0, 0, 5, 4],
            "iscrowd": 1,
            "segmentation": {"size": [4, 5], "counts": [2, 18]},
        },
    ],
}


def _write(tmp_path, content):
    path = tmp_path / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_records_hold_what_the_file_says(tmp_path):
    annotations = read_annotations(_write(tmp_path, CONTENT))
    assert annotations.categories == ({"id": 17, "name": "cat"}, {"id": 90, "name": "dog"})
    first, second = annotations.records
    assert (first.image_id, first.file_name, first.height, first.width) == (7, "a.png", 80, 100)
    dog, cat = first.objects
    assert (dog.class_id, dog.box, dog.area, dog.crowd) == (2, (20.0, 10.0, 60.0, 40.0), 600, False)
    np.testing.assert_array_equal(dog.segmentation[0], POLYGON)
    assert (cat.class_id, cat.box, cat.segmentation) == (1, (70.0, 0.0, 80.0, 5.0), None)
    assert second.objects[0].crowd
    assert isinstance(second.objects[0].segmentation["counts"], str)


def test_given_categories_set_the_classes(tmp_path):
    order = [{"id": 90, "name": "hound"}, {"id": 17, "name": "cat"}]
    annotations = read_annotations(_write(tmp_path, CONTENT), order)
    assert [item.class_id for item in annotations.records[0].objects] == [1, 2]
    with pytest.raises(DataError, match="annotation 2: unknown category_id 17"):
        read_annotations(_write(tmp_path, CONTENT), order[:1])


def test_categories_are_sorted_by_id(tmp_path):
    assert [category["id"] for category in read_categories(_write(tmp_path, CONTENT))] == [17, 90]


def test_a_file_without_annotations_is_read(tmp_path):
    annotations = read_annotations(_write(tmp_path, CONTENT | {"annotations": []}))
    assert [record.objects for record in annotations.records] == [(), ()]


def test_what_is_written_is_read_back_and_pycocotools_reads_it(tmp_path):
    before = read_annotations(_write(tmp_path, CONTENT))
    after = read_annotations(write_coco(tmp_path / "again.json", before.records, before.categories))
    assert after.categories == before.categories
    for old, new in zip(before.records, after.records, strict=True):
        assert (old.image_id, old.file_name, old.height, old.width) == (new.image_id, new.file_name, new.height, new.width)
        for one, other in zip(old.objects, new.objects, strict=True):
            assert (one.annotation_id, one.class_id, one.box, one.area, one.crowd) == (
                other.annotation_id,
                other.class_id,
                other.box,
                other.area,
                other.crowd,
            )
            assert repr(one.segmentation) == repr(other.segmentation)
    coco = COCO(str(tmp_path / "again.json"))
    assert coco.annToMask(coco.anns[3]).sum() == 18
    assert not list(tmp_path.glob("*.tmp"))


def _annotation(**changes):
    content = copy.deepcopy(CONTENT)
    content["annotations"][0].update(changes)
    return content


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (_annotation(bbox=[10, 20, 30, -1]), "annotation 1: bbox .*negative"),
        (_annotation(bbox=[10, 20, float("nan"), 40]), "annotation 1: bbox .*finite"),
        (_annotation(bbox=[10, 20, float("inf"), 40]), "annotation 1: bbox .*finite"),
        (_annotation(bbox=[10, 20, 30]), "annotation 1: bbox .*four"),
        (_annotation(bbox=["10", 20, 30, 40]), "annotation 1: bbox"),
        (_annotation(bbox=[100, 20, 30, 40]), "annotation 1: bbox .*outside image 7"),
        (_annotation(bbox=[10, -50, 30, 40]), "annotation 1: bbox .*outside image 7"),
        (_annotation(bbox=None), "annotation 1: 'bbox' must be list"),
        (_annotation(category_id=5), "annotation 1: unknown category_id 5"),
        (_annotation(category_id="dog"), "annotation 1: 'category_id' must be int"),
        (_annotation(category_id=True), "annotation 1: 'category_id' must be int"),
        (_annotation(image_id=4), "annotation 1: image_id 4"),
        (_annotation(iscrowd=2), "annotation 1: iscrowd"),
        (_annotation(area="big"), "annotation 1: 'area'"),
        (_annotation(segmentation=[[1, 2, 3, 4]]), "annotation 1: a polygon .*3 points"),
        (_annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 1: a polygon"),
        (_annotation(segmentation=[[1, 2, 3, 4, 5, "x"]]), "annotation 1: a polygon"),
        (_annotation(segmentation=[1, 2, 3, 4, 5, 6]), "annotation 1: a polygon"),
        (_annotation(segmentation="mask"), "annotation 1: segmentation must be"),
        (_annotation(segmentation={"size": [80, 100], "counts": [3]}), "annotation 1: segmentation: .*add up to 3"),
        (_annotation(segmentation={"size": [100, 80], "counts": [8000]}), "annotation 1: segmentation: .*size"),
        (_annotation(segmentation={"size": [80, 100], "counts": 5}), "annotation 1: segmentation"),
        (CONTENT | {"annotations": [{"id": 9}]}, "annotation 9: 'image_id' is missing"),
        (CONTENT | {"annotations": [{"image_id": 7}]}, "annotation at position 0: 'category_id' is missing"),
        (CONTENT | {"annotations": [5]}, "annotation at position 0: expected an object"),
        (CONTENT | {"images": [{"id": 1, "file_name": "a", "height": 0, "width": 5}]}, "image 1: height"),
        (CONTENT | {"images": [{"id": 1, "height": 5, "width": 5}]}, "image 1: 'file_name' is missing"),
        (CONTENT | {"images": CONTENT["images"] * 2}, "image 7: image ids must be unique, got 7"),
        (CONTENT | {"categories": CONTENT["categories"] * 2}, "category 90: category ids must be unique"),
        (CONTENT | {"annotations": CONTENT["annotations"][:1] * 2}, "annotation 1: annotation ids must be unique"),
        (_annotation(area=-1), "annotation 1: 'area'"),
        (_annotation(bbox=[10, 20, 10**400, 40]), "annotation 1: bbox .*finite"),
        (_annotation(segmentation=[[1, 2, 3, 4, 5, 10**400]]), "annotation 1: a polygon"),
        (CONTENT | {"categories": []}, "categories is empty"),
        (CONTENT | {"categories": {}}, "'categories' must be list"),
        ({"images": [], "categories": CONTENT["categories"]}, "'annotations' is missing"),
        ([], "expected a COCO object"),
        (json.dumps(CONTENT)[:200], "truncated JSON"),
        ("", "truncated JSON"),
    ],
)
def test_faults_stop_with_the_file_and_the_record_named(tmp_path, content, fault):
    path = _write(tmp_path, content)
    with pytest.raises(DataError, match=fault) as error:
        read_annotations(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: no such"):
        read_categories(tmp_path / "none.json")


def test_reading_annotations_loads_no_tensorflow():
    code = "import sys, mrcnn_tf.data.coco; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lvis_has_addresses_instead_of_file_names(tmp_path):
    image = {"id": 9, "coco_url": "http://images.cocodataset.org/val2017/000000000009.jpg", "height": 4, "width": 4}
    named = {"id": 10, "coco_url": "http://a/b/c.jpg", "file_name": "own.jpg", "height": 4, "width": 4}
    annotation = {
        "id": 1,
        "image_id": 9,
        "category_id": 2,
        "bbox": [0, 0, 2, 2],
        "area": 4.0,
        "segmentation": [[0, 0, 2, 0, 2, 2]],
    }
    category = {"id": 2, "name": "aerosol_can", "frequency": "c", "synset": "aerosol.n.02"}
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps({"images": [image, named], "annotations": [annotation], "categories": [category]}))
    found = read_annotations(path)
    assert [record.file_name for record in found.records] == ["val2017/000000000009.jpg", "own.jpg"]
    assert found.categories == ({"id": 2, "name": "aerosol_can"},)
    assert not found.records[0].objects[0].crowd
