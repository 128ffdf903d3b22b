"""The embedded synthetic set: circles, rectangles, triangles and stars on textured ground, with exact masks.

Every object is a polygon, painted with its exact pixel coverage; later ones hide earlier ones. Its mask is what stays
visible: the polygon itself where nothing lies on it, else the RLE of the visible pixels. Colours tell nothing about the class.
"""

from __future__ import annotations

import colorsys
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from mrcnn_tf.data.coco import CocoObject, Record, write_coco
from mrcnn_tf.data.masks import bitmap_to_rle, polygon_coverage

CATEGORIES = tuple({"id": index, "name": name} for index, name in enumerate(("circle", "rectangle", "triangle", "star"), 1))
MIN_IMAGE_SIDE = 128
NUM_OBJECTS = (3, 8)
"""Fewest and most objects of an image."""
OBJECT_SIDE = (12, 64)
"""Shortest and longest side of an object's box, whole or visible, pixels."""

_MIN_VISIBLE = 0.5
"""No object may end up with less of its area in sight."""
_NEIGHBOUR_PROBABILITY = 0.2
"""How often a new object is put where it touches an earlier one: about a third of all objects end up partly hidden."""
_NUM_TRIES = 40
_NUM_COLOURS = 8
"""Colours drawn of which the one that stands out most is taken."""


@dataclass(slots=True, eq=False)
class _Body:
    """A placed shape: its polygon [n, 2] (x, y) in pixels, its pixels, and those still in sight."""

    class_id: int
    polygon: np.ndarray
    whole: np.ndarray
    visible: np.ndarray

    @property
    def hidden(self) -> bool:
        return bool((self.whole & ~self.visible).any())


def draw_shapes(seed: int, index: int, *, image_size: tuple[int, int] = (160, 160)) -> tuple[np.ndarray, tuple[CocoObject, ...]]:
    """Draw one picture.

    Args:
        seed: of the set, at least 0.
        index: of the picture, at least 0; (seed, index) gives the same picture always.
        image_size: (height, width), pixels, at least 128 each.

    Returns:
        The picture [height, width, 3] uint8 and its 3 to 8 objects, lowest first; their boxes enclose what is visible. Their
        `annotation_id` counts from 1.

    Raises:
        ValueError: the image size is too small.
    """
    if min(image_size) < MIN_IMAGE_SIDE:
        raise ValueError(f"image_size must be at least {MIN_IMAGE_SIDE} pixels each way, got {image_size}")
    random = np.random.default_rng([seed, index])
    canvas = _ground(random, image_size)
    bodies: list[_Body] = []
    wanted = int(random.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1))
    tries = 0
    # A crowded picture may end with fewer objects than wanted, never with fewer than the least.
    while len(bodies) < wanted and (tries < _NUM_TRIES or len(bodies) < NUM_OBJECTS[0]):
        tries += 1
        body = _place(random, bodies, image_size)
        if body is not None:
            bodies = _covered(bodies, body)
            canvas = _paint(random, canvas, body)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return image, tuple(_object(body, number) for number, body in enumerate(bodies, 1))


def write_shapes(
    folder: str | Path,
    *,
    num_images: int,
    seed: int,
    image_size: tuple[int, int] = (160, 160),
    split: str = "train",
    progress: bool = False,
) -> Path:
    """Write a set as PNG files and COCO JSON.

    Args:
        folder: gets `images/<split>_<number>.png` and `instances_<split>.json`.
        num_images: how many.
        seed: of the set; splits of different names share no picture, whatever their seeds.
        image_size: (height, width), pixels, at least 128 each.
        split: name of the split.
        progress: show a bar.

    Returns:
        The path of the JSON file.

    Raises:
        ValueError: the image size is too small.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    split_seed = (seed << 32) + zlib.crc32(split.encode())
    records: list[Record] = []
    next_id = 1
    for index in track(range(num_images), f"drawing {split} shapes", disable=not progress):
        image, objects = draw_shapes(split_seed, index, image_size=image_size)
        file_name = f"{split}_{index:06d}.png"
        _write_png(folder / "images" / file_name, image)
        numbered = tuple(
            CocoObject(next_id + at, o.class_id, o.box, o.area, o.crowd, o.segmentation) for at, o in enumerate(objects)
        )
        next_id += len(numbered)
        records.append(Record(index + 1, file_name, *image_size, numbered))
    return write_coco(folder / f"instances_{split}.json", records, CATEGORIES)


def _write_png(path: Path, image: np.ndarray) -> None:
    temporary = path.with_name(path.name + ".tmp")
    Image.fromarray(image).save(temporary, format="PNG")
    os.replace(temporary, path)


def _place(random: np.random.Generator, bodies: list[_Body], image_size: tuple[int, int]) -> _Body | None:
    """A new shape inside the image that leaves enough of all earlier ones visible, or None."""
    class_id = int(random.integers(1, len(CATEGORIES) + 1))
    polygon = _outline(random, class_id)
    span = np.ptp(polygon, axis=0)
    if span.min() < OBJECT_SIDE[0] or span.max() > OBJECT_SIDE[1]:
        return None
    polygon = polygon - polygon.min(axis=0) + _corner(random, bodies, span, image_size)
    whole = _pixels(polygon, image_size) >= 0.5
    body = _Body(class_id, polygon, whole, whole.copy())
    return body if all(_stays_visible(other, whole) for other in bodies) else None


def _corner(random: np.random.Generator, bodies: list[_Body], span: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Where the top left (x, y) of the new box goes: anywhere, or so that it overlaps an earlier box."""
    room = np.array(image_size[::-1]) - span
    if bodies and random.random() < _NEIGHBOUR_PROBABILITY:
        other = bodies[random.integers(len(bodies))].polygon
        reach = (np.ptp(other, axis=0) + span) / 2
        corner = (other.min(axis=0) + other.max(axis=0)) / 2 - span / 2 + reach * random.uniform(-0.8, 0.8, 2)
        return np.clip(corner, 0, room)
    return random.uniform(0, room)


def _stays_visible(body: _Body, cover: np.ndarray) -> bool:
    left = body.visible & ~cover
    if left.sum() == body.visible.sum():
        return True
    if left.sum() < _MIN_VISIBLE * body.whole.sum():
        return False
    top, left_edge, bottom, right = _bounds(left)
    return min(bottom - top, right - left_edge) >= OBJECT_SIDE[0]


def _covered(bodies: list[_Body], body: _Body) -> list[_Body]:
    return [_Body(b.class_id, b.polygon, b.whole, b.visible & ~body.whole) for b in bodies] + [body]


def _object(body: _Body, number: int) -> CocoObject:
    if body.hidden:
        area = float(body.visible.sum())
        return CocoObject(number, body.class_id, _bounds(body.visible), area, False, bitmap_to_rle(body.visible))
    x, y = body.polygon.T
    area = abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
    box = (float(y.min()), float(x.min()), float(y.max()), float(x.max()))
    return CocoObject(number, body.class_id, box, area, False, (body.polygon.ravel(),))


def _bounds(bitmap: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    return float(rows[0]), float(columns[0]), float(rows[-1] + 1), float(columns[-1] + 1)


def _pixels(polygon: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """[height, width]: the covered fraction of each pixel; only the pixels around the polygon are computed."""
    left, top = np.maximum(np.floor(polygon.min(axis=0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(polygon.max(axis=0)), image_size[::-1]).astype(int)
    pixels = np.zeros(image_size, np.float32)
    pixels[top:bottom, left:right] = polygon_coverage([polygon], (top, left, bottom, right), (bottom - top, right - left))
    return pixels


def _outline(random: np.random.Generator, class_id: int) -> np.ndarray:
    """A rotated and scaled polygon [n, 2] (x, y) around 0."""
    radius = random.uniform(OBJECT_SIDE[0] / 2, OBJECT_SIDE[1] / 2)
    turn = random.uniform(0, 2 * math.pi)
    match CATEGORIES[class_id - 1]["name"]:
        case "circle":
            return radius * _spokes(np.arange(64) / 64, turn)
        case "rectangle":
            # The angle between the diagonals sets the ratio of the sides: from a square to about 1 : 2.5.
            opening = random.uniform(0.12, 0.25)
            return radius * _spokes(np.array([0, opening, 0.5, 0.5 + opening]), turn)
        case "triangle":
            return radius * _spokes(np.arange(3) / 3 + random.uniform(-0.06, 0.06, 3), turn)
        case _:
            reach = np.tile([1.0, random.uniform(0.38, 0.5)], 5)[:, None]
            return radius * reach * _spokes(np.arange(10) / 10, turn)


def _spokes(turns: np.ndarray, start: float) -> np.ndarray:
    angle = 2 * math.pi * turns + start
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _paint(random: np.random.Generator, canvas: np.ndarray, body: _Body) -> np.ndarray:
    """Lay the shape over the canvas in a colour that differs from what is around, shaded and grained a little."""
    around = canvas[body.whole].mean(axis=0)
    colours = np.array([_colour(random) for _ in range(_NUM_COLOURS)])
    colour = colours[np.argmax(np.abs(colours - around).sum(axis=1))]
    texture = _shade(random, canvas.shape[:2], 25) + random.normal(0, random.uniform(0, 8), canvas.shape[:2])
    alpha = _pixels(body.polygon, canvas.shape[:2])[:, :, None]
    return canvas * (1 - alpha) + np.clip(colour + texture[:, :, None], 0, 255) * alpha


def _ground(random: np.random.Generator, image_size: tuple[int, int]) -> np.ndarray:
    """[height, width, 3] float: a gradient between two colours, stripes on some pictures, and noise."""
    blend = _shade(random, image_size, 0.5)[:, :, None] + 0.5
    canvas = (1 - blend) * _colour(random) + blend * _colour(random)
    if random.random() < 0.5:
        stripes = np.sin(_shade(random, image_size, random.uniform(15, 60)))
        canvas += random.uniform(8, 25) * stripes[:, :, None]
    return canvas + random.normal(0, random.uniform(2, 12), canvas.shape)


def _shade(random: np.random.Generator, image_size: tuple[int, int], strength: float) -> np.ndarray:
    """[height, width]: a ramp in a random direction, within -strength..strength."""
    angle = random.uniform(0, 2 * math.pi)
    down = np.linspace(-1, 1, image_size[0])[:, None] * math.sin(angle)
    across = np.linspace(-1, 1, image_size[1])[None, :] * math.cos(angle)
    return strength * (down + across) / (abs(math.sin(angle)) + abs(math.cos(angle)))


def _colour(random: np.random.Generator) -> np.ndarray:
    hue, saturation, value = random.uniform([0, 0.2, 0.25], [1, 1, 1])
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
