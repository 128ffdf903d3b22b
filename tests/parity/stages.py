"""The stages of an imported model one by one, and how they are compared with those of an original."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf

from mrcnn_tf.config import ModelConfig, parse
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.presets import merge
from mrcnn_tf.weights.checkpoint import Checkpoint
from tests.parity.seeded import image, weight

FOLDER = Path(__file__).parent
MAP_TOLERANCE = 2e-3
"""Of a map's standard deviation."""


def seeded_checkpoint(table, seed, gains, kind="torch"):
    """A checkpoint of the parameters that a table lists, filled as the fixtures' originals were."""
    arrays = {name: weight(seed, name, shape, gains) for name, shape in parameter_shapes(table).items()}
    return Checkpoint(Path(table), kind, arrays)


def parameter_shapes(table):
    """Shape of every parameter that a table lists."""
    lines = (FOLDER / "state_dicts" / table).read_text().splitlines()
    return {name: json.loads(f"[{shape.strip('[]')}]") for name, shape in (line.split("\t") for line in lines)}


def imported(importer, checkpoint, norm_epsilon=None, **changes):
    """The model of a checkpoint, with some sections of its configuration changed."""
    found = importer.describe(checkpoint, norm_epsilon=norm_epsilon)
    categories = found.categories or [{"id": i, "name": str(i)} for i in range(1, found.num_classes + 1)]
    values = merge(found.model, changes)
    config = parse(ModelConfig, {**values, "categories": [dict(category) for category in categories]}, "test")
    model = MaskRCNN(config, pretrained=False)
    importer.assign(model, checkpoint)
    return model


class Stages:
    """An imported model on the image of a fixture, which was not resized."""

    def __init__(self, model, fixture, *, samples):
        """`samples` are the strides at which the fixture keeps the maps of P2..P6."""
        self.model = model
        self.fixture = fixture
        self.samples = samples
        settings = json.loads(str(fixture["meta"]))
        picture = image(settings["seed"], settings["height"], settings["width"])
        self.sizes = tf.constant([picture.shape[:2]], tf.int32)
        height, width = fixture["padded_shape"][-2:]
        padded = np.zeros((1, height, width, 3), np.float32)
        padded[0, : picture.shape[0], : picture.shape[1]] = picture
        self.images = tf.constant(padded)

    @cached_property
    def windows(self):
        return self.model.get_layer("image_windows")(self.images, self.sizes)

    @cached_property
    def features(self):
        levels = self.model.fpn(self.model.backbone(self.model.get_layer("normalize")(self.images, self.windows)))
        return [levels[f"p{level}"] for level in (2, 3, 4, 5, 6)]

    @cached_property
    def rpn(self):
        """Logits and deltas, lists over levels."""
        return self.model.rpn_head(self.features)

    def proposals(self):
        """[P, 4] of our own RPN."""
        anchors = self.model.get_layer("anchors")(self.features)
        boxes, is_valid = self.model.get_layer("proposals")(*self.rpn, anchors, self.windows)
        return boxes[0][is_valid[0]].numpy()

    def pooled(self, layer, boxes):
        """[N, size, size, C] of the given boxes [N, 4]."""
        return self.model.get_layer(layer)(self.features[:4], tf.constant(boxes)[None], tf.range(len(boxes)))

    def heads(self, boxes):
        """Class logits [N, K + 1] and deltas [N, K, 4] of the given boxes."""
        return self.model.box_head(self.pooled("box_pool", boxes))

    def detect(self, boxes):
        """Boxes, classes, scores of the given proposals [P, 4]."""
        logits, deltas = self.heads(boxes)
        is_valid = tf.ones([1, len(boxes)], bool)
        detect = self.model.get_layer("detect_boxes")
        found = detect(logits[None], deltas[None], tf.constant(boxes)[None], is_valid, self.windows)
        return [values[0, : int(found[3][0])].numpy() for values in found[:3]]

    def masks(self, boxes, classes):
        """Probabilities [N, 28, 28] of the given boxes and their classes."""
        features = self.model.mask_head(self.pooled("mask_pool", boxes))
        return tf.sigmoid(self.model.mask_predictor(features, tf.constant(classes, tf.int32))).numpy()

    def sampled_features(self):
        """The pyramid as the fixture keeps it: every n-th pixel, [B, C, H, W]."""
        return [to_torch(level)[:, :, ::n, ::n] for level, n in zip(self.features, self.samples, strict=True)]


def to_torch(maps):
    """[B, H, W, C] to [B, C, H, W]."""
    return np.transpose(np.asarray(maps), (0, 3, 1, 2))


def swap_xy(values):
    """Boxes xyxy to yxyx and back, deltas (dx, dy, dw, dh) to (dy, dx, dh, dw) and back."""
    return np.ascontiguousarray(np.asarray(values)[..., [1, 0, 3, 2]])


def assert_same_map(found, expected, what=""):
    """Within `MAP_TOLERANCE`."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    error = np.abs(found - expected).max() / expected.std()
    assert error < MAP_TOLERANCE, f"{what}: {error:.2e} of the standard deviation"


def assert_same_proposals(found, expected):
    """At least 99.5 % within 0.05 pixels, and as many."""
    assert len(found) == len(expected)
    assert matched_boxes(found, expected, 0.05) >= 0.995


def assert_same_detections(found, expected):
    """At least 99 % of the expected (boxes, classes, scores) are found with IoU above 0.99 and a score within 1e-3.

    Returns:
        For each expected one that is found, its row there and the row found.
    """
    boxes, classes, scores = found
    expected_boxes, expected_classes, expected_scores = expected
    rows, overlaps = match_detections((boxes, classes), (expected_boxes, expected_classes))
    is_found = overlaps > 0.99
    assert len(boxes) == len(expected_boxes)
    assert is_found.mean() >= 0.99
    np.testing.assert_allclose(scores[rows][is_found], expected_scores[is_found], atol=1e-3)
    return np.flatnonzero(is_found), rows[is_found]


def matched_boxes(found, expected, tolerance):
    """The part of the expected boxes that have a found one within `tolerance` pixels on every side."""
    distance = np.abs(expected[:, None] - found[None]).max(axis=-1)
    return (distance.min(axis=1) <= tolerance).mean()


def match_detections(found, expected):
    """For each expected detection (boxes, classes) the row of the best found one of its class, and their IoU."""
    (boxes, classes), (expected_boxes, expected_classes) = found, expected
    overlaps = np.where(expected_classes[:, None] == classes[None], iou(expected_boxes, boxes), -1)
    return overlaps.argmax(axis=1), overlaps.max(axis=1)


def iou(boxes, others):
    """[N, M]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(b[:, 2:] - b[:, :2], axis=-1) for b in (boxes, others)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)


def mask_iou(masks, others):
    """Mean IoU of pairs of masks, bool [N, h, w]."""
    union = (masks | others).sum(axis=(1, 2))
    return ((masks & others).sum(axis=(1, 2))[union > 0] / union[union > 0]).mean()


def unpacked_masks(fixture):
    """The full-size masks of a fixture, bool [N, h, w]."""
    shape = fixture["masks_shape"]
    return np.unpackbits(fixture["masks_bits"])[: np.prod(shape)].reshape(shape).astype(bool)
