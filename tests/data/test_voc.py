"""PASCAL VOC: boxes from XML, masks from PNG, and which belongs to which."""

import numpy as np
import pytest
from PIL import Image

from mrcnn_tf.data.archives import ArchiveMember
from mrcnn_tf.data.coco import DataError, parse_annotations
from mrcnn_tf.data.masks import decode_rle
from mrcnn_tf.data.voc import CLASSES, VocObject, match_masks, read_xml, voc_content
from tests.data.voc_files import OBJECTS, SIZE, SPLITS, palettes, write_palette, write_voc, write_voc_tar, xml

BOMB = """<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><annotation>&c;</annotation>"""


@pytest.fixture
def root(tmp_path):
    return write_voc(tmp_path)


def image_of(content, name):
    return next(image for image in content["images"] if image["file_name"] == f"{name}.jpg")


def objects_of(content, name):
    return [a for a in content["annotations"] if a["image_id"] == image_of(content, name)["id"]]


def test_a_split_as_coco(root):
    content, faults = voc_content(root, "train")
    assert faults == []
    assert [image["file_name"] for image in content["images"]] == [f"{name}.jpg" for name in SPLITS["train"]]
    assert image_of(content, "2007_000001") == {"id": 1, "file_name": "2007_000001.jpg", "height": 40, "width": 60}
    assert [category["name"] for category in content["categories"]] == list(CLASSES)
    assert [annotation["id"] for annotation in content["annotations"]] == [1, 2, 3, 4]
    assert objects_of(content, "2008_000004") == []
    person, dog = objects_of(content, "2007_000001")
    assert (person["bbox"], person["category_id"], person["iscrowd"], person["difficult"]) == ([4.0, 2.0, 16.0, 28.0], 15, 0, 0)
    assert (dog["category_id"], dog["iscrowd"], dog["difficult"]) == (12, 0, 1)
    # Without the void border.
    mask = decode_rle(person["segmentation"], SIZE)
    assert mask.sum() == person["area"] == 14 * 26
    assert mask[3:29, 5:19].all()


def test_it_is_read_like_any_coco_file(root):
    records = parse_annotations(voc_content(root, "val")[0], "VOC").records
    assert [(item.class_id, item.box, item.crowd) for item in records[0].objects] == [(7, (0.0, 0.0, 40.0, 60.0), False)]


def test_boxes_only(root):
    content, faults = voc_content(root, "train", "Main")
    assert faults == []
    assert not any("segmentation" in annotation for annotation in content["annotations"])
    assert objects_of(content, "2007_000001")[0]["area"] == 16 * 28


def test_the_same_from_the_archive(root, tmp_path):
    archive = write_voc_tar(tmp_path / "VOC.tar", tmp_path)
    assert voc_content(ArchiveMember(archive, "VOCdevkit/VOC2012"), "train") == voc_content(root, "train")


def test_instances_in_another_order_are_matched(root):
    name = "2008_000003"
    instances, _ = palettes(OBJECTS[name], order=(2, 1))
    write_palette(root / f"SegmentationObject/{name}.png", instances)
    content, faults = voc_content(root, "train")
    assert faults == []
    for annotation in objects_of(content, name):
        x, y, width, height = (int(value) for value in annotation["bbox"])
        mask = decode_rle(annotation["segmentation"], SIZE)
        assert mask[y + 1 : y + height - 1, x + 1 : x + width - 1].all()
        assert mask.sum() == (height - 2) * (width - 2)


def test_an_object_without_an_outline(root):
    """It has no mask; one that is difficult is a crowd region, since nothing can be learned of it."""
    name = "2007_000001"
    for kind in ("Object", "Class"):
        write_palette(root / f"Segmentation{kind}/{name}.png", np.zeros(SIZE, np.uint8))
    person, dog = objects_of(voc_content(root, "train")[0], name)
    assert ("segmentation" in person, person["iscrowd"]) == (False, 0)
    assert ("segmentation" in dog, dog["iscrowd"], dog["difficult"]) == (False, 1, 1)


def test_an_instance_that_is_no_object_is_a_fault_of_its_image(root):
    instances, classes = palettes(OBJECTS["2008_000003"])
    instances[0:4, 52:60], classes[0:4, 52:60] = 3, 15
    write_palette(root / "SegmentationObject/2008_000003.png", instances)
    write_palette(root / "SegmentationClass/2008_000003.png", classes)
    content, (fault,) = voc_content(root, "train")
    assert [image["id"] for image in content["images"]] == [1, 2]
    assert (fault.kind, fault.record, fault.file_name) == ("unmatched mask", "image 2008_000003", "2008_000003.jpg")
    assert "instance 3 (person, x 52 to 60, y 0 to 4) is no object of the XML" in fault.message
    assert fault.is_error


def test_a_class_that_disagrees_is_no_match():
    objects = [VocObject(1, (0.0, 0.0, 10.0, 10.0), False)]
    instances = np.zeros((20, 20), np.uint8)
    instances[:10, :10] = 1
    assert match_masks(instances, instances, objects, "a.png")[0].sum() == 100
    with pytest.raises(DataError, match=r"a\.png: instance 1 \(bicycle, x 0 to 10, y 0 to 10\) is no object"):
        match_masks(instances, instances * 2, objects, "a.png")


def test_overlapping_objects_of_one_class_keep_the_usual_order():
    """Both boxes overlap both masks well; by overlap alone the first instance would go to the second object."""
    objects = [VocObject(1, (0.0, 0.0, 20.0, 16.0), False), VocObject(1, (0.0, 0.0, 20.0, 14.0), False)]
    instances = np.zeros((20, 20), np.uint8)
    instances[:, :14], instances[:, 14:16] = 1, 2
    instances[0, :14] = 2
    first, second = match_masks(instances, (instances > 0).astype(np.uint8), objects, "a.png")
    assert (first == (instances == 1)).all()
    assert (second == (instances == 2)).all()


def test_no_objects_and_no_instances():
    empty = np.zeros((4, 4), np.uint8)
    assert match_masks(empty, empty, [], "a.png") == ()
    assert match_masks(empty, empty, [VocObject(1, (0.0, 0.0, 1.0, 1.0), False)], "a.png") == (None,)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (None, "missing file", "no such file"),
        ("<annotation>", "broken file", "not readable XML"),
        (BOMB, "broken file", "a DOCTYPE, which no file of VOC has"),
        ("<annotation/>", "malformed record", "size/height must be a number, got None"),
        (xml([], size=(0, 5)), "image size", "size must be at least 1 x 1 pixel, got 0 x 5"),
        (xml([("cow", (1, 1, 5, "a"), 0)]), "malformed record", "object 1: bndbox/ymax must be a number, got 'a'"),
        (xml([("cow", (1, 1, 5, "nan"), 0)]), "malformed record", "object 1: bndbox/ymax must be a number, got 'nan'"),
        (xml([("cow", (1, 1, 5, 5), 0), ("gnu", (1, 1, 5, 5), 0)]), "unknown category", "object 2: 'gnu' is no class of VOC"),
        (xml([("cow", (9, 1, 5, 5), 0)]), "negative box", "object 1: the box ends before it begins: x 9 to 5, y 1 to 5"),
    ],
)
def test_faulty_xml(tmp_path, text, kind, message):
    path = tmp_path / "a.xml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=r"a\.xml") as caught:
        read_xml(path)
    assert message in str(caught.value)
    assert caught.value.kind == kind


def test_floats_and_objects_that_do_not_say_whether_they_are_difficult(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(xml([("cow", (45.7, 2, 50.2, 9), 0)]).replace("<difficult>0</difficult>", ""))
    assert read_xml(path) == (SIZE, [VocObject(10, (1.0, 44.7, 9.0, 50.2), False)])


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda path: path.unlink(), "missing file"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "malformed mask"),
        (lambda path: write_palette(path, np.zeros((5, 5), np.uint8)), "image size"),
        (lambda path: Image.new("RGB", SIZE[::-1]).save(path), "malformed mask"),
    ],
)
def test_faulty_masks_are_faults_of_their_image(root, spoil, kind):
    spoil(root / "SegmentationObject/2007_000001.png")
    content, (fault,) = voc_content(root, "train")
    assert (fault.kind, fault.record) == (kind, "image 2007_000001")
    assert "2007_000001.png" in fault.message
    assert len(content["images"]) == 2


def test_lists_of_names(root):
    with pytest.raises(DataError, match=r"ImageSets/Segmentation/test\.txt: no readable list of image names"):
        voc_content(root, "test")
    (root / "ImageSets/Main/empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.txt: the list of image names is empty"):
        voc_content(root, "empty", "Main")
    (root / "ImageSets/Main/dog_train.txt").write_text("2007_000001  1\n2007_000002 -1\n")
    assert len(voc_content(root, "dog_train", "Main")[0]["images"]) == 2
