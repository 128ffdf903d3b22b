"""Single records: names of classes, and what is in an example."""

import numpy as np

from mrcnn_tf.data.coco import CocoObject, Record
from mrcnn_tf.data.images import encode_png
from mrcnn_tf.data.masks import mask_crop
from mrcnn_tf.data.tfds_records import StoredImage, annotations_of, example_of, features_of, label_names, record_of

CATEGORIES = [{"id": 7, "name": "cell"}, {"id": 3, "name": "cell"}, {"id": 9, "name": "dog"}]
POLYGON = (np.array([1.0, 1.0, 9.0, 1.0, 9.0, 9.0]),)


def through_features(example):
    """The example as TensorFlow Datasets writes and reads it."""
    features = features_of(CATEGORIES)
    tensors = features.deserialize_example(features.serialize_example(example))

    def as_numpy(value):
        return {key: as_numpy(inner) for key, inner in value.items()} if isinstance(value, dict) else value.numpy()

    return as_numpy(tensors)


def example(*objects, **entries):
    record = Record(4, "ä.png", 10, 12, objects)
    found = {item.annotation_id: {"bbox": [0, 0, 3, 2]} | entries.get(f"a{item.annotation_id}", {}) for item in objects}
    return through_features(example_of(record, found, encode_png(np.zeros((10, 12, 3), np.uint8))))


def test_names_that_come_twice_get_their_ids():
    assert label_names(CATEGORIES) == ["cell (7)", "cell (3)", "dog"]


def test_a_record_comes_back():
    item = CocoObject(11, 3, (1.0, 1.0, 9.0, 9.0), 32.0, False, POLYGON)
    found = example(item, a11={"bbox": [1, 1, 8, 8], "area": 32.5, "difficult": 1})
    (entry,) = annotations_of(found, CATEGORIES)
    assert entry == {
        "id": 11,
        "image_id": 4,
        "category_id": 9,
        "bbox": [1.0, 1.0, 8.0, 8.0],
        "area": 32.5,
        "iscrowd": 0,
        "difficult": 1,
        "segmentation": [POLYGON[0].tolist()],
    }
    record = record_of(found, [7, 3, 9], {9: 1, 3: 2, 7: 3})
    assert (record.file_name, record.height, record.width) == ("ä.png", 10, 12)
    assert [(i.annotation_id, i.class_id, i.box, i.area) for i in record.objects] == [(11, 1, (1.0, 1.0, 9.0, 9.0), 32.5)]
    np.testing.assert_array_equal(found["objects"]["masks"][0], mask_crop(POLYGON, item.box, (10, 12)))


def test_objects_without_a_mask_or_an_area():
    """Their crops are empty: nothing to draw, or no frame to draw it in."""
    flat = CocoObject(1, 1, (1.0, 1.0, 1.0, 5.0), 0.0, False, POLYGON)
    crowd = CocoObject(2, 1, (0.0, 0.0, 5.0, 5.0), 25.0, True)
    found = example(flat, crowd)
    assert not found["objects"]["masks"].any()
    assert found["objects"]["is_crowd"].tolist() == [False, True]
    assert found["objects"]["area"].tolist() == [6.0, 6.0]
    assert ["segmentation" in entry for entry in annotations_of(found, CATEGORIES)] == [True, False]


def test_an_image_without_objects():
    found = example()
    assert found["objects"]["bbox"].shape == (0, 4)
    assert annotations_of(found, CATEGORIES) == []
    assert record_of(found, [7, 3, 9], {}).objects == ()


def test_a_stored_image_is_a_folder_of_itself():
    image = StoredImage(b"data")
    assert image.is_dir()
    assert (image / "a.png").is_file()
    assert (image / "a.png").open("rb").read() == b"data"
    assert str(image / "a.png") == "a.png"
