"""What of a picture is seen in training, and where its objects are then.

A view is the picture resized, cut to a window, perhaps mirrored, and laid into the padded input. Objects are arrays here, not
tensors: their number is small, and the masks of cut ones are drawn anew from their segmentation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeAlias

import numpy as np

from mrcnn_tf.config import MASK_SIZE
from mrcnn_tf.data.masks import rasteriser

Box: TypeAlias = Sequence[float] | np.ndarray
"""(y1, x1, y2, x2)."""
Coverage: TypeAlias = Callable[[Box, tuple[int, int]], np.ndarray]
"""From a box and the numbers of its rows and columns of cells to the covered part of each, float32 in 0..1."""

CELLS = (MASK_SIZE, MASK_SIZE)
"""Of the mask crops in the batch."""

_TIGHTENINGS = 2
"""How often a cut box is drawn closer around what is left of its mask: each time the slack falls to a cell of the box before."""


@dataclass(frozen=True, eq=False)
class Objects:
    """Objects of a picture, N of them.

    Attributes:
        boxes: [N, 4] float32, pixels.
        classes: [N] int32.
        crowd: [N] bool.
        masks: [N, 56, 56] uint8 coverage in the frame of the box; None for boxes only.
        shapes: their masks at any resolution, in the pixels of the boxes; None where there is no segmentation, or none is needed.
    """

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    masks: np.ndarray | None
    shapes: tuple[Coverage | None, ...]

    def chosen(self, rows: np.ndarray) -> Objects:
        """Some of them; `rows` are numbers, in the order wanted."""
        masks = None if self.masks is None else self.masks[rows]
        shapes = tuple(self.shapes[row] for row in rows)
        return Objects(self.boxes[rows], self.classes[rows], self.crowd[rows], masks, shapes)


class Segment:
    """A COCO segmentation as text, read when its coverage is first asked for."""

    def __init__(self, text: bytes, image_size: tuple[int, int]):
        """Keep the JSON of a segmentation and the (height, width) of its picture."""
        self._text, self._size = text, image_size

    def __call__(self, box: Box, size: tuple[int, int]) -> np.ndarray:
        """As `Coverage`, in pixels of the picture."""
        return self._coverage(box, size)

    @cached_property
    def _coverage(self) -> Coverage:
        return rasteriser(json.loads(self._text), self._size)


@dataclass(frozen=True)
class View:
    """A view of a picture; sizes are (height, width).

    Attributes:
        picture: size of the picture as it is in its file.
        resized: size of the whole picture after resizing.
        window: (top, left, bottom, right), whole pixels of the resized picture.
        flip: mirrored left and right.
        offset: (rows, columns) of the padded input before the window.
    """

    picture: tuple[int, int]
    resized: tuple[int, int]
    window: tuple[int, int, int, int]
    flip: bool = False
    offset: tuple[int, int] = (0, 0)

    @property
    def size(self) -> tuple[int, int]:
        """Of the window."""
        top, left, bottom, right = self.window
        return bottom - top, right - left

    def packed(self) -> np.ndarray:
        """[9] int32: resized size, window, flip, offset."""
        return np.array([*self.resized, *self.window, self.flip, *self.offset], np.int32)

    def resize(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] of the picture in pixels of the resized picture, by the true ratio of each axis."""
        # Multiplied before divided: a box that ends at the edge of the picture then still does.
        return boxes * np.array([*self.resized] * 2, np.float32) / np.array([*self.picture] * 2, np.float32)

    def cut(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] of the resized picture, clipped to the window; those outside of it have no area."""
        return np.clip(boxes, np.array(self.window[:2] * 2, np.float32), np.array(self.window[2:] * 2, np.float32))

    def lay(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] of the resized picture, inside the window, in pixels of the padded input."""
        moved = boxes - np.array(self.window[:2] * 2, np.float32)
        if self.flip:
            moved = np.stack([moved[:, 0], self.size[1] - moved[:, 3], moved[:, 2], self.size[1] - moved[:, 1]], axis=1)
        return moved + np.array(self.offset * 2, np.float32)

    def coverage(self, shape: Coverage, box: Box, size: tuple[int, int]) -> np.ndarray:
        """`shape`, which is in pixels of the picture, for a box of the padded input inside the window."""
        top, left, bottom, right = np.subtract(box, self.offset * 2)
        if self.flip:
            left, right = self.size[1] - right, self.size[1] - left
        resized = np.add([top, left, bottom, right], self.window[:2] * 2)
        source = np.clip(resized * (self.picture * 2) / (self.resized * 2), 0, self.picture * 2)
        found = shape(source.tolist(), size)
        return found[:, ::-1] if self.flip else found

    def place(self, objects: Objects, *, min_area: float) -> Objects:
        """The objects of the picture as this view has them.

        A mask that the window cuts is drawn anew for what is left of its box, which is then drawn closer around it. Without a
        mask the box is clipped.

        Args:
            objects: in pixels of the picture.
            min_area: square pixels that must be left of an object that is cut, or it is dropped.

        Returns:
            The objects in pixels of the padded input.
        """
        whole = self.resize(objects.boxes)
        boxes = self.cut(whole)
        masks = objects.masks
        if masks is not None and self.flip:
            masks = masks[:, :, ::-1]
        shapes = tuple(shape and partial(self.coverage, shape) for shape in objects.shapes)
        placed = Objects(self.lay(boxes), objects.classes, objects.crowd, masks, shapes)
        is_cut = (boxes != whole).any(axis=1)
        return _without_rest(placed, np.flatnonzero(is_cut), min_area) if is_cut.any() else placed


def _without_rest(objects: Objects, cut: np.ndarray, min_area: float) -> Objects:
    """Objects whose boxes have been cut in the rows `cut`, with the masks of what is left; too small ones dropped."""
    boxes, masks = objects.boxes.copy(), None if objects.masks is None else objects.masks.copy()
    dropped = []
    for row in cut:
        area = _area(boxes[row])
        if masks is not None and area > 0:
            boxes[row], masks[row] = _recut(boxes[row], masks[row], objects.shapes[row])
            area = _area(boxes[row]) * (masks[row].mean() / 255 if objects.shapes[row] else 1)
        if area < min_area or area <= 0:
            dropped.append(row)
    kept = np.delete(np.arange(len(boxes)), dropped)
    return replace(objects, boxes=boxes, masks=masks).chosen(kept)


def _recut(box: np.ndarray, mask: np.ndarray, shape: Coverage | None) -> tuple[np.ndarray, np.ndarray]:
    """The tight box of an object inside `box`, and its mask there; a crowd region without a mask keeps what it has."""
    if shape is None:
        return box, mask
    mask = as_mask(shape(box, CELLS))
    for _ in range(_TIGHTENINGS):
        tight = tight_box(mask > 0, box)
        if tight is None or (tight == box).all():
            break
        box, mask = tight, as_mask(shape(tight, CELLS))
    return box, mask


def tight_box(solid: np.ndarray, box: Box) -> np.ndarray | None:
    """The part of a box [4] that holds all its solid cells.

    Args:
        solid: [rows, columns] bool, of equal cells of the box.
        box: (y1, x1, y2, x2).

    Returns:
        [4] float32, or None where no cell is solid.
    """
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    if not len(rows):
        return None
    down, across = (np.linspace(box[side], box[side + 2], solid.shape[side] + 1) for side in (0, 1))
    return np.array([down[rows[0]], across[columns[0]], down[rows[-1] + 1], across[columns[-1] + 1]], np.float32)


def as_mask(coverage: np.ndarray) -> np.ndarray:
    """Coverage 0..1 as that of the batch, uint8 0..255."""
    return np.rint(coverage * 255).astype(np.uint8)


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
