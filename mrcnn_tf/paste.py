"""From a mask in the frame of its box to pixels of the image, and to COCO's run lengths.

A pixel belongs to the object where the 28 x 28 probabilities, interpolated bilinearly at the pixel's centre, reach the
threshold. That is detectron2's `paste_masks_in_image` (He et al. 2017, section 3.1: "resized to the RoI size, and
binarized at a threshold of 0.5"), with cell centres at half coordinates and zeros around the mask. Because of those
zeros no pixel outside the box can reach 0.5, so only the pixels inside the box are ever computed.

Bilinear interpolation is separable: with one row of weights per image row (`Wy` [h, 28]) and per image column
(`Wx` [w, 28]) the pasted probabilities are `Wy m Wx^T`. They are made in strips of whole columns, the order in which COCO
counts its runs, so neither the memory nor the time depends on the size of the image, only on that of the box.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

MASK_THRESHOLD = 0.5
_STRIP_PIXELS = 1 << 18
"""Pixels computed at a time: a megabyte of floats, which stays in the processor's cache."""

Rle = dict[str, Any]
"""COCO's compressed run lengths: `{"size": [height, width], "counts": str}`."""


def paste_region(
    mask_probs: NDArray[np.floating[Any]], box: NDArray[Any], image_size: tuple[int, int], threshold: float = MASK_THRESHOLD
) -> tuple[int, int, NDArray[np.bool_]]:
    """Paste one mask, giving only the pixels of the image inside its box.

    Args:
        mask_probs: [M, M] probabilities in the frame of the box.
        box: [4] `y1, x1, y2, x2` in pixels of the image; may reach beyond it.
        image_size: (height, width) of the image.
        threshold: a pixel is set where its probability is at least this.

    Returns:
        `(y0, x0, region)`: bool [h, w], the pixels whose centres lie in the box, and where its first pixel stands in the
        image. h or w is 0 where the box holds no pixel centre of the image.
    """
    y0, x0, height, width = _extent(box, image_size)
    region = np.zeros((height, width), bool)
    for left, strip in _strips(mask_probs, box, image_size, threshold):
        region[:, left - x0 : left - x0 + len(strip)] = strip.T
    return y0, x0, region


def paste_masks(
    mask_probs: NDArray[np.floating[Any]], boxes: NDArray[Any], image_size: tuple[int, int], threshold: float = MASK_THRESHOLD
) -> NDArray[np.bool_]:
    """Paste masks into whole images.

    Args:
        mask_probs: [N, M, M] probabilities in the frames of the boxes.
        boxes: [N, 4] `y1, x1, y2, x2` in pixels of the image.
        image_size: (height, width) of the image.
        threshold: a pixel is set where its probability is at least this.

    Returns:
        bool [N, height, width]; beside it only a strip of floats is held.
    """
    masks = np.zeros((len(boxes), *image_size), bool)
    for mask, probabilities, box in zip(masks, mask_probs, boxes, strict=True):
        y0, _, height, _ = _extent(box, image_size)
        for left, strip in _strips(probabilities, box, image_size, threshold):
            mask[y0 : y0 + height, left : left + len(strip)] = strip.T
    return masks


def encode_region(y0: int, x0: int, region: NDArray[np.bool_], image_size: tuple[int, int]) -> Rle:
    """Run lengths of the image that is empty but for a region.

    Args:
        y0: image row of the region's first row.
        x0: image column of the region's first column.
        region: bool [h, w], inside the image.
        image_size: (height, width) of the image.

    Returns:
        What `pycocotools.mask.encode` gives for the whole image, with `counts` as str.

    Raises:
        ValueError: the region reaches beyond the image.
    """
    if y0 < 0 or x0 < 0 or y0 + region.shape[0] > image_size[0] or x0 + region.shape[1] > image_size[1]:
        raise ValueError(f"a region of {region.shape} at ({y0}, {x0}) does not fit into an image of {image_size}")
    return _compress(_run_edges(y0, x0, region.T, image_size[0]), image_size)


def encode_masks(
    mask_probs: NDArray[np.floating[Any]], boxes: NDArray[Any], image_size: tuple[int, int], threshold: float = MASK_THRESHOLD
) -> list[Rle]:
    """Run lengths of pasted masks, without ever holding a whole mask.

    Args:
        mask_probs: [N, M, M] probabilities in the frames of the boxes.
        boxes: [N, 4] `y1, x1, y2, x2` in pixels of the image.
        image_size: (height, width) of the image.
        threshold: a pixel is set where its probability is at least this.

    Returns:
        N times `{"size": [height, width], "counts": str}`, equal to encoding the masks of `paste_masks`.
    """
    return [_encode_mask(probabilities, box, image_size, threshold) for probabilities, box in zip(mask_probs, boxes, strict=True)]


def _encode_mask(mask_probs: NDArray[Any], box: NDArray[Any], image_size: tuple[int, int], threshold: float) -> Rle:
    y0 = _extent(box, image_size)[0]
    edges = [_run_edges(y0, left, strip, image_size[0]) for left, strip in _strips(mask_probs, box, image_size, threshold)]
    return _compress(np.concatenate(edges) if edges else np.zeros(0, np.int64), image_size)


def _strips(
    mask_probs: NDArray[Any], box: NDArray[Any], image_size: tuple[int, int], threshold: float
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield `(image column of the first, bool [columns, h])` from left to right."""
    y0, x0, height, width = _extent(box, image_size)
    if height == 0 or width == 0:
        return
    mask = np.asarray(mask_probs, np.float32)
    rows = _weights(y0, height, box[0], box[2], mask.shape[0])
    columns = _weights(x0, width, box[1], box[3], mask.shape[1])
    down = np.ascontiguousarray((rows @ mask).T)
    step = max(1, _STRIP_PIXELS // height)
    for start in range(0, width, step):
        yield x0 + start, columns[start : start + step] @ down >= np.float32(threshold)


def _extent(box: NDArray[Any], image_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(y0, x0, height, width) of the pixels of the image whose centres lie in the box; nothing for a box without area."""
    y1, x1, y2, x2 = (float(side) for side in box)
    if not (y2 > y1 and x2 > x1):
        return 0, 0, 0, 0
    first = [min(size, max(0, int(np.ceil(low - 0.5)))) for low, size in zip((y1, x1), image_size, strict=True)]
    past = [min(size, int(np.floor(high - 0.5)) + 1) for high, size in zip((y2, x2), image_size, strict=True)]
    height, width = (max(0, end - start) for start, end in zip(first, past, strict=True))
    return first[0], first[1], height, width


def _weights(start: int, count: int, low: float, high: float, cells: int) -> NDArray[np.float32]:
    """Weight [count, cells] of each mask cell at each pixel centre; a row falls short of 1 in the outer half cells."""
    centres = np.arange(start, start + count, dtype=np.float32) + np.float32(0.5)
    positions = (centres - np.float32(low)) / (np.float32(high) - np.float32(low)) * np.float32(cells) - np.float32(0.5)
    distance = np.abs(positions[:, None] - np.arange(cells, dtype=np.float32))
    return np.maximum(np.float32(1) - distance, np.float32(0))


def _run_edges(y0: int, x0: int, columns: NDArray[np.bool_], image_height: int) -> NDArray[np.int64]:
    """Where runs begin and end, alternately, as column-major pixel numbers of the image; columns is [w, h]."""
    width, height = columns.shape
    # One empty pixel after each column keeps the runs of neighbouring columns apart; the last one closes the last run.
    padded = np.zeros(width * (height + 1) + 1, bool)
    padded[1:].reshape(width, height + 1)[:, :height] = columns
    changes = np.flatnonzero(padded[1:] != padded[:-1])
    column, row = np.divmod(changes, height + 1)
    return (x0 + column) * image_height + (y0 + row)


def _compress(edges: NDArray[np.int64], image_size: tuple[int, int]) -> Rle:
    height, width = image_size
    # A run that ends at the foot of a column where the next begins at its head is one run to COCO.
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1
    edges = np.delete(edges, np.concatenate([joined, joined + 1]))
    counts = np.diff(edges, prepend=0, append=height * width)
    if edges.size and counts[-1] == 0:
        counts = counts[:-1]
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
