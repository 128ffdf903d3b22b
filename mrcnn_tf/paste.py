"""From a mask in the frame of its box to pixels of the image, and to COCO's run lengths.

A pixel belongs to the object where the 28 x 28 probabilities, interpolated bilinearly at the pixel's centre, reach the
threshold (He et al. 2017, section 3.1: "resized to the RoI size, and binarized at a threshold of 0.5"). Cell centres are at half
coordinates, and around the mask are zeros. Because of those zeros no pixel outside the frame can reach 0.5, so only the pixels
inside it are ever computed. The systems that checkpoints come from differ in the frame, which is what a `PasteRule` says.

Bilinear interpolation is separable: with one row of weights per image row (`Wy` [h, 28]) and per image column
(`Wx` [w, 28]) the pasted probabilities are `Wy m Wx^T`. They are made in strips of whole columns, the order in which COCO
counts its runs, so neither the memory nor the time depends on the size of the image, only on that of the box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

MASK_THRESHOLD = 0.5
_STRIP_PIXELS = 1 << 18
"""Pixels computed at a time: a megabyte of floats, which stays in the processor's cache."""

PasteRule = Literal["centred", "expanded", "stretched"]
"""The frame that a mask fills, and whether a pixel at the threshold is set.

* centred: the box (detectron2's `paste_masks_in_image`); set. Model Garden's `paste_instance_masks_v2` samples the same places.
* expanded: mask and box get a border of one cell, the box's corners are cut to whole pixels, the last of which is inside, and the
  mask is resized to that (Detectron, torchvision's `paste_masks_in_image`); not set. Model Garden's `paste_instance_masks`, with
  which it evaluates, is the same rule.
* stretched: the box, its corners rounded to whole pixels (matterport's `unmold_mask`, which resizes with zeros around the mask);
  set.
"""

Rle = dict[str, Any]
"""COCO's compressed run lengths: `{"size": [height, width], "counts": str}`."""


def paste_region(
    mask_probs: NDArray[np.floating[Any]],
    box: NDArray[Any],
    image_size: tuple[int, int],
    threshold: float = MASK_THRESHOLD,
    rule: PasteRule = "centred",
) -> tuple[int, int, NDArray[np.bool_]]:
    """Paste one mask, giving only the pixels of the image inside its box.

    Args:
        mask_probs: [M, M] probabilities in the frame of the box.
        box: [4] `y1, x1, y2, x2` in pixels of the image; may reach beyond it.
        image_size: (height, width) of the image.
        threshold: a pixel is set where its probability is at least this, or above it, as the rule says.
        rule: how the mask is laid over its box.

    Returns:
        `(y0, x0, region)`: bool [h, w], the pixels whose centres lie in the mask's frame, and where its first pixel stands in the
        image. h or w is 0 where the frame holds no pixel centre of the image.
    """
    frame = _frame(box, mask_probs.shape, rule)
    y0, x0, height, width = _extent(frame, image_size)
    region = np.zeros((height, width), bool)
    for left, strip in _strips(mask_probs, frame, image_size, threshold, rule):
        region[:, left - x0 : left - x0 + len(strip)] = strip.T
    return y0, x0, region


def paste_masks(
    mask_probs: NDArray[np.floating[Any]],
    boxes: NDArray[Any],
    image_size: tuple[int, int],
    threshold: float = MASK_THRESHOLD,
    rule: PasteRule = "centred",
) -> NDArray[np.bool_]:
    """Paste masks into whole images.

    Args:
        mask_probs: [N, M, M] probabilities in the frames of the boxes.
        boxes: [N, 4] `y1, x1, y2, x2` in pixels of the image.
        image_size: (height, width) of the image.
        threshold: a pixel is set where its probability is at least this, or above it, as the rule says.
        rule: how the mask is laid over its box.

    Returns:
        bool [N, height, width]; beside it only a strip of floats is held.
    """
    masks = np.zeros((len(boxes), *image_size), bool)
    for mask, probabilities, box in zip(masks, mask_probs, boxes, strict=True):
        frame = _frame(box, probabilities.shape, rule)
        y0, _, height, _ = _extent(frame, image_size)
        for left, strip in _strips(probabilities, frame, image_size, threshold, rule):
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
    mask_probs: NDArray[np.floating[Any]],
    boxes: NDArray[Any],
    image_size: tuple[int, int],
    threshold: float = MASK_THRESHOLD,
    rule: PasteRule = "centred",
) -> list[Rle]:
    """Run lengths of pasted masks, without ever holding a whole mask.

    Args:
        mask_probs: [N, M, M] probabilities in the frames of the boxes.
        boxes: [N, 4] `y1, x1, y2, x2` in pixels of the image.
        image_size: (height, width) of the image.
        threshold: a pixel is set where its probability is at least this, or above it, as the rule says.
        rule: how the mask is laid over its box.

    Returns:
        N times `{"size": [height, width], "counts": str}`, equal to encoding the masks of `paste_masks`.
    """
    return [
        _encode_mask(probabilities, box, image_size, threshold, rule)
        for probabilities, box in zip(mask_probs, boxes, strict=True)
    ]


def _encode_mask(
    mask_probs: NDArray[Any], box: NDArray[Any], image_size: tuple[int, int], threshold: float, rule: PasteRule
) -> Rle:
    frame = _frame(box, mask_probs.shape, rule)
    y0 = _extent(frame, image_size)[0]
    strips = _strips(mask_probs, frame, image_size, threshold, rule)
    edges = [_run_edges(y0, left, strip, image_size[0]) for left, strip in strips]
    return _compress(np.concatenate(edges) if edges else np.zeros(0, np.int64), image_size)


def _frame(box: NDArray[Any], mask_shape: tuple[int, ...], rule: PasteRule) -> NDArray[np.float64]:
    """The `y1, x1, y2, x2` that the mask fills; without area where the box has none."""
    box = np.asarray(box, np.float32)
    return _RULES[rule].frame(box, np.array(mask_shape)) if (box[2:] > box[:2]).all() else np.zeros(4)


def _same(box: NDArray[np.float32], cells: NDArray[np.int_]) -> NDArray[np.float64]:
    del cells
    return box.astype(np.float64)


def _expanded(box: NDArray[np.float32], cells: NDArray[np.int_]) -> NDArray[np.float64]:
    # All in float32, as torchvision computes: a corner close to a whole number could be cut to the one below.
    half = (box[2:] - box[:2]) * np.float32(0.5) * ((cells + 2) / cells).astype(np.float32)
    centre = (box[2:] + box[:2]) * np.float32(0.5)
    first, last = (np.trunc(corner).astype(np.float64) for corner in (centre - half, centre + half))
    size = np.maximum(last - first + 1, 1)
    border = size / (cells + 2)
    return np.concatenate([first + border, first + size - border])


def _rounded(box: NDArray[np.float32], cells: NDArray[np.int_]) -> NDArray[np.float64]:
    del cells
    return np.rint(box).astype(np.float64)


class _Rule(NamedTuple):
    frame: Callable[[NDArray[np.float32], NDArray[np.int_]], NDArray[np.float64]]
    reaches: np.ufunc


_RULES: dict[PasteRule, _Rule] = {
    "centred": _Rule(_same, np.greater_equal),
    "expanded": _Rule(_expanded, np.greater),
    "stretched": _Rule(_rounded, np.greater_equal),
}


def _strips(
    mask_probs: NDArray[Any], frame: NDArray[np.float64], image_size: tuple[int, int], threshold: float, rule: PasteRule
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield `(image column of the first, bool [columns, h])` from left to right."""
    y0, x0, height, width = _extent(frame, image_size)
    if height == 0 or width == 0:
        return
    mask = np.asarray(mask_probs, np.float32)
    rows = _weights(y0, height, frame[0], frame[2], mask.shape[0])
    columns = _weights(x0, width, frame[1], frame[3], mask.shape[1])
    down = np.ascontiguousarray((rows @ mask).T)
    step = max(1, _STRIP_PIXELS // height)
    for start in range(0, width, step):
        yield x0 + start, _RULES[rule].reaches(columns[start : start + step] @ down, np.float32(threshold))


def _extent(frame: NDArray[np.float64], image_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(y0, x0, height, width) of the pixels of the image whose centres lie in the frame; nothing for one without area."""
    y1, x1, y2, x2 = (float(side) for side in frame)
    if not (y2 > y1 and x2 > x1):
        return 0, 0, 0, 0
    first = [min(size, max(0, int(np.ceil(low - 0.5)))) for low, size in zip((y1, x1), image_size, strict=True)]
    past = [min(size, int(np.floor(high - 0.5)) + 1) for high, size in zip((y2, x2), image_size, strict=True)]
    height, width = (max(0, end - start) for start, end in zip(first, past, strict=True))
    return first[0], first[1], height, width


def _weights(start: int, count: int, low: float, high: float, cells: int) -> NDArray[np.float32]:
    """Weight [count, cells] of each mask cell at each pixel centre; a row falls short of 1 in the outer half cells."""
    centres = np.arange(start, start + count) + 0.5
    positions = (centres - low) / (high - low) * cells - 0.5
    distance = np.abs(positions[:, None] - np.arange(cells))
    return np.maximum(1 - distance, 0).astype(np.float32)


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
