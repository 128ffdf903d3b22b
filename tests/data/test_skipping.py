"""Faulty records are left out with what hangs on them, nothing else is, and what remains has no faults."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from mrcnn_tf.data.check import check_content
from mrcnn_tf.data.coco import DataError, load_coco, parse_annotations
from mrcnn_tf.data.samples import has_masks
from mrcnn_tf.data.skipping import (
    find_skipped,
    require_rest,
    require_sound,
    skipped_records,
    summary_lines,
    unknown_categories,
    without,
)

SQUARE = [2, 2, 12, 2, 12, 12, 2, 12]
IMAGES, OBJECTS = [1, 2, 3], [10, 11, 20, 30]


def entry(annotation_id, image_id, category_id=1, **more):
    record = {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": [2, 2, 10, 10]}
    return record | {"segmentation": [SQUARE]} | more


CONTENT = {
    "images": [{"id": number, "file_name": f"{number}.png", "height": 20, "width": 30} for number in IMAGES],
    "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}],
    "annotations": [entry(10, 1), entry(11, 1, 5), entry(20, 2), entry(30, 3)],
}


@pytest.fixture
def folder(tmp_path):
    for number in IMAGES:
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    return tmp_path


def find(folder, content, **options):
    """The content as it comes from a file, what is to be skipped of it, and the rest."""
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    content = load_coco(path)
    skipped = find_skipped(content, path, folder, **options)
    return content, skipped, without(content, skipped)


def changed(where=0, section="annotations", **changes):
    content = copy.deepcopy(CONTENT)
    content[section][where].update(changes)
    return content


def lacking(key, where=0, section="annotations"):
    content = copy.deepcopy(CONTENT)
    del content[section][where][key]
    return content


def with_first(section, *items):
    """Other records before those of CONTENT."""
    return CONTENT | {section: [*items, *CONTENT[section]]}


def ids(content, section="annotations"):
    return [record["id"] for record in content[section]]


def test_sound_data_is_left_as_it_is(folder):
    content, skipped, rest = find(folder, CONTENT)
    assert (skipped, rest) == ((), content)
    assert summary_lines(content, rest, skipped) == []
    require_rest(content, rest, skipped, folder)


WITHOUT_FIRST = (IMAGES, [11, 20, 30])
WITHOUT_IMAGE_1 = ([2, 3], [20, 30])


@pytest.mark.parametrize(
    ("content", "kind", "left"),
    [
        (changed(category_id=4), "unknown category", WITHOUT_FIRST),
        (changed(image_id=9), "unknown image", WITHOUT_FIRST),
        (changed(bbox=[2, 2, -1, 5]), "negative box", WITHOUT_FIRST),
        (changed(bbox=[2, 2, 5]), "malformed box", WITHOUT_FIRST),
        (changed(bbox=[90, 2, 5, 5]), "box outside", WITHOUT_FIRST),
        (changed(bbox=[2, 2, 0, 5]), "empty box", WITHOUT_FIRST),
        (changed(segmentation="mask"), "malformed mask", WITHOUT_FIRST),
        (changed(segmentation=[[50, 2, 60, 2, 60, 9]]), "empty mask", WITHOUT_FIRST),
        (lacking("segmentation"), "missing mask", WITHOUT_FIRST),
        (changed(area=-1), "malformed record", WITHOUT_FIRST),
        (changed(image_id=[1]), "malformed record", WITHOUT_FIRST),
        (changed(id="ten"), "malformed record", WITHOUT_FIRST),
        (lacking("id"), "malformed record", WITHOUT_FIRST),
        (with_first("annotations", 7, None), "malformed record", (IMAGES, OBJECTS)),
        (changed(0, "images", file_name="none.png"), "missing image", WITHOUT_IMAGE_1),
        (changed(0, "images", file_name="broken.png"), "broken image", WITHOUT_IMAGE_1),
        (changed(0, "images", height=21), "image size", WITHOUT_IMAGE_1),
        (changed(0, "images", height=0), "image size", WITHOUT_IMAGE_1),
        (lacking("file_name", 0, "images"), "malformed record", WITHOUT_IMAGE_1),
        (lacking("id", 0, "images"), "malformed record", WITHOUT_IMAGE_1),
        (changed(1, "categories", name=5), "malformed record", (IMAGES, [10, 20, 30])),
        (lacking("id", 1, "categories"), "malformed record", (IMAGES, [10, 20, 30])),
    ],
)
def test_each_kind_of_fault(folder, content, kind, left):
    content, skipped, rest = find(folder, content)
    before = copy.deepcopy(content)
    assert kind in [item.kind for item in skipped]
    assert (ids(rest, "images"), ids(rest)) == left
    found = parse_annotations(rest, folder / "instances.json")
    assert has_masks(found)
    faults = []
    check_content(rest, folder / "instances.json", folder, faults)
    assert [fault for fault in faults if fault.is_error] == []
    assert content == before


def test_warnings_are_kept(folder):
    _, skipped, rest = find(folder, changed(bbox=[2, 2, 10, 19]))
    assert (skipped, ids(rest)) == ((), OBJECTS)


@pytest.mark.parametrize("content", [lacking("segmentation"), changed(segmentation=[[50, 2, 60, 2, 60, 9]])])
def test_masks_do_not_matter_to_boxes(folder, content):
    _, skipped, rest = find(folder, content, masks=False)
    assert (skipped, ids(rest)) == ((), OBJECTS)


def test_an_image_stays_when_all_its_objects_go(folder):
    _, _, rest = find(folder, changed(2, bbox=None))
    assert (ids(rest, "images"), ids(rest)) == (IMAGES, [10, 11, 30])


@pytest.mark.parametrize(
    ("content", "images", "objects"),
    [
        # The first of the same id stands, faulty ones do not count.
        (CONTENT | {"annotations": [*CONTENT["annotations"], entry(10, 3)]}, IMAGES, [10, 11, 20, 30]),
        (with_first("annotations", entry(10, 1, bbox=None)), IMAGES, [10, 11, 20, 30]),
        (with_first("annotations", entry(10, 1, 4), entry(10, 2, 4)), IMAGES, [10, 11, 20, 30]),
        (CONTENT | {"images": [*CONTENT["images"], CONTENT["images"][0]]}, IMAGES, OBJECTS),
        (with_first("images", {"id": 1, "file_name": "1.png", "height": "tall", "width": 30}), IMAGES, OBJECTS),
        # The one that stands is faulty: its objects go, for they cannot mean the other.
        (with_first("images", CONTENT["images"][0] | {"file_name": "none.png"}), [2, 3], [20, 30]),
        (CONTENT | {"categories": [*CONTENT["categories"], {"id": 5, "name": "cow"}]}, IMAGES, OBJECTS),
    ],
)
def test_records_of_the_same_id(folder, content, images, objects):
    content, skipped, rest = find(folder, content)
    assert (ids(rest, "images"), ids(rest)) == (images, objects)
    assert {item.id for item in skipped} == {None}
    assert [category["name"] for category in rest["categories"]] == ["cat", "dog"]
    parse_annotations(rest, folder / "instances.json")


def test_the_sound_one_of_a_pair_is_what_stays(folder):
    _, _, rest = find(folder, with_first("annotations", entry(10, 2, bbox=None)))
    assert rest["annotations"][0] == entry(10, 1)


def test_a_record_is_found_by_its_id_wherever_it_has_gone(folder):
    content, skipped, rest = find(folder, changed(1, category_id=4))
    mended = {**content, "annotations": [entry(5, 2), *reversed(CONTENT["annotations"])]}
    assert [(item.section, item.position, item.id) for item in skipped] == [("annotations", 1, 11)]
    assert ids(without(mended, skipped)) == [5, 30, 20, 10]
    assert ids(without(rest, skipped)) == ids(rest)


def test_a_mended_image_still_goes_with_its_objects(folder):
    _, skipped, rest = find(folder, changed(0, "images", file_name="none.png"))
    assert without(CONTENT, skipped)["annotations"] == rest["annotations"]


def test_categories_of_the_model_replace_those_of_the_file(folder):
    _, skipped, rest = find(folder, changed(0, "categories", name=5), categories=[{"id": 1, "name": "cat"}])
    assert [(item.kind, item.id) for item in skipped] == [("unknown category", 11)]
    assert ids(rest) == [10, 20, 30]


def test_categories_that_the_model_does_not_have(folder):
    faults = unknown_categories(CONTENT, folder, {1, 2})
    assert [(fault.kind, fault.record) for fault in faults] == [("unknown category", "category 5")]
    assert "it knows [1, 2]" in faults[0].message
    rest = without(CONTENT, skipped_records(faults, CONTENT))
    assert (ids(rest, "categories"), ids(rest)) == ([1], [10, 20, 30])
    assert unknown_categories(CONTENT, folder, {1, 5}) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT | {"images": [{**image, "file_name": "none.png"} for image in CONTENT["images"]]}, "all 3 images are faulty"),
        (CONTENT | {"images": [5]}, "all 1 images are faulty.*image at position 0"),
        (CONTENT | {"annotations": [entry(1, 1, 4), entry(2, 2, bbox="")]}, "all 2 objects are faulty.*unknown category_id 4"),
    ],
)
def test_nothing_left(folder, content, message):
    content, skipped, rest = find(folder, content)
    with pytest.raises(DataError, match=rf"instances\.json: nothing usable is left: {message}"):
        require_rest(content, rest, skipped, folder / "instances.json")


@pytest.mark.parametrize("content", [CONTENT | {"annotations": []}, CONTENT | {"annotations": [], "images": []}])
def test_an_empty_file_has_nothing_to_leave_out(folder, content):
    content, skipped, rest = find(folder, content)
    assert (skipped, rest) == ((), content)
    require_rest(content, rest, skipped, folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "categories": CONTENT["categories"]}, "'annotations' is missing"),
        (CONTENT | {"categories": [{"id": "one"}]}, "categories is empty"),
        (CONTENT | {"images": 3}, "'images' must be list"),
    ],
)
def test_a_broken_file_is_not_gone_around(folder, content, message):
    with pytest.raises(DataError, match=message) as caught:
        find(folder, content)
    assert caught.value.kind == "broken file"


def test_a_missing_folder_is_not_as_many_missing_images(folder):
    with pytest.raises(NotADirectoryError, match="no such folder of images"):
        find_skipped(CONTENT, folder / "instances.json", folder / "none")


def test_the_summary_counts_by_kind_and_names_records(folder):
    content = changed(0, "images", file_name="none.png")
    content["annotations"] += [entry(31, 3, 4, bbox=None), entry(32, 3, 4), 7]
    content, skipped, rest = find(folder, content)
    assert summary_lines(content, rest, skipped) == [
        "left out 1 of 3 images (1 missing image): image 1 (none.png)",
        "left out 5 of 7 objects (2 unknown category, 1 malformed record, 2 with their image or category): "
        "annotation 31, annotation 32, annotation at position 6",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(category_id=4), "annotation 10: unknown category_id 4"),
        (changed(0, "images", file_name="none.png"), "image 1: there is no file"),
        (CONTENT | {"images": [], "annotations": []}, "there are no images to evaluate on"),
        (with_first("categories", {"id": 8, "name": "cow"}), "category 8: the model does not know it; it knows"),
    ],
)
def test_what_evaluation_cannot_do_with_is_refused(folder, content, message):
    with pytest.raises(DataError, match=message):
        require_sound(content, folder / "instances.json", folder, {1, 5})


def test_what_evaluation_can_do_with(folder):
    require_sound(lacking("segmentation"), folder / "instances.json", folder, {1, 5, 6})
