"""What every side is given: seeded weights, pictures and truth, from numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.parity.gains import detectron2_gains, gains
from tests.parity.seeded import image, weight
from tests.parity.targets import targets

WEIGHTS = {
    "torchvision_v1": (11, gains("v1")),
    "torchvision_v2": (12, gains("v2")),
    "detectron2": (31, detectron2_gains()),
}
"""Seed and gains of the checkpoints, those of the parity tests; with them all 100 rows of detections are taken."""
_FIRST_PICTURE = 5


def parameters(weights: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """The parameters of a checkpoint by name.

    Args:
        weights: a key of `WEIGHTS`.
        shapes: of every parameter, in torch's layout.
    """
    seed, table = WEIGHTS[weights]
    return {name: np.asarray(weight(seed, name, shape, table)) for name, shape in shapes.items()}


def pictures(count: int, height: int, width: int) -> list[NDArray[np.uint8]]:
    """Pictures [height, width, 3] RGB."""
    return [image(_FIRST_PICTURE + number, height, width) for number in range(count)]


def truth(count: int, height: int, width: int, objects: int, labels: int) -> list[tuple[NDArray, NDArray, NDArray]]:
    """For each picture boxes [N, 4] xyxy float32, labels [N] in 1..labels, masks [N, height, width] uint8."""
    return [targets(_FIRST_PICTURE + number, height, width, objects, labels + 1) for number in range(count)]
