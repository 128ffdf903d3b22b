"""Data sets: COCO JSON read into tf.data pipelines, images of any kind, the embedded shapes.

The public names are loaded when first used, so that reading annotations does not load TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "DataError": "mrcnn_tf.data.coco",
    "ImageError": "mrcnn_tf.data.images",
    "coco_batches": "mrcnn_tf.data.pipeline",
    "coco_dataset": "mrcnn_tf.data.pipeline",
    "draw_shapes": "mrcnn_tf.data.shapes",
    "load_image": "mrcnn_tf.data.images",
    "read_annotations": "mrcnn_tf.data.coco",
    "read_categories": "mrcnn_tf.data.coco",
    "training_dataset": "mrcnn_tf.data.pipeline",
    "validation_dataset": "mrcnn_tf.data.pipeline",
    "write_coco": "mrcnn_tf.data.coco",
    "write_shapes": "mrcnn_tf.data.shapes",
}

__all__ = [
    "DataError",
    "ImageError",
    "coco_batches",
    "coco_dataset",
    "draw_shapes",
    "load_image",
    "read_annotations",
    "read_categories",
    "training_dataset",
    "validation_dataset",
    "write_coco",
    "write_shapes",
]

if TYPE_CHECKING:
    from mrcnn_tf.data.coco import DataError, read_annotations, read_categories, write_coco
    from mrcnn_tf.data.images import ImageError, load_image
    from mrcnn_tf.data.pipeline import coco_batches, coco_dataset, training_dataset, validation_dataset
    from mrcnn_tf.data.shapes import draw_shapes, write_shapes


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mrcnn_tf.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
