"""Run lengths of 100 masks at 12 megapixels: ours, pycocotools' of pasted masks, torchvision's pasting with these."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from benchmarks.peers.worker import Repetition, serve

HEIGHT, WIDTH = 3000, 4000
COUNT, CELLS = 100, 28
SIDES = {"spread": (0.02, 0.95), "large": (0.5, 1.0)}
"""Shortest and longest side of the boxes, as parts of the picture's; their logarithm is drawn evenly."""
_AT_A_TIME = 10


def prepare(*, task: str, boxes: str) -> Repetition:
    """What is repeated."""
    return {"ours": ours, "pycocotools": pycocotools, "torchvision": torchvision}[task](*drawn(boxes))


def drawn(boxes: str, size: tuple[int, int] = (HEIGHT, WIDTH)) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Probabilities [100, 28, 28] of blobs with uneven outlines, and boxes [100, 4] yxyx inside the picture."""
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(*np.log(SIDES[boxes]), (COUNT, 2))) * size
    corners = rng.uniform(0, 1, (COUNT, 2)) * (size - sides)
    places = (np.arange(CELLS) + 0.5) / CELLS * 2 - 1
    distance = places[:, None] ** 2 + places**2 + rng.normal(0, 0.05, (COUNT, CELLS, CELLS))
    return np.float32(1 / (1 + np.exp(10 * (distance - 0.8)))), np.float32(np.concatenate([corners, corners + sides], axis=1))


def ours(probabilities: NDArray[np.float32], boxes: NDArray[np.float32]) -> Repetition:
    """From probabilities."""
    from mrcnn_tf.paste import encode_masks

    def repeat() -> dict[str, Any]:
        return {"letters": _letters(encode_masks(probabilities, boxes, (HEIGHT, WIDTH), rule="expanded"))}

    return repeat


def pycocotools(probabilities: NDArray[np.float32], boxes: NDArray[np.float32]) -> Repetition:
    """From pasted masks, in pycocotools' own order of pixels."""
    from mrcnn_tf.paste import paste_masks

    rows = zip(probabilities, boxes, strict=True)
    masks = [np.asfortranarray(paste_masks(p[None], b[None], (HEIGHT, WIDTH), rule="expanded")[0], np.uint8) for p, b in rows]

    def repeat() -> dict[str, Any]:
        return {"letters": _letters([coco_mask.encode(mask) for mask in masks])}

    return repeat


def torchvision(probabilities: NDArray[np.float32], boxes: NDArray[np.float32]) -> Repetition:
    """From probabilities, by torchvision's own function."""
    import torch
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    masks, corners = torch.from_numpy(probabilities[:, None]), torch.from_numpy(boxes[:, [1, 0, 3, 2]].copy())

    def repeat() -> dict[str, Any]:
        rles = []
        with torch.inference_mode():
            for rows in torch.arange(COUNT).split(_AT_A_TIME):
                pasted = paste_masks_in_image(masks[rows], corners[rows], (HEIGHT, WIDTH))[:, 0] > 0.5
                rles += [coco_mask.encode(np.asfortranarray(mask.numpy(), np.uint8)) for mask in pasted]
        return {"letters": _letters(rles)}

    return repeat


def _letters(rles: list[dict[str, Any]]) -> int:
    return sum(len(rle["counts"]) for rle in rles)


if __name__ == "__main__":
    serve(prepare)
