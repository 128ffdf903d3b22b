"""mrcnn_tf itself."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.peers.worker import Repetition, serve
from tests.parity.gains import gains
from tests.parity.seeded import image
from tests.parity.targets import targets


def prepare(task: str, threads: int, **options) -> Repetition:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    return {"inference": inference, "training": training}[task](**options)


SEEDS = {"v1": 11, "v2": 12}


def _model(version, **changes):
    from mrcnn_tf.weights import torchvision
    from tests.parity import stages

    table = f"torchvision_maskrcnn_resnet50_fpn_{version}.tsv"
    checkpoint = stages.seeded_checkpoint(table, SEEDS[version], gains(version))
    return stages.imported(torchvision, checkpoint, norm_epsilon=1e-5, **changes)


def inference(*, version: str = "v1", height: int, width: int, batch: int = 1) -> Repetition:
    from mrcnn_tf.predict import Predictor

    predictor = Predictor(_model(version), min_size=min(height, width), max_size=max(height, width))
    picture = image(5, height, width)

    def repeat() -> dict:
        found = predictor(picture)
        masks = found.masks()
        return {"detections": len(masks)}

    return repeat


def training(*, height: int, width: int, batch: int = 1, objects: int = 10) -> Repetition:
    import keras
    import tensorflow as tf

    from mrcnn_tf.data.masks import bitmap_coverage
    from tests.parity.stages import swap_xy

    model = _model("v1", backbone={"frozen_stages": 2})
    model.compile(keras.optimizers.SGD(1e-6, momentum=0.9, weight_decay=1e-4))
    fields = {"images": [], "image_sizes": [], "gt_boxes": [], "gt_classes": [], "gt_crowd": [], "gt_masks": []}
    for i in range(batch):
        boxes, labels, masks = targets(5 + i, height, width, objects, 81)
        boxes = swap_xy(boxes)
        fields["images"].append(image(5 + i, height, width))
        fields["image_sizes"].append([height, width])
        fields["gt_boxes"].append(boxes)
        fields["gt_classes"].append(labels)
        fields["gt_crowd"].append(np.zeros(objects, bool))
        fields["gt_masks"].append([np.rint(255 * bitmap_coverage(m, b, (56, 56))) for m, b in zip(masks, boxes)])
    dtypes = {"images": "uint8", "image_sizes": "int32", "gt_classes": "int32", "gt_masks": "uint8", "gt_crowd":"bool", "gt_boxes":"float32"}
    data = {name: tf.constant(np.array(value).astype(dtypes[name])) for name, value in fields.items()}
    step = tf.function(model.train_step)

    def repeat() -> dict:
        return {name: float(value) for name, value in step(data).items()}

    return repeat


if __name__ == "__main__":
    serve(prepare)
