"""mrcnn_tf, with the weights of a seeded checkpoint of another system."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.peers import seeded
from benchmarks.peers.convolutions import Product, limit, recorded
from benchmarks.peers.worker import Repetition, serve
from mrcnn_tf.data.masks import bitmap_coverage
from mrcnn_tf.detections import Detections
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.optimizers import CoupledSGD
from mrcnn_tf.paste import paste_masks
from mrcnn_tf.predict import Predictor
from mrcnn_tf.weights import detectron2, torchvision
from mrcnn_tf.weights.checkpoint import Checkpoint
from mrcnn_tf.weights.importer import import_weights
from tests.parity import stages

_TABLES = {
    "torchvision_v1": (torchvision, "torchvision_maskrcnn_resnet50_fpn_v1.tsv"),
    "torchvision_v2": (torchvision, "torchvision_maskrcnn_resnet50_fpn_v2.tsv"),
    "detectron2": (detectron2, "detectron2_mask_rcnn_R_50_FPN.tsv"),
}
_PREDICTORS = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
"""torchvision's layers with rows for each class."""
_TRAINABLE_FROM = 2
"""Stem and first stage are frozen."""


def prepare(*, task: str, threads: int, **options: Any) -> Repetition:
    """What is repeated."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tasks = {
        "inference": inference,
        "training": training,
        "inference_limit": inference_limit,
        "training_limit": training_limit,
    }
    return tasks[task](**options)


def imported(weights: str, *, num_classes: int | None = None, **changes: Any) -> MaskRCNN:
    """The model of a seeded checkpoint.

    Args:
        weights: a key of `seeded.WEIGHTS`, or the path of a checkpoint of Model Garden, which no numpy can write.
        num_classes: another number of classes than the checkpoint's, of torchvision's.
        **changes: sections of the configuration with what is changed in them.
    """
    if weights not in _TABLES:
        return import_weights(weights, overrides=["model.preprocessing.padding=multiple"]).model
    importer, table = _TABLES[weights]
    shapes = {name: tuple(shape) for name, shape in stages.parameter_shapes(table).items()}
    if num_classes is not None:
        shapes = {name: _with_classes(name, shape, num_classes) for name, shape in shapes.items()}
    checkpoint = Checkpoint(Path(table), "torch", seeded.parameters(weights, shapes))
    return stages.imported(importer, checkpoint, norm_epsilon=1e-5, **changes)


def inference(
    *,
    weights: str,
    height: int,
    width: int,
    batch: int = 1,
    precision: str = "float32",
    num_classes: int | None = None,
    **changes: Any,
) -> Repetition:
    """Pictures to detections with pasted masks: one by `Predictor`, several by the model itself."""
    model = imported(weights, num_classes=num_classes, **changes)
    facts: dict[str, Any] = {}
    images = seeded.pictures(batch, height, width)
    if precision != "float32":
        exact = model
        model = exact.with_policy(precision)
        facts = _agreement(*(_predictor(one, height, width)(images[0]) for one in (exact, model)))
    if batch > 1:
        return _several(model, images)
    predictor = _predictor(model, height, width)

    def repeat() -> dict[str, Any]:
        found = predictor(images[0])
        found.masks()
        return {"detections": len(found.scores), **facts}

    return repeat


def _several(model: MaskRCNN, pictures: list) -> Repetition:
    detect = tf.function(lambda inputs: model(inputs, training=False))
    size = pictures[0].shape[:2]
    inputs = {"images": tf.constant(np.stack(pictures), tf.float32), "image_sizes": tf.constant([size] * len(pictures))}

    def repeat() -> dict[str, Any]:
        found = {name: value.numpy() for name, value in detect(inputs).items()}
        for masks, boxes, count in zip(found["detection_masks"], found["detection_boxes"], found["num_detections"], strict=True):
            paste_masks(masks[:count], boxes[:count], size, rule=model.config.mask_head.paste)
        return {"detections": int(found["num_detections"].sum())}

    return repeat


def training(
    *,
    height: int,
    width: int,
    batch: int = 1,
    objects: int = 10,
    precision: str = "float32",
    xla: bool = False,
    recompute: bool = False,
) -> Repetition:
    """One step of SGD: stem and first stage frozen, frozen norms, the whole heads."""
    model = _to_train(precision)
    model.compile(CoupledSGD(1e-6), jit_compile=xla, recompute=recompute)
    # What `fit` calls; given anything but a dataset, it makes a step of what the iterator gives.
    step, batches = model.make_train_function(), itertools.repeat(batch_of(model, batch, height, width, objects))

    def repeat() -> dict[str, Any]:
        return {name: float(value) for name, value in step(batches).items()}

    return repeat


def inference_limit(*, weights: str, height: int, width: int) -> Repetition:
    """The convolutions and products of `inference` and nothing else."""
    return limit(inference_products(weights, height=height, width=width), training=False)


def training_limit(*, height: int, width: int) -> Repetition:
    """The convolutions and products of `training`, forward and backward, and nothing else."""
    return limit(training_products(height=height, width=width), training=True)


def inference_products(weights: str, *, height: int, width: int) -> list[Product]:
    """What `inference` multiplies."""
    model = imported(weights)
    picture = tf.constant(seeded.pictures(1, height, width)[0][None], tf.float32)
    with recorded(model) as products:
        model({"images": picture, "image_sizes": tf.constant([[height, width]])}, training=False)
    return products


def training_products(*, height: int, width: int, batch: int = 1, objects: int = 10) -> list[Product]:
    """What `training` multiplies."""
    model = _to_train("float32")
    data = {**batch_of(model, batch, height, width, objects), "seeds": tf.constant([[0, number] for number in range(batch)])}
    with tf.GradientTape(watch_accessed_variables=False) as tape, recorded(model) as products:
        tape.watch([variable.value for variable in model.trainable_variables])
        model.training_graph(data, training=True)
    return products


def _predictor(model: MaskRCNN, height: int, width: int) -> Predictor:
    return Predictor(model, min_size=min(height, width), max_size=max(height, width))


def _to_train(precision: str) -> MaskRCNN:
    model = imported("torchvision_v1", backbone={"frozen_stages": _TRAINABLE_FROM})
    return model if precision == "float32" else model.with_policy(precision)


def batch_of(model: MaskRCNN, count: int, height: int, width: int, objects: int) -> dict[str, tf.Tensor]:
    """Pictures and truth as `fit` takes them (docs/contracts.md), `objects` in each picture."""
    truth = seeded.truth(count, height, width, objects, model.config.num_classes)
    boxes = np.stack([stages.swap_xy(found[0]) for found in truth])
    masks = [
        [np.rint(255 * bitmap_coverage(mask, box, (56, 56))) for mask, box in zip(found[2], rows, strict=True)]
        for found, rows in zip(truth, boxes, strict=True)
    ]
    return {
        "images": tf.constant(np.stack(seeded.pictures(count, height, width))),
        "image_sizes": tf.constant([[height, width]] * count),
        "gt_boxes": tf.constant(boxes),
        "gt_classes": tf.constant(np.stack([found[1] for found in truth]).astype(np.int32)),
        "gt_crowd": tf.zeros([count, objects], tf.bool),
        "gt_masks": tf.constant(np.array(masks, np.uint8)),
    }


def _with_classes(name: str, shape: tuple[int, ...], num_classes: int) -> tuple[int, ...]:
    if not any(layer in name for layer in _PREDICTORS):
        return shape
    return ((num_classes + 1) * (4 if "bbox_pred" in name else 1), *shape[1:])


def _agreement(exact: Detections, found: Detections) -> dict[str, Any]:
    """How many detections are the same object (class, IoU above 0.9), and what differs between those."""
    sides = [(one.boxes, one.classes) for one in (found, exact)]
    rows, overlaps = stages.match_detections(*sides)
    same = overlaps > 0.9
    return {
        "same_detections": round(float(same.mean()), 3),
        "score_difference": round(float(np.abs(found.scores[rows] - exact.scores)[same].max(initial=0)), 4),
        "mask_iou": round(float(stages.mask_iou(found.masks()[rows][same], exact.masks()[same])), 4),
    }


if __name__ == "__main__":
    serve(prepare)
