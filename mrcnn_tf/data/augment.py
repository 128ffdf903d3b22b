"""One training sample from a picture as it is in its file.

Everything that is drawn follows from the sample's seed, so the order in which samples are made does not matter. Objects are
placed in numpy (`views`, `copy_paste`), pixels in TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from mrcnn_tf.config import MASK_SIZE
from mrcnn_tf.data.colour import jitter_colour
from mrcnn_tf.data.copy_paste import choose_pasted, occlude, paste_alpha, soften, together
from mrcnn_tf.data.python_calls import call_python
from mrcnn_tf.data.recipe import Drawn, Recipe, draw
from mrcnn_tf.data.views import Objects, Segment
from mrcnn_tf.ops.images import resize_window

Sample: TypeAlias = dict[str, tf.Tensor]

_ROWS: dict[str, tuple[tuple[int, ...], tf.DType]] = {
    "gt_boxes": ((4,), tf.float32),
    "gt_classes": ((), tf.int32),
    "gt_crowd": ((), tf.bool),
    "gt_masks": ((MASK_SIZE, MASK_SIZE), tf.uint8),
}
_DRAWN = (tf.int32, tf.int32, tf.float32)


class _Placed(NamedTuple):
    """The objects of a sample; its valid (height, width); and the opacity of what is pasted, [H, W] uint8."""

    objects: Objects
    size: tuple[int, int]
    alpha: np.ndarray


@tf.autograph.experimental.do_not_convert
def prepare_sample(
    sample: Sample, seed: tf.Tensor, image_size: tf.Tensor | tuple[int, int], recipe: Recipe, other: Sample | None = None
) -> Sample:
    """Make a sample of a batch.

    Args:
        sample: the keys of the batch (docs/contracts.md) without its axis, in pixels of the picture as it is in its file:
            `images` [h, w, 3] uint8, `image_sizes` [2] int32, `gt_boxes` [G, 4] float32, `gt_classes` [G] int32, `gt_crowd`
            [G] bool and, with masks, `gt_masks` [G, 56, 56] uint8; empty rows have class 0. Where `recipe.cuts` and there are
            masks, also `gt_segmentations` [G] string: each object's COCO segmentation (polygons or RLE) as JSON, or nothing.
        seed: [] int64, not negative. All random choices follow from it.
        image_size: (height, width) of the padded input; shapes are static where it is no tensor.
        recipe: what is done.
        other: with `recipe.copy_paste`, a second picture like the first; some of its objects are pasted.

    Returns:
        The keys of the batch, padded; as many rows as the input has, or the inputs of both together.
    """
    pictures = [sample] if other is None else [sample, other]
    arrays = [{key: value for key, value in picture.items() if key != "images"} for picture in pictures]
    num_rows = sum(picture["gt_classes"].shape[0] for picture in pictures)
    rows = {key: kind for key, kind in _ROWS.items() if key in sample}

    def place(seed: np.ndarray, padded: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
        split = tf.nest.pack_sequence_as(arrays, values)
        placed, drawn = _place(int(seed), (int(padded[0]), int(padded[1])), split, recipe)
        columns = [_column(placed.objects, key, num_rows) for key in rows]
        packed = [part for one in drawn for part in (one.view.packed(), one.colour_order, one.colour_amounts)]
        return [np.array(placed.size, np.int32), *columns, *packed, placed.alpha]

    types = [tf.int32, *(kind for _, kind in rows.values()), *_DRAWN * len(pictures), tf.uint8]
    size, *found = call_python(place, [seed, image_size, *tf.nest.flatten(arrays)], types)
    columns, drawn, alpha = found[: len(rows)], found[len(rows) : -1], found[-1]
    images = [
        _show(picture["images"], drawn[3 * n], drawn[3 * n + 1], drawn[3 * n + 2], image_size, recipe)
        for n, picture in enumerate(pictures)
    ]
    size = tf.ensure_shape(size, [2])
    image = images[0] if other is None else _paste(images, [drawn[0], drawn[3]], alpha, size, recipe)
    static = (None, None) if tf.is_tensor(image_size) else image_size
    made = {key: tf.ensure_shape(value, (num_rows, *rows[key][0])) for key, value in zip(rows, columns, strict=True)}
    return {"images": tf.ensure_shape(image, (*static, 3)), "image_sizes": size, **made}


def _place(
    seed: int, padded: tuple[int, int], pictures: Sequence[Mapping[str, Any]], recipe: Recipe
) -> tuple[_Placed, list[Drawn]]:
    sizes = [(int(picture["image_sizes"][0]), int(picture["image_sizes"][1])) for picture in pictures]
    randoms = [np.random.default_rng([seed, number]) for number in range(len(pictures))]
    drawn = [draw(recipe, size, padded, random) for size, random in zip(sizes, randoms, strict=True)]
    objects = [
        one.view.place(_objects(picture, size), min_area=recipe.min_visible_area)
        for one, picture, size in zip(drawn, pictures, sizes, strict=True)
    ]
    placed = _Placed(objects[0], drawn[0].view.size, np.zeros((0, 0), np.uint8))
    if len(pictures) == 2:
        above = objects[1].chosen(choose_pasted(objects[1], randoms[1]))
        placed = _covered(placed, above, drawn[1].view.size, padded, recipe)
    return placed, drawn


def _covered(below: _Placed, above: Objects, size: tuple[int, int], padded: tuple[int, int], recipe: Recipe) -> _Placed:
    """A picture with objects of another, of this size, laid over it."""
    if not len(above.classes):
        return below._replace(alpha=np.zeros(padded, np.uint8))
    alpha = paste_alpha(above, padded)
    left = occlude(below.objects, alpha, min_area=recipe.min_visible_area)
    union = (max(below.size[0], size[0]), max(below.size[1], size[1]))
    return _Placed(together(left, above), union, soften(alpha, recipe.copy_paste_blur))


def _objects(picture: Mapping[str, Any], size: tuple[int, int]) -> Objects:
    filled = np.flatnonzero(picture["gt_classes"])
    masks = picture["gt_masks"][filled] if "gt_masks" in picture else None
    texts = picture["gt_segmentations"][filled] if "gt_segmentations" in picture else [b""] * len(filled)
    shapes = tuple(Segment(text, size) if text else None for text in texts)
    return Objects(picture["gt_boxes"][filled], picture["gt_classes"][filled], picture["gt_crowd"][filled], masks, shapes)


def _column(objects: Objects, key: str, num_rows: int) -> np.ndarray:
    values = getattr(objects, key.removeprefix("gt_"))
    column = np.zeros((num_rows, *values.shape[1:]), values.dtype)
    column[: len(values)] = values
    return column


def _show(
    image: tf.Tensor,
    view: tf.Tensor,
    order: tf.Tensor,
    amounts: tf.Tensor,
    image_size: tf.Tensor | tuple[int, int],
    recipe: Recipe,
) -> tf.Tensor:
    """The pixels of a view, padded with zeros: [H, W, 3] uint8, or float32 where they are not quantised."""
    view = tf.ensure_shape(view, [9])
    image = resize_window(image, view[:2], view[2:6], antialias=recipe.antialias, quantize=recipe.quantize)
    if recipe.changes_colour:
        image = jitter_colour(image, tf.ensure_shape(order, [4]), tf.ensure_shape(amounts, [4]))
    image = _in_levels(image, recipe)
    # tf.reverse, not a slice of stride -1: on a CPU that takes fifteen times as long for an image.
    image = tf.cond(view[6] > 0, lambda: tf.reverse(image, [1]), lambda: image)
    before = view[7:]
    after = tf.convert_to_tensor(image_size, tf.int32) - tf.shape(image)[:2] - before
    return tf.pad(image, [[before[0], after[0]], [before[1], after[1]], [0, 0]])


def _paste(
    images: Sequence[tf.Tensor], views: Sequence[tf.Tensor], alpha: tf.Tensor, size: tf.Tensor, recipe: Recipe
) -> tf.Tensor:
    """One picture over another, [H, W, 3] each; what neither covers of the new valid size has the mean colour."""
    below, above = (tf.cast(image, tf.float32) for image in images)
    padded = tf.shape(below)[:2]
    inside = [_inside(padded, view[7:], view[4:6] - view[2:4]) for view in views]
    offset = (padded - size) // 2 if recipe.placement == "centre" else tf.zeros([2], tf.int32)
    ground = tf.where(_inside(padded, offset, size), tf.constant(recipe.mean, tf.float32), 0.0)
    opacity = tf.cast(tf.ensure_shape(alpha, [None, None])[:, :, None], tf.float32) / 255 * tf.cast(inside[1], tf.float32)
    return _in_levels(tf.where(inside[0], below, ground) * (1 - opacity) + above * opacity, recipe)


def _inside(padded: tf.Tensor, offset: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """[H, W, 1] bool: the pixels of a window of the padded input."""
    rows, columns = ((tf.range(padded[n]) >= offset[n]) & (tf.range(padded[n]) < offset[n] + size[n]) for n in range(2))
    return (rows[:, None] & columns[None, :])[:, :, None]


def _in_levels(image: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    return tf.cast(tf.floor(image + 0.5), tf.uint8) if recipe.quantize else image
