import json

import pytest

from mrcnn_tf.data.class_names import read_class_names
from mrcnn_tf.data.coco import DataError

CATEGORIES = ({"id": 1, "name": "cat"}, {"id": 2, "name": "traffic light"}, {"id": 3, "name": "Käse"})


@pytest.mark.parametrize(
    "text", ["cat\ntraffic light\nKäse\n", "cat\r\ntraffic light\r\nKäse", "\ufeff cat\n traffic light \nKäse\t\n"]
)
def test_one_name_per_line(tmp_path, text):
    path = tmp_path / "names.txt"
    path.write_bytes(text.encode())
    assert read_class_names(path) == CATEGORIES


@pytest.mark.parametrize("name", ["instances.json", "instances"])
def test_coco_categories_are_sorted_by_id(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps({"categories": [{"id": 90, "name": "dog", "supercategory": "animal"}, {"id": 17, "name": "cat"}]}))
    assert read_class_names(path) == ({"id": 17, "name": "cat"}, {"id": 90, "name": "dog"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected one class name per line, the file is empty"),
        (b" \n\n", "expected one class name per line, the file is empty"),
        (b"cat\n\ndog\n", r"names, line 2: expected a class name, the line is empty"),
        (b"cat\ndog\n\n", r"names, line 3: expected a class name, the line is empty"),
        (b"cat\ndog\n cat", r"names, line 3: class name 'cat' stands already in line 1"),
        (b"\xff\xfe\x00", "names: not readable as text"),
        (b'["cat", "dog"]', "one name per line or a COCO JSON object with categories, got a JSON list"),
        (b'{"images": []}', "'categories' is missing"),
        (b'{"categories": []}', "categories is empty"),
        (b'{"categories": [{"id": 1}]}', "category 1: 'name' is missing"),
        (b'{"categories": [{"id": 1', "broken or truncated JSON"),
    ],
)
def test_faults_are_named_with_the_file(tmp_path, content, message):
    path = tmp_path / "names"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_class_names(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt: no such file of class names"):
        read_class_names(tmp_path / "none.txt")
