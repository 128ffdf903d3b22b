"""Every kind of fault is found, by name, with its record, and nothing is found in sound data."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from mrcnn_tf.data.check import WARNINGS, check_data
from mrcnn_tf.data.coco import DataError, read_annotations
from mrcnn_tf.data.samples import has_masks
from mrcnn_tf.data.shapes import write_shapes

SQUARE = [10.0, 20.0, 40.0, 20.0, 40.0, 60.0, 10.0, 60.0]


def entry(annotation_id, image_id, bbox, **more):
    return {"id": annotation_id, "image_id": image_id, "category_id": 1, "bbox": bbox, "iscrowd": 0, **more}


CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 80, "width": 100},
        {"id": 3, "file_name": "grey.png", "height": 1, "width": 1},
        {"id": 4, "file_name": "empty.png", "height": 5, "width": 6},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 9, "name": "dog"}],
    "annotations": [
        entry(1, 7, [10, 20, 30, 40], segmentation=[SQUARE], area=1200),
        entry(2, 7, [0, 0, 100, 80], segmentation={"size": [80, 100], "counts": [0, 8000]}, iscrowd=1, area=8000),
        entry(3, 3, [0, 0, 1, 1], segmentation=[[0, 0, 1, 0, 1, 1, 0, 1]]),
    ],
}


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(images / "a.png")
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(images / "grey.png")
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(images / "empty.png")
    return tmp_path


def check(folder, content):
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return check_data(folder / "images", path)


def changed(where=0, key="annotations", **changes):
    content = copy.deepcopy(CONTENT)
    content[key][where].update(changes)
    return content


def without(name, where=0, key="annotations"):
    content = copy.deepcopy(CONTENT)
    del content[key][where][name]
    return content


def added(key, item):
    return CONTENT | {key: [*CONTENT[key], item]}


def test_sound_data_with_grey_one_pixel_empty_and_crowd_has_no_faults(folder):
    found = check(folder, CONTENT)
    assert (found.errors, found.warnings) == ((), ())
    assert (found.num_images, found.num_objects, found.num_crowd) == (3, 3, 1)
    assert found.empty_images == ("empty.png",)
    assert found.counts == {
        "cat": {"small": 1, "medium": 2, "large": 0},
        "dog": {"small": 0, "medium": 0, "large": 0},
    }


def test_sizes_are_those_of_coco(folder):
    areas = [32**2 - 1, 32**2, 96**2 - 1, 96**2]
    annotations = [entry(n, 7, [0, 0, 100, 80], area=area, category_id=9) for n, area in enumerate(areas)]
    assert check(folder, CONTENT | {"annotations": annotations}).counts["dog"] == {"small": 1, "medium": 2, "large": 1}


def test_drawn_shapes_have_no_faults(tmp_path):
    path = write_shapes(tmp_path, num_images=6, seed=3, image_size=(128, 128), split="val")
    found = check_data(tmp_path / "images", path)
    assert (found.errors, found.warnings, found.num_images) == ((), (), 6)
    assert found.num_objects >= 18


@pytest.mark.parametrize("images", [[], CONTENT["images"]])
def test_a_data_set_without_objects(folder, images):
    found = check(folder, CONTENT | {"images": images, "annotations": []})
    assert (found.errors, found.warnings, found.num_images, found.num_objects) == ((), (), len(images), 0)
    assert len(found.empty_images) == len(images)


A = "annotation 1"


@pytest.mark.parametrize(
    ("content", "kind", "record", "message"),
    [
        (changed(category_id=5), "unknown category", A, "category_id 5; known are [1, 9]"),
        (changed(image_id=5), "unknown image", A, "image_id 5"),
        (changed(bbox=[10, 20, -30, 40]), "negative box", A, "negative"),
        (changed(bbox=[10, 20, 30]), "malformed box", A, "four finite"),
        (changed(bbox=[10, 20, float("nan"), 40]), "malformed box", A, "four finite"),
        (changed(bbox=[200, 20, 30, 40]), "box outside", A, "outside image 7 of 80 x 100"),
        (changed(bbox=[10, 20, 0, 40]), "empty box", A, "no width or no height"),
        (changed(bbox=[10, 20, 30, 0]), "empty box", A, "no width or no height"),
        (changed(bbox="box"), "malformed record", A, "'bbox' must be list, got box (str)"),
        (changed(area=-4), "malformed record", A, "'area'"),
        (changed(iscrowd=2), "malformed record", A, "iscrowd"),
        (changed(category_id="cat"), "malformed record", A, "'category_id' must be int"),
        (changed(id="one"), "malformed record", "annotation one", "'id' must be int"),
        (without("bbox"), "malformed record", A, "'bbox' is missing"),
        (without("image_id"), "malformed record", A, "'image_id' is missing"),
        (without("id"), "malformed record", "annotation at position 0", "'id' is missing"),
        (added("annotations", 5), "malformed record", "annotation at position 3", "expected an object"),
        (changed(segmentation=[[1, 2, 3, 4]]), "malformed mask", A, "3 points"),
        (changed(segmentation="mask"), "malformed mask", A, "polygons or an RLE"),
        (changed(segmentation={"size": [80, 100], "counts": [3]}), "malformed mask", A, "add up to 3"),
        (changed(segmentation={"size": [80, 100], "counts": "~"}), "malformed mask", A, "COCO string"),
        (changed(segmentation=[[200.0, 20, 240, 20, 240, 60]]), "empty mask", A, "covers nothing"),
        (changed(segmentation=[[10.0, 20, 40, 60, 10, 20]]), "empty mask", A, "covers nothing"),
        (changed(segmentation={"size": [80, 100], "counts": [8000]}), "empty mask", A, "covers nothing"),
        (without("segmentation"), "missing mask", A, "others have it"),
        (changed(bbox=[50, 20, 30, 40]), "box and mask", A, "IoU 0.00"),
        (changed(bbox=[10, 20, 30, 46]), "box and mask", A, "y 20 to 66, the mask fills x 10 to 40, y 20 to 60"),
        (changed(bbox=[10, 20, 95, 40]), "box beyond image", A, "reaches beyond"),
        (added("annotations", CONTENT["annotations"][0]), "duplicate id", A, "annotation ids must be unique, got 1"),
        (added("categories", {"id": 9, "name": "cow"}), "duplicate id", "category 9", "category ids must be unique"),
        (added("images", CONTENT["images"][0]), "duplicate id", "image 7 (a.png)", "image ids must be unique"),
        (changed(0, "categories", name=3), "malformed record", "category 1", "'name' must be str"),
        (changed(2, "images", height=0), "image size", "image 4 (empty.png)", "at least 1, got 0 and 6"),
        (changed(2, "images", height=6), "image size", "image 4 (empty.png)", "should have 6 x 6 pixels"),
        (changed(2, "images", height="5"), "malformed record", "image 4 (empty.png)", "'height' must be int"),
        (without("file_name", 2, "images"), "malformed record", "image 4", "'file_name' is missing"),
        (changed(2, "images", file_name="none.png"), "missing image", "image 4 (none.png)", "there is no file"),
        (changed(2, "images", file_name="../instances.json"), "broken image", "image 4 (../instances.json)", "not a readable"),
    ],
)
def test_each_fault_is_found_by_name_with_its_record(folder, content, kind, record, message):
    found = check(folder, content)
    faults = found.warnings if kind in WARNINGS else found.errors
    assert (kind, record) in [(fault.kind, fault.record) for fault in faults]
    assert message in next(fault.message for fault in faults if fault.kind == kind)
    assert "instances.json: " not in faults[0].message.replace("../instances.json", "")


@pytest.mark.parametrize("bbox", [[10, 20, 30, 42.9], [10, 20, 30, 43.5], [9, 19, 32, 42]])
def test_a_box_a_few_pixels_off_its_mask_is_no_fault(folder, bbox):
    assert check(folder, changed(bbox=bbox)).warnings == ()


def test_a_small_box_with_half_of_its_mask_is_a_warning_though_few_pixels_off(folder):
    content = changed(bbox=[10, 20, 4, 4], segmentation=[[12.0, 22, 14, 22, 14, 24, 12, 24]])
    assert [fault.kind for fault in check(folder, content).warnings] == ["box and mask"]


def test_all_faults_are_listed_also_several_of_one_record(folder):
    content = changed(category_id=5, bbox=[200, 20, 30, 40], segmentation="mask")
    content["images"][2]["file_name"] = "none.png"
    content["annotations"] += [entry(8, 99, [0, 0, 1, 1]), entry(9, 3, [0, 0, 0, 1])]
    found = check(folder, content)
    assert {(fault.kind, fault.record) for fault in found.errors} == {
        ("unknown category", A),
        ("box outside", A),
        ("malformed mask", A),
        ("unknown image", "annotation 8"),
        ("missing mask", "annotation 9"),
        ("empty box", "annotation 9"),
        ("missing image", "image 4 (none.png)"),
    }
    assert found.num_objects == 3


def test_annotations_of_a_faulty_image_are_not_said_to_have_none(folder):
    found = check(folder, changed(0, "images", width=-1))
    assert [(fault.kind, fault.record) for fault in found.errors] == [("image size", "image 7 (a.png)")]
    assert found.num_objects == 1


def test_a_sound_annotation_with_the_id_of_a_faulty_one(folder):
    content = added("annotations", CONTENT["annotations"][0])
    content["annotations"][0] = entry(1, 7, None)
    found = check(folder, content)
    assert [fault.kind for fault in found.errors] == ["malformed record"]
    assert found.num_objects == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(CONTENT, indent=1)[:60], "line 6 column 4"),
        ("", "line 1 column 1"),
        ("[]", "expected a COCO object"),
        (json.dumps(CONTENT | {"images": 3}), "'images' must be list"),
        (json.dumps({"images": [], "categories": CONTENT["categories"]}), "'annotations' is missing"),
        (json.dumps(CONTENT | {"categories": []}), "categories is empty"),
    ],
)
def test_a_file_that_cannot_be_used_at_all_is_one_error(folder, content, message):
    found = check(folder, content)
    assert [fault.record for fault in found.errors] == ["file"]
    assert message in found.errors[0].message
    assert (found.num_images, found.counts) == (0, {})


def test_a_missing_file_or_folder(folder):
    found = check_data(folder / "images", folder / "none.json")
    assert [(fault.kind, fault.message) for fault in found.errors] == [("broken file", "no such annotation file")]
    with pytest.raises(NotADirectoryError, match="no such folder of images"):
        check_data(folder / "none", folder / "none.json")


@pytest.mark.parametrize("content", [CONTENT, without("segmentation"), changed(category_id=5), changed(image_id=5)])
def test_training_refuses_what_is_an_error_of_the_records(folder, content):
    found = check(folder, content)
    try:
        has_masks(read_annotations(folder / "instances.json"))
        refused = None
    except DataError as error:
        refused = error.kind
    assert refused == (found.errors[0].kind if found.errors else None)
