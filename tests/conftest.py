"""What every test shares: a quiet TensorFlow with two CPU devices, a tiny data set, a tiny model's configuration."""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["KERAS_BACKEND"] = "tensorflow"

import pytest
import tensorflow as tf

from mrcnn_tf.config import Config, load_config
from mrcnn_tf.data.shapes import CATEGORIES, write_shapes

NUM_CPUS = 2
"""Logical devices, for MirroredStrategy(["CPU:0", "CPU:1"])."""

# Before any test makes a tensor: devices cannot be split once TensorFlow has started.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration() for _ in range(NUM_CPUS)]
)

TINY = """
model:
  preprocessing: {min_size: 128, max_size: 128}
  backbone: {name: efficientnet_lite0, weights: null}
  fpn: {width: 16}
  anchors: {sizes: [[12], [24], [48], [96], [192]]}
  rpn:
    num_samples: 32
    pre_nms_top_k_train: 50
    pre_nms_top_k_test: 50
    post_nms_top_k_train: 30
    post_nms_top_k_test: 30
  box_head: {fc_width: 32, num_samples: 32, max_detections: 10}
  mask_head: {width: 16, num_convs: 1}
data:
  train: {images: images, annotations: instances_train.json}
  val: {images: images, annotations: instances_val.json}
  min_sizes: [128]
  max_size: 128
  image_size: [128, 128]
train:
  batch_size: 2
  reference_batch_size: 2
  schedule: cosine
  num_steps: 4
  warmup_steps: 2
  epoch_steps: 2
  clip_norm: 10.0
  xla: "off"
  strategy: none
"""


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
    """Folder of drawn shapes: `images/`, `instances_train.json` (12 pictures), `instances_val.json` (6), 128 x 128 pixels."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, num_images=12, seed=0, image_size=(128, 128), split="train")
    write_shapes(folder, num_images=6, seed=0, image_size=(128, 128), split="val")
    return folder


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory, shapes_dir) -> Config:
    """The smallest useful model, on `shapes_dir`."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return load_config(path, [f"data.root={shapes_dir}"]).with_categories(CATEGORIES)


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory, shapes_dir):
    """`shapes_dir` as `mrcnn-tf prepare-data` writes it: train in 5 shards, val in 2."""
    from mrcnn_tf.data.prepare import prepare_split
    from mrcnn_tf.data.sources import coco_source

    folder = tmp_path_factory.mktemp("prepared")
    for split, num_shards in (("train", 5), ("val", 2)):
        source = coco_source(shapes_dir / "images", shapes_dir / f"instances_{split}.json")
        prepare_split(source, str(folder), split, name="shapes", num_shards=num_shards, num_workers=1)
    return folder
