"""Losses and gradients of an imported model on the two images of a loss fixture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.data.masks import bitmap_coverage
from mrcnn_tf.modeling.mask_head import MaskTargets
from mrcnn_tf.ops.roi_align import roi_align
from mrcnn_tf.weights.checkpoint import Checkpoint
from tests.parity.seeded import image
from tests.parity.stages import imported, swap_xy
from tests.parity.targets import targets

ROWS = 6
"""Objects of the second image; the first has one fewer."""
EVERYTHING = {
    "rpn": {"num_samples": 30000, "pre_nms_top_k_train": 400, "post_nms_top_k_train": 200},
    "box_head": {"num_samples": 1000},
}
"""The fixtures' samplers draw every positive and every negative."""


class TrainingCase:
    """A fixture's batch, with 56 x 56 crops for masks, and its full-size masks."""

    def __init__(self, importer, checkpoint, fixture, *, first_label, num_labels, frozen_stages):
        """`first_label` is the system's number of class 1, `num_labels` what the targets' labels are below."""
        changes = {**EVERYTHING, "backbone": {"frozen_stages": frozen_stages}}
        self.fixture = fixture
        self.model = imported(importer, checkpoint, norm_epsilon=1e-5, **changes)
        self.names = self._names(importer, checkpoint)
        importer.assign(self.model, checkpoint)
        settings = json.loads(str(fixture["meta"]))
        height, width, seed = (settings[key] for key in ("height", "width", "seed"))
        self.full_masks = np.zeros((2, ROWS, height, width), np.float32)
        self.batch = {
            "images": np.stack([image(seed + i, height, width) for i in range(2)]).astype(np.float32),
            "image_sizes": np.array([[height, width]] * 2, np.int32),
            "gt_boxes": np.zeros((2, ROWS, 4), np.float32),
            "gt_classes": np.zeros((2, ROWS), np.int32),
            "gt_crowd": np.zeros((2, ROWS), bool),
            "gt_masks": np.zeros((2, ROWS, 56, 56), np.uint8),
            "seeds": np.array([[0, 0], [0, 1]], np.int32),
        }
        for i, rows in enumerate((ROWS - 1, ROWS)):
            boxes, _, masks = targets(seed + i, height, width, rows, num_labels)
            np.testing.assert_allclose(boxes, fixture[f"gt_boxes_{i}"])
            self.batch["gt_boxes"][i, :rows] = swap_xy(boxes)
            self.batch["gt_classes"][i, :rows] = fixture[f"gt_labels_{i}"] - first_label + 1
            self.full_masks[i, :rows] = masks
            for row in range(rows):
                coverage = bitmap_coverage(masks[row], self.batch["gt_boxes"][i, row], (56, 56))
                self.batch["gt_masks"][i, row] = np.rint(255 * coverage)

    def _names(self, importer, checkpoint):
        """The checkpoint's name of every trained weight of two or more dimensions, found by importing numbers."""
        names = list(checkpoint.arrays)
        numbers = {name: np.full(checkpoint.arrays[name].shape, number, np.float32) for number, name in enumerate(names)}
        importer.assign(self.model, Checkpoint(checkpoint.path, checkpoint.kind, numbers))
        matrices = [(i, weight) for i, weight in enumerate(self.model.trainable_variables) if len(weight.shape) > 1]
        return {i: names[int(np.asarray(weight).ravel()[0])] for i, weight in matrices}

    def compute(self):
        """Losses by name, and gradients in the order of the trainable variables."""
        values = [weight.value for weight in self.model.trainable_variables]
        with tf.GradientTape() as tape:
            terms = self.model.training_graph({key: tf.constant(value) for key, value in self.batch.items()}, training=True)
            losses = {name: total / normaliser for name, (total, normaliser) in terms.items()}
            loss = tf.add_n(list(losses.values()))
        return losses, tape.gradient(loss, values)

    def gradient_errors(self, gradients):
        """Relative error of the norm of each gradient in the fixture, by the checkpoint's name."""
        expected = dict(zip(self.fixture["grad_names"].tolist(), self.fixture["grad_norms"].tolist(), strict=True))
        assert sorted(self.names.values()) == sorted(expected)
        return {name: abs(float(tf.norm(gradients[i])) / expected[name] - 1) for i, name in self.names.items()}

    def use_full_masks(self, monkeypatch, *, aligned, soft):
        """Make mask targets as torchvision and detectron2 do from bitmaps: adaptive ROIAlign, then maybe 0 and 1."""

        def call(layer, gt_masks, gt_boxes, rois, matched_indices):
            del layer, gt_masks, gt_boxes
            pooled = [
                roi_align(
                    [tf.constant(self.full_masks[i][..., None])],
                    rois[i],
                    matched_indices[i],
                    strides=(1,),
                    output_size=28,
                    sampling_ratio=0,
                    aligned=aligned,
                )[..., 0]
                for i in range(2)
            ]
            coverage = tf.stack(pooled)
            return coverage if soft else tf.cast(coverage >= 0.5, tf.float32)

        monkeypatch.setattr(MaskTargets, "call", call)


def assert_same_training(case, names, monkeypatch, *, aligned, soft):
    """Every loss within 1e-4 and every gradient norm within 1e-3; through our 56 x 56 crops the mask's within 2 %."""
    losses, gradients = case.compute()
    for ours, theirs in names.items():
        tolerance = 0.02 if ours == "mask_loss" else 1e-4
        assert float(losses[ours]) == pytest.approx(float(case.fixture[theirs]), rel=tolerance), ours
    assert max(case.gradient_errors(gradients).values()) < 0.02
    case.use_full_masks(monkeypatch, aligned=aligned, soft=soft)
    losses, gradients = case.compute()
    for ours, theirs in names.items():
        assert float(losses[ours]) == pytest.approx(float(case.fixture[theirs]), rel=1e-4), ours
    errors = case.gradient_errors(gradients)
    assert max(errors.values()) < 1e-3, max(errors, key=errors.get)
