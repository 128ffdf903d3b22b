import gzip
import json
from pathlib import Path

from mrcnn_tf.data.coco_labels import COCO_CATEGORIES, TORCHVISION_CATEGORIES, TORCHVISION_LABELS, UNUSED_IDS

ANNOTATIONS = Path(__file__).parent.parent / "data_files" / "coco_eval" / "instances_val2014_100.json.gz"


def test_categories_are_those_of_the_data_set():
    published = json.loads(gzip.decompress(ANNOTATIONS.read_bytes()))["categories"]
    assert list(COCO_CATEGORIES) == [{"id": entry["id"], "name": entry["name"]} for entry in published]
    assert len(COCO_CATEGORIES) == 80


def test_torchvision_numbers_its_classes_by_cocos_ids():
    assert len(TORCHVISION_LABELS) == 91
    assert TORCHVISION_LABELS[0] == "__background__"
    assert all(TORCHVISION_LABELS[category["id"]] == category["name"] for category in COCO_CATEGORIES)
    assert {number for number, name in enumerate(TORCHVISION_LABELS) if name == "N/A"} == UNUSED_IDS
    assert [category["id"] for category in TORCHVISION_CATEGORIES] == list(range(1, 91))
    assert tuple(category["name"] for category in TORCHVISION_CATEGORIES) == TORCHVISION_LABELS[1:]
