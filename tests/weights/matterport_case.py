"""A seeded network of matterport's in both systems, on a picture that needs no resizing."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf

from mrcnn_tf.weights import matterport
from mrcnn_tf.weights.checkpoint import Checkpoint
from tests.parity import stages
from tests.parity.seeded import image
from tests.weights import matterport_reference as original

NUM_OUTPUTS = 81
SEEDS = {"resnet50": 6, "resnet101": 5}
SIDE, SIZE = 320, (272, 320)
LOWERED = {"min_size": 256, "max_size": SIDE}


def checkpoint(backbone="resnet50", num_outputs=NUM_OUTPUTS, **changes):
    """Seeded parameters; `changes` maps names, `/` written as `__`, to other arrays or to None for none."""
    arrays = original.seeded(backbone, num_outputs, SEEDS[backbone])
    changes = {name.replace("__", "/"): array for name, array in changes.items()}
    return Checkpoint(Path("seeded.h5"), "h5", {n: a for n, a in {**arrays, **changes}.items() if a is not None})


class Case:
    """A seeded network in both systems, and what the original makes of a picture, each stage from the one before."""

    def __init__(self, backbone):
        self.backbone = backbone
        self.checkpoint = checkpoint(backbone)
        self.arrays = self.checkpoint.arrays
        self.model = stages.imported(matterport, self.checkpoint, preprocessing=LOWERED)
        self.picture = image(SEEDS[backbone], *SIZE)
        self.molded, self.window = original.mold(self.picture, SIDE)
        padded = np.zeros((1, SIDE, SIDE, 3), np.float32)
        padded[0, self.window[0] : self.window[2], self.window[1] : self.window[3]] = self.picture
        self.inputs = {"images": tf.constant(padded), "image_sizes": tf.constant([SIZE])}

    @cached_property
    def levels(self):
        return original.pyramid(self.arrays, self.backbone, self.molded)

    @cached_property
    def rpn(self):
        return original.rpn(self.arrays, self.levels)

    @cached_property
    def proposals(self):
        return original.proposals(self.rpn, SIDE)

    @cached_property
    def heads(self):
        return original.box_head(self.arrays, original.pooled(self.levels, self.proposals, 7))

    @cached_property
    def detections(self):
        return original.detections(self.proposals, *self.heads, self.window, SIDE)

    @cached_property
    def mask_regions(self):
        return original.pooled(self.levels, self.detections[0], 14)

    @cached_property
    def masks(self):
        return original.masks(self.arrays, self.mask_regions, self.detections[1])

    def layer(self, name):
        return self.model.get_layer(name)

    @cached_property
    def anchors(self):
        return [self.layer("inside_ends")(level) for level in self.layer("anchors")([tf.constant(x) for x in self.levels])]

    def pooled(self, layer, boxes):
        """Of normalised boxes and the original's pyramid."""
        features = [tf.constant(level) for level in self.levels[:4]]
        return self.layer(layer)(features, inside(boxes)[None], tf.range(len(boxes)))


def inside(boxes):
    """Normalised boxes as they are inside of our network: pixels, ends inclusive."""
    return tf.constant(boxes * np.float32(SIDE - 1))
