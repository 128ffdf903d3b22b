"""Prepared data in a place that is no local folder: TensorFlow's file systems, here the one in memory."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from etils.epath import backend, gpath, register

from mrcnn_tf.data.images import load_image
from mrcnn_tf.data.prepare import prepare_split
from mrcnn_tf.data.sources import coco_source
from mrcnn_tf.data.tfds_batches import tfds_batches
from mrcnn_tf.data.tfds_metadata import prepared_splits, shard_names
from mrcnn_tf.data.tfds_truth import PreparedImages, truth_of


@pytest.fixture
def bucket(monkeypatch):
    """An address of TensorFlow's file system in memory. The paths of TensorFlow Datasets know those of clouds alone."""
    monkeypatch.setattr(gpath, "_URI_PREFIXES", (*gpath._URI_PREFIXES, "ram://"))
    monkeypatch.setattr(gpath, "_URI_SCHEMES", frozenset([*gpath._URI_SCHEMES, "ram"]))
    monkeypatch.setitem(gpath._URI_MAP_ROOT, "ram://", "/ram/")
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "ram", backend.tf_backend)
    monkeypatch.setitem(register._URI_PREFIXES_TO_CLS, "ram://", gpath.PosixGPath)
    yield "ram://bucket/shapes"
    tf.io.gfile.rmtree("ram://bucket")


def test_written_and_read_where_no_local_folder_is(bucket, shapes_dir, tiny_config, prepared_dir):
    source = coco_source(shapes_dir / "images", shapes_dir / "instances_train.json")
    options = {"name": "shapes", "num_shards": 5, "num_workers": 1}
    assert prepare_split(source, bucket, "train", **options).reused == 0
    assert prepare_split(source, bucket, "train", **options).reused == 5
    assert prepared_splits(bucket) == ["train"]
    assert tfds.builder_from_directory(bucket).info.splits["train"].num_examples == 12
    batches = tfds_batches(bucket, "train", tiny_config)
    assert all(path.startswith("ram://bucket/shapes/") for path in batches.files)
    local = tfds_batches(str(prepared_dir), "train", tiny_config)
    for ours, theirs in zip(batches.endless(2).take(3).as_numpy_iterator(), local.endless(2).take(3), strict=True):
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])
    truth = truth_of(bucket, "train")
    assert truth == truth_of(str(prepared_dir), "train")
    name = truth["images"][0]["file_name"]
    np.testing.assert_array_equal(load_image(PreparedImages(bucket, "train") / name), load_image(shapes_dir / "images" / name))


def test_names_of_shards():
    assert shard_names("a", "val", 2) == ["a-val.tfrecord-00000-of-00002", "a-val.tfrecord-00001-of-00002"]


def test_no_splits(tmp_path):
    assert prepared_splits(str(tmp_path)) == []
