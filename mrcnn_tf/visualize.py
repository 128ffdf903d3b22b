"""Drawings of detections and of ground truth.

Each object has a colour of its own, as in the figures of the paper (He et al. 2017, figures 2 and 5), so that touching objects of
one class can be told apart: the hue turns by the golden ratio from one object to the next. Lines and letters grow with the
picture, and a small picture is enlarged first, by a whole factor, so that both can be read.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from mrcnn_tf.detections import Detections
from mrcnn_tf.paste import paste_region

SMALLEST_DRAWING = 640
"""Pictures whose longest edge is shorter are enlarged to at least this many pixels."""
MASK_OPACITY = 0.42
_GOLDEN_RATIO = 0.61803398875

Box = tuple[float, float, float, float]
Region = tuple[int, int, NDArray[np.bool_]]
"""Row and column of the first pixel in the image, and the pixels."""


@dataclass(frozen=True)
class _Instance:
    """One object in pixels of the drawing; the labels from the one wished for to the shortest.

    The region is made when it is painted: a hundred large ones at a time would fill the memory.
    """

    box: Box
    region: Callable[[], Region] | None
    labels: tuple[str, ...]


def draw_detections(image: NDArray[np.uint8], detections: Detections, *, score_threshold: float = 0.5) -> NDArray[np.uint8]:
    """Draw boxes, masks, names and scores.

    Args:
        image: uint8 RGB [h, w, 3], the picture of the detections.
        detections: in pixels of that picture.
        score_threshold: those with a lower score are not drawn.

    Returns:
        uint8 RGB, of the picture's size times a whole number (1 unless the picture is small). Where labels would cover each
        other they are shortened to the score, then left out.

    Raises:
        ValueError: the detections are of a picture of another size.
    """
    _check_size(image, detections.image_size)
    shown = detections.above(score_threshold)
    canvas, factor = _enlarged(image)
    boxes = shown.boxes * factor
    paste = partial(paste_region, image_size=canvas.shape[:2], rule=shown.paste)
    instances = [
        _Instance(
            box=tuple(box.tolist()),
            region=None if shown.mask_probs is None else partial(paste, shown.mask_probs[row], box),
            labels=(f"{name} {score:.2f}", f"{score:.2f}"),
        )
        for row, (box, name, score) in enumerate(zip(boxes, shown.category_names, shown.scores, strict=True))
    ]
    return _draw(canvas, instances)


def draw_ground_truth(
    image: NDArray[np.uint8], annotations: Sequence[Mapping[str, Any]], category_names: Mapping[int, str]
) -> NDArray[np.uint8]:
    """Draw COCO annotations as `draw_detections` draws detections.

    Args:
        image: uint8 RGB [h, w, 3].
        annotations: COCO records of this picture with `bbox`, `category_id` and, if there, `segmentation` (polygons or RLE).
        category_names: name of each category id.

    Returns:
        uint8 RGB, of the picture's size times a whole number (1 unless the picture is small).
    """
    canvas, factor = _enlarged(image)
    instances = []
    for record in annotations:
        x, y, width, height = (factor * float(side) for side in record["bbox"])
        segmentation = record.get("segmentation")
        region = partial(_segmentation_region, segmentation, image.shape[:2], factor) if segmentation else None
        name = category_names[record["category_id"]] + (" (crowd)" if record.get("iscrowd") else "")
        instances.append(_Instance((y, x, y + height, x + width), region, (name,)))
    return _draw(canvas, instances)


def instance_colour(number: int) -> tuple[int, int, int]:
    """RGB of the object with this number; no two near numbers look alike."""
    # Lightness takes turns too, which tells apart hues that come close again after some turns.
    lightness = (0.55, 0.45, 0.65)[number % 3]
    red, green, blue = colorsys.hls_to_rgb((0.02 + number * _GOLDEN_RATIO) % 1.0, lightness, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _check_size(image: NDArray[np.uint8], image_size: tuple[int, int]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape != (*image_size, 3):
        raise ValueError(f"expected a uint8 picture of {(*image_size, 3)}, got {image.dtype} {image.shape}")


def _enlarged(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    height, width = image.shape[:2]
    factor = math.ceil(SMALLEST_DRAWING / max(height, width)) if max(height, width) < SMALLEST_DRAWING else 1
    if factor == 1:
        return image.copy(), 1
    return np.array(Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.BICUBIC)), factor


def _draw(canvas: NDArray[np.uint8], instances: Sequence[_Instance]) -> NDArray[np.uint8]:
    longest = max(canvas.shape[:2])
    line = max(1, round(longest / 500))
    # Large ones first, so that small ones lie on top and are seen.
    order = sorted(range(len(instances)), key=lambda number: -_area(instances[number].box))
    for number in order:
        region = instances[number].region
        if region is not None:
            _paint_mask(canvas, region(), instance_colour(number), line)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for number in order:
        _paint_box(pen, instances[number].box, instance_colour(number), line)
    _paint_labels(pen, picture.size, instances, _font(max(11, round(longest / 55))))
    return np.array(picture)


def _paint_mask(canvas: NDArray[np.uint8], region: Region, colour: tuple[int, int, int], line: int) -> None:
    y0, x0, mask = region
    height, width = mask.shape
    patch = canvas[y0 : y0 + height, x0 : x0 + width]
    inner = _eroded(mask, line)
    rim = mask & ~inner
    for channel, value in zip(np.moveaxis(patch, 2, 0), colour, strict=True):
        blended = (np.arange(256) * (1 - MASK_OPACITY) + value * MASK_OPACITY).astype(np.uint8)
        np.copyto(channel, blended[channel], where=inner)
        channel[rim] = value


def _eroded(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """The pixels with nothing but the mask within `radius` pixels in rows and columns; what lies outside counts as empty."""
    height, width = mask.shape
    padded = np.pad(mask, radius)
    rows = padded[:height].copy()
    for shift in range(1, 2 * radius + 1):
        rows &= padded[shift : shift + height]
    inner = rows[:, :width].copy()
    for shift in range(1, 2 * radius + 1):
        inner &= rows[:, shift : shift + width]
    return inner


def _paint_box(pen: ImageDraw.ImageDraw, box: Box, colour: tuple[int, int, int], line: int) -> None:
    y1, x1, y2, x2 = (round(side) for side in box)
    pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)


def _paint_labels(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], instances: Sequence[_Instance], font: ImageFont.FreeTypeFont
) -> None:
    boxes = np.array([instance.box for instance in instances], float).reshape(-1, 4)
    small = boxes[:, 2] - boxes[:, 0] < 3 * sum(font.getmetrics())
    labels = np.zeros((0, 4))
    # The best come first, so they have the first choice of a place.
    for number, instance in enumerate(instances):
        others = boxes[small & (np.arange(len(boxes)) != number)]
        placed = _free_place(pen, size, instance, font, labels, others)
        if placed is None:
            continue
        text, (y1, x1, y2, x2) = placed
        labels = np.vstack([labels, (y1, x1, y2, x2)])
        colour = instance_colour(number)
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
        dark = np.dot(colour, (0.299, 0.587, 0.114)) > 140
        pen.text(((x1 + x2) / 2, (y1 + y2) / 2), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=font, anchor="mm")


def _free_place(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    instance: _Instance,
    font: ImageFont.FreeTypeFont,
    labels: NDArray[Any],
    small_boxes: NDArray[Any],
) -> tuple[str, Box] | None:
    """The first label, and place in the picture, that covers no other label, and no small object if that can be had."""
    height = sum(font.getmetrics())
    places = []
    for label in instance.labels:
        text = _shortened(pen, label, font, size[0] - height // 2)
        width = pen.textlength(text, font=font) + height // 2
        for x, y in _candidates(instance.box, width, height):
            left, top = max(0.0, min(x, size[0] - width)), max(0.0, min(y, size[1] - height))
            places.append((text, (top, left, top + height, left + width)))
    free = [(text, place) for text, place in places if not _overlaps(place, labels)]
    kind = (found for found in free if not _overlaps(found[1], small_boxes))
    return next(kind, free[0] if free else None)


def _candidates(box: Box, width: float, height: float) -> list[tuple[float, float]]:
    y1, x1, y2, x2 = box
    above = [(x1, y1 - height), (x2 - width, y1 - height)]
    inside = [(x1, y1), (x2 - width, y1), (x1, y2 - height), (x2 - width, y2 - height)]
    below = [(x1, y2), (x2 - width, y2)]
    # A label inside hides much of a small object, and of a large one next to nothing.
    return above + inside + below if y2 - y1 > 3 * height else above + below + inside


def _overlaps(place: Box, others: NDArray[Any]) -> bool:
    y1, x1, y2, x2 = place
    return bool(np.any((others[:, 0] < y2) & (y1 < others[:, 2]) & (others[:, 1] < x2) & (x1 < others[:, 3])))


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shortened(pen: ImageDraw.ImageDraw, label: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    if pen.textlength(label, font=font) <= room:
        return label
    while len(label) > 1 and pen.textlength(label + "…", font=font) > room:
        label = label[:-1]
    return label + "…"


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # It comes with matplotlib, so it is there on every machine, and it knows more scripts than Pillow's own.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _segmentation_region(segmentation: Any, image_size: tuple[int, int], factor: int) -> Region:
    height, width = image_size
    if isinstance(segmentation, Mapping):
        compressed = isinstance(segmentation["counts"], (str, bytes))
        rle = segmentation if compressed else coco_mask.frPyObjects(segmentation, height, width)
        return 0, 0, coco_mask.decode(rle).astype(bool).repeat(factor, axis=0).repeat(factor, axis=1)
    polygons = [[factor * number for number in polygon] for polygon in segmentation]
    parts = coco_mask.frPyObjects(polygons, height * factor, width * factor)
    return 0, 0, coco_mask.decode(coco_mask.merge(parts)).astype(bool)
