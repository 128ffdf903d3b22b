"""Model Garden's Mask R-CNN, run by an interpreter that has tf-models-official (`make .venv-model-garden/.ready`)."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import exp_factory
from official.vision.dataloaders import maskrcnn_input
from official.vision.ops import box_ops, mask_ops, preprocess_ops
from official.vision.tasks.maskrcnn import MaskRCNNTask

from benchmarks.peers import seeded
from benchmarks.peers.worker import Repetition, serve
from tests.weights import model_garden_original

_STAGE_BLOCKS = 3
"""Residual blocks of ResNet-50's first stage."""


def prepare(*, task: str, threads: int, **options: Any) -> Repetition:
    """What is repeated."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    return {"inference": inference, "training": training}[task](**options)


def inference(*, height: int, width: int, batch: int = 1) -> Repetition:
    """Pictures to detections with masks pasted as its COCO evaluation does it, before the encoding.

    As its parser does, pictures are padded to multiples of 64, P6's stride: 800 x 1216 becomes 832 x 1216.
    """
    task = _task(height, width)
    model = _model(task)
    inputs = tf.constant(np.stack(seeded.pictures(batch, height, width)))

    @tf.function
    def detect(pictures: tf.Tensor) -> dict[str, tf.Tensor]:
        prepared = [
            preprocess_ops.resize_and_crop_image(preprocess_ops.normalize_image(picture), (height, width), _padded(height, width))
            for picture in tf.unstack(pictures)
        ]
        images, infos = (tf.stack(values) for values in zip(*prepared, strict=True))
        outputs = model(images, image_shape=infos[:, 1], training=False)
        boxes = outputs["detection_boxes"] / tf.tile(infos[:, 2:3], [1, 1, 2])
        return {"boxes": boxes, "masks": outputs["detection_masks"], "count": outputs["num_detections"]}

    def repeat() -> dict[str, Any]:
        found = {name: value.numpy() for name, value in detect(inputs).items()}
        for masks, boxes in zip(found["masks"], found["boxes"], strict=True):
            mask_ops.paste_instance_masks(masks, box_ops.yxyx_to_xywh(boxes), height, width)
        return {"detections": int(found["count"].sum())}

    return repeat


def training(*, height: int, width: int, batch: int = 1, objects: int = 10) -> Repetition:
    """One step of SGD by the task's own `train_step`: stem and first stage frozen, frozen norms, the whole heads.

    Its configuration can freeze only the whole trunk, and no norms; here layers are frozen one by one. Its parser matches and
    samples anchors in the input pipeline: of the others that is part of the step.
    """
    tf.random.set_seed(0)
    task = _task(height, width)
    model = _model(task)
    _freeze(model)
    optimizer = tf_keras.optimizers.SGD(1e-6, momentum=0.9)
    metrics = task.build_metrics(training=True)
    data = _batch(task, batch, height, width, objects)

    @tf.function
    def step() -> dict[str, tf.Tensor]:
        task.train_step(data, model, optimizer, metrics)
        return {metric.name: metric.result() for metric in metrics}

    def repeat() -> dict[str, Any]:
        for metric in metrics:
            metric.reset_state()
        return {name: float(value) for name, value in step().items()}

    return repeat


def _padded(height: int, width: int) -> list[int]:
    return preprocess_ops.compute_padded_size([height, width], 64)


def _task(height: int, width: int) -> MaskRCNNTask:
    """The published experiment, for one device, in float32, with the others' weight decay; its box head has four convolutions."""
    settings = exp_factory.get_exp_config("maskrcnn_resnetfpn_coco").task
    settings.model.input_size = [*_padded(height, width), 3]
    settings.model.norm_activation.use_sync_bn = False
    settings.losses.l2_weight_decay = 1e-4
    return MaskRCNNTask(settings)


def _model(task: MaskRCNNTask) -> tf_keras.Model:
    """With the weights of the import's tests."""
    model = task.build_model()
    names = [variable.name for variable in model.variables]
    assert len(names) == len(set(names)), "the weights are told apart by their names"
    for variable in model.variables:
        variable.assign(model_garden_original.weight(variable.name.removesuffix(":0"), tuple(variable.shape)))
    for layer in model.backbone.layers:
        if hasattr(layer, "_norm3"):
            layer._norm3.gamma.assign(model_garden_original.LAST_NORM_GAIN * layer._norm3.gamma)
    return model


def _freeze(model: tf_keras.Model) -> None:
    for module in model.submodules:
        if isinstance(module, tf_keras.layers.BatchNormalization):
            module.trainable = False
    blocks = [layer for layer in model.backbone.layers if hasattr(layer, "_norm3")]
    for layer in model.backbone.layers[: model.backbone.layers.index(blocks[_STAGE_BLOCKS])]:
        layer.trainable = False


def _batch(task: MaskRCNNTask, count: int, height: int, width: int, objects: int) -> tuple[tf.Tensor, dict[str, Any]]:
    """Images and labels as the parser makes them."""
    model, settings = task.task_config.model, task.task_config.train_data.parser
    parser = maskrcnn_input.Parser(
        output_size=[height, width],
        min_level=model.min_level,
        max_level=model.max_level,
        num_scales=model.anchor.num_scales,
        aspect_ratios=model.anchor.aspect_ratios,
        anchor_size=model.anchor.anchor_size,
        rpn_match_threshold=settings.rpn_match_threshold,
        rpn_unmatched_threshold=settings.rpn_unmatched_threshold,
        rpn_batch_size_per_im=settings.rpn_batch_size_per_im,
        rpn_fg_fraction=settings.rpn_fg_fraction,
        max_num_instances=settings.max_num_instances,
        include_mask=True,
        mask_crop_size=settings.mask_crop_size,
        dtype="float32",
    )
    parse = parser.parse_fn(is_training=True)
    pictures = seeded.pictures(count, height, width)
    truth = seeded.truth(count, height, width, objects, model.num_classes - 1)
    parsed = [parse(_decoded(picture, *found)) for picture, found in zip(pictures, truth, strict=True)]
    return tf.nest.map_structure(lambda *values: tf.stack(values), *parsed)


def _decoded(picture: np.ndarray, boxes: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> dict[str, tf.Tensor]:
    """A record as the decoder gives it to the parser."""
    height, width = picture.shape[:2]
    return {
        "image": tf.constant(picture),
        "groundtruth_classes": tf.constant(labels, tf.int64),
        "groundtruth_boxes": tf.constant(boxes[:, [1, 0, 3, 2]] / np.float32([height, width, height, width])),
        "groundtruth_instance_masks": tf.constant(masks, tf.float32),
        "groundtruth_is_crowd": tf.zeros([len(labels)], tf.bool),
    }


if __name__ == "__main__":
    serve(prepare)
