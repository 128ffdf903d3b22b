"""Small models of the kinds that TFLite files are made of, with random weights that make decisions."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from mrcnn_tf.config import load_config
from mrcnn_tf.data.shapes import CATEGORIES
from mrcnn_tf.modeling.mask_rcnn import MASK_POOL_SIZE, MaskRCNN
from tests.conftest import TINY

KINDS = {
    "lite": [],
    # What the presets of other systems, ResNets and the larger heads bring. With the usual epsilon, group normalisation would
    # enlarge the rounding errors of a flat area by a factor of 300.
    "resnet": [
        "model.backbone={name: resnet50, weights: null}",
        "model.fpn={width: 16, norm: group, norm_epsilon: 0.1, p6: conv}",
        "model.rpn.joint_levels=true",
        "model.rpn.clip_to=input",
        "model.rpn.ranking=probability",
        "model.roi_align={sampling_ratio: 1, aligned: false, level_rounding: nearest, max_level: 6}",
        "model.box_head.kind=4conv1fc",
        "model.box_head.norm=group",
        "model.box_head.norm_epsilon=0.1",
        "model.box_head.conv_width=16",
        "model.box_head.class_agnostic_boxes=true",
        "model.box_head.best_class_only=true",
        "model.mask_head.norm=group",
        "model.mask_head.norm_epsilon=0.1",
        "model.mask_head.class_agnostic=true",
    ],
    "crop": [
        "model.preprocessing={min_size: 128, max_size: 128, placement: centre, padding_value: black, padding: square}",
        "model.roi_align={kind: crop, level_rounding: nearest}",
        "model.mask_head.enabled=false",
        "model.box_ends=inclusive",
    ],
}
"""Overrides of the tests' smallest configuration, by name."""
_SPREADS = {"objectness": 2.0, "deltas": 0.3, "class_logits": 2.0, "box_deltas": 1.0, "masks": 4.0}
"""Standard deviations of what the heads answer, such as trained ones have."""


def small_model(kind: str, folder: Path) -> MaskRCNN:
    """A model of one of `KINDS`.

    Untrained, all scores are within rounding of each other and so are all masks of the threshold: what is found would be a
    matter of chance. These answer as variedly as trained ones.

    Args:
        kind: a key of `KINDS`.
        folder: data set of drawn shapes; gets a file with the configuration.
    """
    path = folder / f"{kind}.yaml"
    path.write_text(TINY, encoding="utf-8")
    keras.utils.set_random_seed(3)
    model = MaskRCNN(load_config(path, [f"data.root={folder}", *KINDS[kind]]).with_categories(CATEGORIES))
    with Image.open(min((folder / "images").iterdir())) as picture:
        _spread(model, np.asarray(picture.convert("RGB"), np.float32)[None])
    return model


def _spread(model: MaskRCNN, images: np.ndarray) -> None:
    """Give the box head biases, without which its file would be another, and scale the last layer of each head."""
    for variable in model.box_head.trainable_variables:
        if variable.name == "bias":
            variable.assign(keras.random.normal(variable.shape, stddev=0.01, seed=variable.shape[0]))
    inputs = {"images": tf.constant(images), "image_sizes": tf.constant([images.shape[1:3]], tf.int32)}
    stages = model.stages()
    seen = stages["trunk"](inputs, training=False)
    for name in ("objectness", "deltas"):
        _scale(model.rpn_head.get_layer(name), name, tf.concat([tf.reshape(level, [-1]) for level in seen[name]], axis=0))
    seen = stages["trunk"](inputs, training=False)
    regions = stages["propose"]({**inputs, "trunk": seen}, training=False)["box_regions"]
    for name, answers in zip(("class_logits", "box_deltas"), model.box_head(regions, training=False), strict=True):
        _scale(model.box_head.get_layer(name), name, answers)
    if model.mask_head is not None:
        regions = tf.image.resize(regions, [MASK_POOL_SIZE, MASK_POOL_SIZE])
        classes = tf.ones([regions.shape[0]], tf.int32)
        _scale(model.mask_predictor, "masks", model.mask_predictor(model.mask_head(regions, training=False), classes))


def _scale(layer: keras.layers.Layer, name: str, answers: tf.Tensor) -> None:
    kernel = layer.trainable_variables[0]
    kernel.assign(kernel * (_SPREADS[name] / tf.math.reduce_std(answers)))
