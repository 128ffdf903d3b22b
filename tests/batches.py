"""Small batches and configurations for the tests of the model."""

from __future__ import annotations

from typing import Any

import numpy as np

from mrcnn_tf.config import Config, ModelConfig


def make_batch(
    batch: int = 2, side: int = 128, rows: int = 4, *, seed: int = 0, empty: tuple[int, ...] = ()
) -> dict[str, np.ndarray]:
    """A batch as docs/contracts.md has it; the images in `empty` have no objects. The last row of the others is a crowd."""
    random = np.random.default_rng(seed)
    corners = random.uniform(0, side - 70, (batch, rows, 2))
    boxes = np.concatenate([corners, corners + random.uniform(10, 60, (batch, rows, 2))], axis=-1).astype(np.float32)
    classes = random.integers(1, 5, (batch, rows)).astype(np.int32)
    crowd = np.zeros((batch, rows), bool)
    crowd[:, -1] = True
    for image in empty:
        boxes[image], classes[image], crowd[image] = 0, 0, False
    return {
        "images": random.integers(0, 256, (batch, side, side, 3)).astype(np.uint8),
        "image_sizes": np.tile(np.array([[side, side]], np.int32), (batch, 1)),
        "gt_boxes": boxes,
        "gt_classes": classes,
        "gt_crowd": crowd,
        "gt_masks": random.integers(0, 256, (batch, rows, 56, 56)).astype(np.uint8),
    }


def with_model(config: Config, **sections: Any) -> Config:
    """The configuration with some keys of the model's sections changed, or some keys of the model itself."""
    values = config.model.model_dump()
    for name, changes in sections.items():
        values[name] = {**values[name], **changes} if isinstance(changes, dict) else changes
    return config.model_copy(update={"model": ModelConfig.model_validate(values)})
