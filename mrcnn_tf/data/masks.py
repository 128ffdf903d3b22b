"""Ground-truth masks: COCO segmentations rasterised in the frame of their box, or as RLE.

A crop holds, for each of 56 x 56 equal cells of the box, the fraction that the object covers. Polygons are cut exactly along
x on 4 scanlines a row, RLEs are averaged exactly over their pixels. Only the crop, 3 kB, travels with the image; it does not
change when the image is resized and is mirrored when the image is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_tf.config import MASK_SIZE

Segmentation: TypeAlias = Sequence[Any] | Mapping[str, Any]
"""As in COCO: polygons (each flat x1, y1, x2, y2, ...) whose union is the object, or an RLE `{"size", "counts"}`."""

SCANLINES = 4
"""Per row of a crop. On COCO polygons the 28 x 28 targets then have an IoU of 0.999 with those of 64; 8 take twice the time."""


def mask_crop(segmentation: Segmentation, box: Sequence[float], image_size: tuple[int, int]) -> np.ndarray:
    """Coverage of an object in the frame of its box.

    Args:
        segmentation: polygons or RLE, pixels of the image.
        box: (y1, x1, y2, x2) in pixels, inside the image.
        image_size: (height, width) of the image.

    Returns:
        [56, 56] uint8: 255 times the covered fraction of each cell.

    Raises:
        ValueError: an RLE that does not describe an image of this size.
    """
    coverage = rasteriser(segmentation, image_size)(box, (MASK_SIZE, MASK_SIZE))
    return np.rint(coverage * 255).astype(np.uint8)


def rasteriser(
    segmentation: Segmentation, image_size: tuple[int, int]
) -> Callable[[Sequence[float] | np.ndarray, tuple[int, int]], np.ndarray]:
    """The covered part of each cell of any box: `polygon_coverage` or `bitmap_coverage` of a segmentation.

    Args:
        segmentation: polygons or RLE, pixels of the image.
        image_size: (height, width) of the image.

    Returns:
        From a box (y1, x1, y2, x2) inside the image and a size (rows, columns) to [rows, columns] float32 in 0..1.

    Raises:
        ValueError: an RLE that does not describe an image of this size.
    """
    if isinstance(segmentation, Mapping):
        return partial(bitmap_coverage, decode_rle(segmentation, image_size))

    def coverage(box: Sequence[float] | np.ndarray, size: tuple[int, int]) -> np.ndarray:
        # Rows as small as pixels, rather than cells of a crop, need no more than one.
        return polygon_coverage(segmentation, box, size, scanlines=SCANLINES if size[0] <= MASK_SIZE else 1)

    return coverage


def polygon_coverage(
    polygons: Sequence[Any], box: Sequence[float] | np.ndarray, size: tuple[int, int], *, scanlines: int = SCANLINES
) -> np.ndarray:
    """Covered fraction of each cell of a box for the union of polygons (each filled by the even-odd rule, as in COCO).

    Args:
        polygons: flat coordinates x1, y1, x2, y2, ... in pixels.
        box: (y1, x1, y2, x2) in pixels; cut into `size` equal cells.
        size: (rows, columns).
        scanlines: of each row of cells, on which the coverage is exact.

    Returns:
        [rows, columns] float32 in 0..1.
    """
    rows, columns = size[0] * scanlines, size[1]
    origin = np.array([box[1], box[0]], np.float64)
    scale = np.array([columns / (box[3] - box[1]), rows / (box[2] - box[0])])
    lines = np.zeros((rows, columns), np.float32)
    for polygon in polygons:
        points = (np.asarray(polygon, np.float64).reshape(-1, 2) - origin) * scale
        np.maximum(lines, _scan(points, rows, columns), out=lines)
    return lines.reshape(size[0], scanlines, columns).mean(axis=1)


def bitmap_coverage(bitmap: np.ndarray, box: Sequence[float] | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Covered fraction of each cell of a box for an object given by its pixels: the exact area average.

    Args:
        bitmap: [height, width], 0 or 1.
        box: (y1, x1, y2, x2) in pixels, inside the bitmap; cut into `size` equal cells.
        size: (rows, columns).

    Returns:
        [rows, columns] float32 in 0..1.
    """
    top, left = int(box[0]), int(box[1])
    inside = bitmap[top : int(np.ceil(box[2])), left : int(np.ceil(box[3]))]
    down = _area_average(inside, box[0] - top, box[2] - top, size[0])
    across = _area_average(down.T, box[1] - left, box[3] - left, size[1])
    return np.clip(across.T, 0, 1).astype(np.float32)


def segmentation_to_rle(segmentation: Segmentation, image_size: tuple[int, int]) -> dict[str, Any]:
    """The compressed RLE of a segmentation; polygons are rasterised as pycocotools does.

    Args:
        segmentation: polygons, or a compressed or uncompressed RLE.
        image_size: (height, width) of the image.

    Returns:
        `{"size": [height, width], "counts": str}`, ready for JSON.

    Raises:
        ValueError: an RLE that does not describe an image of this size.
    """
    height, width = image_size
    if not isinstance(segmentation, Mapping):
        polygons = [np.asarray(polygon, np.float64).tolist() for polygon in segmentation]
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    else:
        counts = rle_counts(segmentation, image_size)
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def bitmap_to_rle(bitmap: np.ndarray) -> dict[str, Any]:
    """The compressed RLE of a bitmap [height, width]: `{"size": [height, width], "counts": str}`."""
    rle = coco_mask.encode(np.asfortranarray(bitmap, np.uint8))
    return {"size": [int(side) for side in bitmap.shape], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Mapping[str, Any], image_size: tuple[int, int]) -> np.ndarray:
    """Pixels of an RLE.

    Args:
        rle: compressed (counts str or bytes) or uncompressed (counts a list).
        image_size: (height, width) it must have.

    Returns:
        [height, width] uint8, 0 or 1.

    Raises:
        ValueError: as `rle_counts`.
    """
    # Not pycocotools' decode: it leaves memory uninitialised where the runs end before the image does.
    counts = rle_counts(rle, image_size)
    runs = (np.arange(len(counts)) % 2).astype(np.uint8)
    return np.repeat(runs, counts).reshape(image_size[1], image_size[0]).T


def rle_counts(rle: Mapping[str, Any], image_size: tuple[int, int]) -> np.ndarray:
    """Lengths of the runs of an RLE, checked.

    Args:
        rle: compressed (counts str or bytes) or uncompressed (counts a list).
        image_size: (height, width) it must have.

    Returns:
        [n] int64, summing to height * width; runs down the columns, the first is background.

    Raises:
        ValueError: missing keys, another size, or counts that are malformed or do not add up.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if size is None or counts is None:
        raise ValueError(f"an RLE needs size and counts, got {sorted(rle)}")
    if list(size) != list(image_size):
        raise ValueError(f"the RLE is of size {list(size)}, the image of size {list(image_size)}")
    lengths = np.asarray(counts) if isinstance(counts, list) else _uncompress(counts)
    if lengths.ndim != 1 or lengths.dtype.kind != "i" or lengths.min() < 0:
        raise ValueError("the RLE counts must be whole numbers, none negative")
    if lengths.sum() != image_size[0] * image_size[1]:
        raise ValueError(f"the RLE counts add up to {lengths.sum()}, the image has {image_size[0] * image_size[1]} pixels")
    return lengths


def _uncompress(counts: str | bytes) -> np.ndarray:
    """Run lengths of COCO's string: groups of 5 bits, low ones first, each from the third on a difference."""
    data = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    if not len(data) or data.min() < 0 or data.max() >= 64 or data[-1] & 32:
        raise ValueError("the RLE counts are not a complete COCO string")
    last = (data & 32) == 0
    first = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = np.arange(len(data)) - np.repeat(first, np.diff(np.append(first, len(data))))
    if place.max() > 6:
        raise ValueError("the RLE counts hold a number of more than 32 bits")
    # The highest bit of a number's last group is its sign.
    digits = np.where(last & (data & 16 != 0), (data & 31) - 32, data & 31)
    lengths = np.add.reduceat(digits << (5 * place), first)
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths


def _scan(points: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Fraction of every (scanline, column) inside one polygon; `points` [n, 2] (x in columns, y in scanlines)."""
    start, stop = points, np.roll(points, -1, axis=0)
    low, high = np.minimum(start[:, 1], stop[:, 1]), np.maximum(start[:, 1], stop[:, 1])
    first = np.clip(np.ceil(low - 0.5), 0, rows).astype(np.int64)
    count = np.maximum(np.clip(np.ceil(high - 0.5), 0, rows).astype(np.int64) - first, 0)
    edge = np.repeat(np.arange(len(points)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count - first, count)
    rise = stop[edge] - start[edge]
    x = start[edge, 0] + (row + 0.5 - start[edge, 1]) * (rise[:, 0] / rise[:, 1])
    return _fill(row, np.clip(x, 0, columns), np.sign(rise[:, 1]), rows, columns)


def _fill(row: np.ndarray, x: np.ndarray, sign: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Winding number to the right of every crossing, averaged over each column, folded by the even-odd rule."""
    stride = columns + 2
    cell = x.astype(np.int64)
    part = x - cell
    at = row * stride + cell
    steps = np.bincount(np.concatenate([at, at + 1]), np.concatenate([sign * (1 - part), sign * part]), rows * stride)
    winding = np.cumsum(steps.reshape(rows, stride)[:, :columns], axis=1, dtype=np.float32)
    # Distance to the nearest even number: 0 outside, 1 inside, 0 again where the polygon overlaps itself.
    return np.abs(winding - 2 * np.rint(winding / 2))


def _area_average(values: np.ndarray, start: float, stop: float, cells: int) -> np.ndarray:
    """Averages of the rows [n, m] over equal cells of start..stop: [cells, m] float64."""
    edges = np.linspace(start, stop, cells + 1)
    row = np.minimum(edges.astype(np.int64), len(values) - 1)
    before = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=before[1:])
    # The sum of all that lies before each edge; it grows evenly within a row.
    until = before[row] + (edges - row)[:, None] * values[row]
    return np.diff(until, axis=0) * (cells / (stop - start))
