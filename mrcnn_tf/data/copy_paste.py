"""Objects of one picture laid over another (Ghiasi et al., "Simple Copy-Paste", CVPR 2021).

All of it happens in pixels of the padded input, at full resolution: what is covered there is taken out of the masks beneath, and
the crops of the batch are made of what is left.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from mrcnn_tf.data.masks import bitmap_coverage
from mrcnn_tf.data.views import CELLS, Coverage, Objects, as_mask, tight_box

_LEAST_OVERLAP = 0.5
"""Square pixels; what is covered less than that is left as it is."""
_SOLID = 0.5
"""Coverage from which a pixel counts as the object's, for its box."""


def choose_pasted(objects: Objects, random: np.random.Generator) -> np.ndarray:
    """Numbers of the objects that are pasted, each with a probability of one half; crowds and those without a mask never are."""
    drawn = random.random(len(objects.classes)) < 0.5
    has_shape = np.array([shape is not None for shape in objects.shapes], bool)
    return np.flatnonzero(drawn & ~objects.crowd & has_shape)


def paste_alpha(objects: Objects, size: tuple[int, int]) -> np.ndarray:
    """The union of objects as opacity.

    Args:
        objects: in pixels of the padded input, all with shapes.
        size: (height, width) of the padded input.

    Returns:
        [height, width] float32 in 0..1.
    """
    alpha = np.zeros(size, np.float32)
    for box, shape in zip(objects.boxes, objects.shapes, strict=True):
        assert shape is not None, "only objects with a mask are pasted"
        region, coverage = _on_pixels(box, shape)
        np.maximum(alpha[region], coverage, out=alpha[region])
    return alpha


def occlude(objects: Objects, alpha: np.ndarray, *, min_area: float) -> Objects:
    """What is left of objects beneath others.

    Args:
        objects: in pixels of the padded input. A crowd region without a mask stays as it is.
        alpha: [height, width] float32, what covers them (`paste_alpha`).
        min_area: square pixels that must be left of an object that is partly covered, or it is dropped.

    Returns:
        The objects, with the masks and the boxes of their visible parts.
    """
    assert objects.masks is not None, "copy-paste needs masks"
    boxes, masks = objects.boxes.copy(), objects.masks.copy()
    kept = []
    for row, shape in enumerate(objects.shapes):
        visible = None if shape is None else _visible(boxes[row], shape, alpha)
        if visible is not None:
            coverage, corner = visible
            height, width = coverage.shape
            inner = tight_box(coverage >= _SOLID, (0, 0, height, width))
            if inner is None or coverage.sum() < min_area:
                continue
            boxes[row] = inner + np.tile(corner, 2)
            masks[row] = as_mask(bitmap_coverage(coverage, inner.tolist(), CELLS))
        kept.append(row)
    left = Objects(boxes, objects.classes, objects.crowd, masks, objects.shapes)
    return left.chosen(np.array(kept, np.int64))


def together(below: Objects, above: Objects) -> Objects:
    """The objects of both, those `below` first."""
    assert below.masks is not None
    assert above.masks is not None
    names = ("boxes", "classes", "crowd", "masks")
    joined = {name: np.concatenate([getattr(below, name), getattr(above, name)]) for name in names}
    return Objects(**joined, shapes=below.shapes + above.shapes)


def soften(alpha: np.ndarray, sigma: float) -> np.ndarray:
    """Opacity [height, width] in 0..1 as uint8 0..255, its edges blurred by a Gaussian of `sigma` pixels; 0: not at all."""
    levels = Image.fromarray(as_mask(alpha))
    return np.asarray(levels.filter(ImageFilter.GaussianBlur(sigma)) if sigma else levels)


def _visible(box: np.ndarray, shape: Coverage, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Coverage of the pixels around a box by what is seen of its object, and their corner; None where nothing hides it."""
    rows, columns = _pixels(box)
    hidden = alpha[rows, columns]
    if not hidden.any():
        return None
    _, coverage = _on_pixels(box, shape)
    if (coverage * hidden).sum() < _LEAST_OVERLAP:
        return None
    return coverage * (1 - hidden), np.array([rows.start, columns.start], np.float32)


def _on_pixels(box: np.ndarray, shape: Coverage) -> tuple[tuple[slice, slice], np.ndarray]:
    """The whole pixels around a box, and how much of each an object covers."""
    rows, columns = _pixels(box)
    size = (rows.stop - rows.start, columns.stop - columns.start)
    return (rows, columns), shape((rows.start, columns.start, rows.stop, columns.stop), size)


def _pixels(box: np.ndarray) -> tuple[slice, slice]:
    (top, left), (bottom, right) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    return slice(top, bottom), slice(left, right)
