"""Runs Model Garden's own Mask R-CNN with seeded weights, for `test_model_garden`; needs tf-models-official, not mrcnn_tf.

`python -m tests.weights.model_garden_original FOLDER` writes `plain/ckpt`, a checkpoint of the model alone, `trainer/ckpt-1`, one
as Model Garden's trainer writes it, with an optimizer, and `stages.npz`, what each stage of the model gives.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import exp_factory
from official.vision.configs import maskrcnn as _registers_the_experiment  # noqa: F401
from official.vision.modeling import factory
from official.vision.ops import anchor, box_ops, mask_ops, preprocess_ops

from tests.parity.seeded import image, rng_for

SEED = 51
INPUT_SIZE = (320, 320)
PICTURE_SIZE = (400, 520)
"""Shrunk to 246 x 320: the lower part of the input is padding."""
NUM_POOLED = 64
LEVELS = ("2", "3", "4", "5", "6")
GAINS = (
    ("post_hoc_", 0.12),
    ("rpn-scores", 0.8),
    ("rpn-boxes", 0.15),
    ("detection-scores", 3.0),
    ("detection-boxes", 0.8),
)
"""Part of a name and the factor of its arrays, so that scores, boxes and masks are spread out."""
LAST_NORM_GAIN = 0.3
"""Of the last norm of each block of the trunk."""


def main(folder: Path) -> None:
    """Write the checkpoints and the stages."""
    model = build()
    tf.train.Checkpoint(model=model).write(str(folder / "plain" / "ckpt"))
    optimizer = tf_keras.optimizers.SGD(momentum=0.9)
    optimizer.build(model.trainable_variables)
    trainer = tf.train.Checkpoint(
        global_step=tf.Variable(7, dtype=tf.int64), model=model, optimizer=optimizer, **model.checkpoint_items
    )
    trainer.save(str(folder / "trainer" / "ckpt"))
    np.savez(folder / "stages.npz", **stages(model))


def build() -> tf_keras.Model:
    """The experiment's model with seeded weights; only the size of its input is not the experiment's."""
    config = exp_factory.get_exp_config("maskrcnn_resnetfpn_coco").task.model
    config.input_size = [*INPUT_SIZE, 3]
    model = factory.build_maskrcnn(tf_keras.layers.InputSpec(shape=[1, *INPUT_SIZE, 3]), config)
    # The heads make their variables when they are called.
    model(tf.zeros([1, *INPUT_SIZE, 3]), tf.constant([INPUT_SIZE], tf.float32), training=False)
    names = [variable.name for variable in model.variables]
    assert len(names) == len(set(names)), "the weights are told apart by their names"
    for variable in model.variables:
        variable.assign(weight(variable.name.removesuffix(":0"), tuple(variable.shape)))
    for layer in model.backbone.layers:
        if hasattr(layer, "_norm3"):
            layer._norm3.gamma.assign(LAST_NORM_GAIN * layer._norm3.gamma)
    return model


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A pure function of the seed, the variable's name and its shape."""
    rng, leaf = rng_for(SEED, name), name.rsplit("/", 1)[-1]
    gain = next((gain for part, gain in GAINS if part in name), 1.0)
    if leaf == "moving_variance":
        return rng.uniform(0.8, 1.2, shape)
    if leaf == "gamma":
        return gain * rng.uniform(0.9, 1.1, shape)
    if len(shape) == 1:
        return gain * rng.normal(0.0, 0.1, shape)
    num_inputs = shape[-1] if "upsampling" in name else int(np.prod(shape[:-1]))
    kernel = gain * rng.normal(0.0, np.sqrt(2.0 / num_inputs), shape)
    # Inputs are positive, after a ReLU: without this one class would be the best one everywhere.
    return kernel - kernel.mean(axis=tuple(range(kernel.ndim - 1))) if "detection-" in name else kernel


def stages(model: tf_keras.Model) -> dict[str, np.ndarray]:
    """What each stage gives for one picture, in float32 and without a batch axis."""
    picture = image(SEED, *PICTURE_SIZE)
    inputs, info = preprocess_ops.resize_and_crop_image(
        preprocess_ops.normalize_image(picture), INPUT_SIZE, padded_size=INPUT_SIZE
    )
    # As Model Garden's evaluation does it: boxes are cut at the size wanted (info[1]), which the padding belongs to.
    outputs = model(inputs[None], info[None, 1], training=False)
    features = outputs["decoder_features"]
    anchors = anchor.build_anchor_generator(2, 6, 1, [0.5, 1.0, 2.0], 8.0)(INPUT_SIZE)
    tiled = {level: boxes[None] for level, boxes in anchors.items()}
    proposals, scores = model.roi_generator(outputs["rpn_boxes"], outputs["rpn_scores"], tiled, info[None, 1], training=False)
    boxes = outputs["detection_boxes"]
    found = {
        "picture": picture,
        "inputs": inputs,
        "picture_size": info[0],
        "scale": info[2],
        "proposals": proposals[0],
        "proposal_scores": scores[0],
        "pooled": model.roi_aligner(features, proposals[:, :NUM_POOLED])[0],
        "class_logits": outputs["class_outputs"][0],
        "box_deltas": outputs["box_outputs"][0],
        "boxes": boxes[0],
        "scores": outputs["detection_scores"][0],
        "classes": outputs["detection_classes"][0],
        "count": outputs["num_detections"][0],
        "pooled_for_masks": model.mask_roi_aligner(features, boxes[:, :NUM_POOLED])[0],
        "masks": outputs["detection_masks"][0],
        "pasted": np.packbits(paste(outputs, info)),
    }
    for level in LEVELS:
        found[f"p{level}"] = features[level][0]
        found[f"objectness{level}"] = outputs["rpn_scores"][level][0]
        found[f"deltas{level}"] = outputs["rpn_boxes"][level][0]
        found[f"anchors{level}"] = anchors[level]
    return {name: np.asarray(value) for name, value in {**found, **regions(model)}.items()}


def regions(model: tf_keras.Model) -> dict[str, np.ndarray]:
    """Regions of all five levels and of less than a pixel, which the picture does not have, pooled from maps of 4 channels."""
    rng = rng_for(SEED, "regions")
    maps = {level: rng.normal(size=(1, 1024 >> int(level), 1024 >> int(level), 4)).astype(np.float32) for level in LEVELS}
    sides = np.exp(rng.uniform(np.log(0.5), np.log(1024), (400, 1)) + rng.uniform(-0.3, 0.3, (400, 2))).clip(0.5, 1024)
    corners = rng.uniform(0, 1, (400, 2)) * (1024 - sides)
    rois = np.concatenate([corners, corners + sides], axis=1).clip(0, 1024).astype(np.float32)
    found = {f"map{level}": values[0] for level, values in maps.items()}
    return {**found, "rois": rois, "pooled_rois": model.roi_aligner(maps, rois[None])[0]}


def paste(outputs: dict, info: tf.Tensor) -> np.ndarray:
    """Masks [100, height, width] in the picture, as Model Garden's COCO evaluation makes them."""
    boxes = outputs["detection_boxes"][0].numpy() / np.tile(info[2].numpy(), 2)
    return mask_ops.paste_instance_masks(outputs["detection_masks"][0].numpy(), box_ops.yxyx_to_xywh(boxes), *PICTURE_SIZE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
