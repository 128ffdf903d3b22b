"""From a mask in the frame of its box to pixels of the image, and to COCO's run lengths.

A pixel belongs to the object where the 28 x 28 probabilities, interpolated bilinearly at the pixel's centre, reach the
threshold (He et al. 2017, section 3.1: "resized to the RoI size, and binarized at a threshold of 0.5"). Cell centres are at half
coordinates, and around the mask are zeros. Because of those zeros no pixel outside the frame can reach 0.5, so only the pixels
inside it are ever computed. The systems that checkpoints come from differ in the frame, which is what a `PasteRule` says.

In a column of pixels the probability is linear from the centre of one row of cells to that of the next, so that it passes the
threshold at most once between them. Only these places are computed, for all columns at once, and the pixels between them are
filled: time and memory of run lengths, which COCO counts down the columns, grow with the width of the box, not with its area.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

MASK_THRESHOLD = 0.5

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
        threshold: above 0; a pixel is set where its probability is at least this, or above it, as the rule says.
        rule: how the mask is laid over its box.

    Returns:
        `(y0, x0, region)`: bool [h, w], the pixels whose centres lie in the mask's frame, and where its first pixel stands in the
        image. h or w is 0 where the frame holds no pixel centre of the image.

    Raises:
        ValueError: the threshold is not above 0.
    """
    runs = _runs(_surrounded(mask_probs), box, image_size, threshold, rule)
    region = np.zeros((runs.height, runs.width), bool)
    _fill(region, runs)
    return runs.y0, runs.x0, region


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
        threshold: above 0; a pixel is set where its probability is at least this, or above it, as the rule says.
        rule: how the mask is laid over its box.

    Returns:
        bool [N, height, width].

    Raises:
        ValueError: the threshold is not above 0.
    """
    masks = np.zeros((len(boxes), *image_size), bool)
    for mask, probabilities, box in zip(masks, _surrounded(mask_probs), boxes, strict=True):
        runs = _runs(probabilities, box, image_size, threshold, rule)
        _fill(mask[runs.y0 : runs.y0 + runs.height, runs.x0 : runs.x0 + runs.width], runs)
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
    height, width = region.shape
    # One empty pixel after each column keeps the runs of neighbouring columns apart; the last one closes the last run.
    padded = np.zeros(width * (height + 1) + 1, bool)
    padded[1:].reshape(width, height + 1)[:, :height] = region.T
    columns, rows = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), height + 1)
    return _compress(_Runs(y0, x0, height, width, rows, columns), image_size)


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
        threshold: above 0; a pixel is set where its probability is at least this, or above it, as the rule says.
        rule: how the mask is laid over its box.

    Returns:
        N times `{"size": [height, width], "counts": str}`, equal to encoding the masks of `paste_masks`.

    Raises:
        ValueError: the threshold is not above 0.
    """
    return [
        _compress(_runs(probabilities, box, image_size, threshold, rule), image_size)
        for probabilities, box in zip(_surrounded(mask_probs), boxes, strict=True)
    ]


class _Runs(NamedTuple):
    """The runs of set pixels in the columns of a region.

    Attributes:
        y0, x0: of the region's first pixel in the image.
        height, width: of the region.
        rows: [E] where runs begin and end, alternately: the first row of a run, then the row after its last; of the region.
        columns: [E] the columns of these, rising.
    """

    y0: int
    x0: int
    height: int
    width: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


def _frame(box: NDArray[Any], cells: NDArray[np.int_], rule: PasteRule) -> NDArray[np.float64]:
    """The `y1, x1, y2, x2` that the mask fills; without area where the box has none."""
    box = np.asarray(box, np.float32)
    return _RULES[rule].frame(box, cells) if (box[2:] > box[:2]).all() else np.zeros(4)


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


def _surrounded(mask_probs: NDArray[Any]) -> NDArray[np.float32]:
    """[..., M, M] to float32 [..., M + 2, M + 2] with a border of zeros; what is no number reaches nothing."""
    *many, height, width = mask_probs.shape
    surrounded = np.zeros((*many, height + 2, width + 2), np.float32)
    surrounded[..., 1:-1, 1:-1] = np.nan_to_num(mask_probs)
    return surrounded


def _runs(
    surrounded: NDArray[np.float32], box: NDArray[Any], image_size: tuple[int, int], threshold: float, rule: PasteRule
) -> _Runs:
    if not threshold > 0:
        raise ValueError(f"the threshold must be above 0, the probability around a mask, got {threshold}")
    cells = np.array(surrounded.shape) - 2
    frame = _frame(box, cells, rule)
    y0, x0, height, width = _extent(frame, image_size)
    cell_height, cell_width = (frame[2:] - frame[:2]) / cells
    # Whole and broken part of a column's place among the columns of cells, whose first, of zeros, has its centre at 0.
    column, across = np.divmod((np.arange(x0, x0 + width) + 0.5 - frame[1]) / cell_width + 0.5, 1)
    left, right = surrounded.T[column.astype(int)], surrounded.T[column.astype(int) + 1]
    down = left + (right - left) * across[:, None].astype(np.float32)
    reaches, level = _RULES[rule].reaches, np.float32(threshold)
    is_set = reaches(down, level)
    columns, above = np.nonzero(is_set[:, 1:] != is_set[:, :-1])
    before, after = down[columns, above].astype(np.float64), down[columns, above + 1].astype(np.float64)
    passage = (above - 0.5 + (level - before) / (after - before)) * cell_height + (frame[0] - y0 - 0.5)
    # A pixel on the spot is as the rule has it: like those before it, or like those after it.
    is_like_before = is_set[columns, above] == reaches(level, level)
    rows = np.where(is_like_before, np.floor(passage) + 1, np.ceil(passage))
    return _Runs(y0, x0, height, width, np.clip(rows, 0, height).astype(np.int64), columns)


def _fill(region: NDArray[np.bool_], runs: _Runs) -> None:
    """Set the pixels of runs in an empty region [h, w]."""
    rows, columns = np.divmod(_odd(runs.rows * runs.width + runs.columns), max(1, runs.width))
    inside = rows < runs.height
    region[rows[inside], columns[inside]] = True
    for above, row in itertools.pairwise(region):
        np.logical_xor(above, row, out=row)


def _extent(frame: NDArray[np.float64], image_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(y0, x0, height, width) of the pixels of the image whose centres lie in the frame; nothing for one without area."""
    y1, x1, y2, x2 = (float(side) for side in frame)
    if not (y2 > y1 and x2 > x1):
        return 0, 0, 0, 0
    first = [min(size, max(0, int(np.ceil(low - 0.5)))) for low, size in zip((y1, x1), image_size, strict=True)]
    past = [min(size, int(np.floor(high - 0.5)) + 1) for high, size in zip((y2, x2), image_size, strict=True)]
    height, width = (max(0, end - start) for start, end in zip(first, past, strict=True))
    return first[0], first[1], height, width


def _compress(runs: _Runs, image_size: tuple[int, int]) -> Rle:
    height, width = image_size
    # To COCO, a run that ends at the foot of a column where the next begins at its head is one run.
    edges = _odd((runs.x0 + runs.columns) * height + runs.y0 + runs.rows)
    counts = np.diff(edges, prepend=0, append=height * width)
    if edges.size and counts[-1] == 0:
        counts = counts[:-1]
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _odd(edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pixels, rising, that are named an odd number of times: where one run ends and the next begins is no edge."""
    pixels, times = np.unique(edges, return_counts=True)
    return pixels[times % 2 == 1]
