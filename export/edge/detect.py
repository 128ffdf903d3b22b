"""Find and draw the objects of pictures with the TFLite bundle that this file lies in.

    python detect.py IMAGE... --output DIR [--threads N] [--delegate PATH] [--score-threshold 0.5]

Needs Python 3.9, numpy, Pillow 10.1 and one of the packages ai-edge-litert and tflite-runtime (this one with numpy < 2).

DIR gets a drawing of each picture and `detections.json`, a list of `{"file_name", "category_id", "category_name",
"bbox": [x, y, w, h], "score", "segmentation": {"size": [h, w], "counts": str}}` in pixels of the picture. From Python:

    detector = Detector("bundle")
    found = detector(image)  # uint8 RGB [h, w, 3]
    found.boxes, found.scores, found.category_names, found.masks()
"""

from __future__ import annotations

import argparse
import colorsys
import functools
import glob
import importlib
import io
import json
import math
import os
import statistics
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

FORMAT = 1
"""Of model.json."""
PACKAGES = {"litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}
ACCELERATED = ("trunk", "box", "mask")
"""Signatures of convolutions and matrices, for a delegate; the geometry of the others stays on the CPU."""
STAGES = ("load", "resize", "trunk", "propose", "box", "detect", "mask", "paste", "draw")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SMALLEST_DRAWING = 640
"""Pictures whose longest edge is shorter are enlarged by a whole factor before they are drawn on."""
MASK_OPACITY = 0.42
_NUMPY_MAJOR = int(np.__version__.split(".")[0])
_BLOCK_PIXELS = 1 << 20
_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

Array = NDArray[Any]
Size = tuple[int, int]


class DetectError(Exception):
    """What the user can put right; the message says what it is."""


class ImageError(DetectError):
    """A picture that cannot be read."""


class Result:
    """The objects found in one picture, best first.

    Attributes:
        boxes: [N, 4] float32, `y1, x1, y2, x2` in pixels of the picture.
        classes: [N] int32, 1..K.
        scores: [N] float32, falling.
        mask_probs: [N, 28, 28] float32, the probability in the frame of the box; None when the model has no masks.
        image_size: (height, width) of the picture.
        category_ids: the data set's own id of each object's class.
        category_names: the name of each object's class.
        paste: how masks are laid over their boxes, see `paste_region`.
    """

    def __init__(
        self, boxes: Array, classes: Array, scores: Array, mask_probs: Array | None, image_size: Size, info: dict[str, Any]
    ) -> None:
        self.boxes, self.classes, self.scores, self.mask_probs = boxes, classes, scores, mask_probs
        self.image_size, self.paste = image_size, info["paste"]
        categories = [info["categories"][number - 1] for number in classes.tolist()]
        self.category_ids = [int(category["id"]) for category in categories]
        self.category_names = [str(category["name"]) for category in categories]

    def __len__(self) -> int:
        return len(self.boxes)

    def masks(self) -> NDArray[np.bool_] | None:
        """The masks, bool [N, height, width]; None when the model has none."""
        if self.mask_probs is None:
            return None
        masks = np.zeros((len(self), *self.image_size), bool)
        for row, (y0, x0, region) in enumerate(self._regions(self.mask_probs)):
            masks[row, y0 : y0 + region.shape[0], x0 : x0 + region.shape[1]] = region
        return masks

    def rles(self) -> list[dict[str, Any]] | None:
        """The masks as COCO run lengths, `{"size": [height, width], "counts": str}`; None when the model has none."""
        if self.mask_probs is None:
            return None
        return [encode_region(*region, self.image_size) for region in self._regions(self.mask_probs)]

    def records(self, file_name: str) -> list[dict[str, Any]]:
        """The entries of `detections.json`."""
        rles, records = self.rles(), []
        for row, (y1, x1, y2, x2) in enumerate(self.boxes):
            # The floats with the shortest decimal form that names these float32: 0.1, not 0.10000000149011612.
            *bbox, score = (float(str(value)) for value in (x1, y1, x2 - x1, y2 - y1, self.scores[row]))
            kind = {"category_id": self.category_ids[row], "category_name": self.category_names[row]}
            mask = {} if rles is None else {"segmentation": rles[row]}
            records.append({"file_name": file_name, **kind, "bbox": bbox, "score": score, **mask})
        return records

    def _regions(self, mask_probs: Array) -> Iterator[tuple[int, int, Array]]:
        """One at a time: a hundred large ones would fill the memory."""
        return (paste_region(mask_probs[row], box, self.image_size, self.paste) for row, box in enumerate(self.boxes))


class Detector:
    """The model of a bundle as a function from a picture to a `Result`.

    Args:
        bundle: folder with model.json and model.tflite.
        threads: of the runtime.
        delegate: library of a TFLite delegate, which gets the signatures `ACCELERATED`.
        runtime: litert, tflite-runtime, or auto: the first of these that is installed.

    Attributes:
        info: model.json.
        times: seconds of each stage of the last call.

    Raises:
        DetectError: no runtime, no bundle of this format, a delegate or a model that cannot be loaded.
    """

    def __init__(self, bundle: str | Path, *, threads: int = 1, delegate: str | None = None, runtime: str = "auto") -> None:
        self.info = read_info(bundle)
        self.times: dict[str, float] = {}
        module, path = load_runtime(runtime), Path(bundle, "model.tflite")
        self._geometry = open_model(module, path, threads, None)
        self._accelerated = open_model(module, path, threads, delegate) if delegate else self._geometry
        self._runners: dict[str, Any] = {}

    def __call__(self, image: NDArray[np.uint8], *, score_threshold: float = 0.0) -> Result:
        """Find the objects of a picture, stage by stage, with masks only for those that are returned.

        Args:
            image: uint8 RGB [h, w, 3].
            score_threshold: objects with a lower score are left out.

        Raises:
            ValueError: not a uint8 picture of at least one pixel.
        """
        values, window = self._prepare(image)
        for name in ("trunk", "propose", "box", "detect"):
            values.update(self._run(name, values))
        size = (image.shape[0], image.shape[1])
        rows, boxes, classes, scores = self._select(values, window, size, score_threshold)
        masks = self._masks(values["mask_regions"][rows], classes) if "mask" in self.info["signatures"] else None
        return Result(boxes, classes, scores, masks, size, self.info)

    def detect_full(self, image: NDArray[np.uint8], *, score_threshold: float = 0.0) -> Result:
        """The same through the signature `full`: all stages and the masks of all rows in one, without the delegate."""
        values, window = self._prepare(image)
        values = self._run("full", values)
        size = (image.shape[0], image.shape[1])
        rows, boxes, classes, scores = self._select(values, window, size, score_threshold)
        masks = values["detection_masks"][0, rows] if "detection_masks" in values else None
        return Result(boxes, classes, scores, masks, size, self.info)

    def _prepare(self, image: NDArray[np.uint8]) -> tuple[dict[str, Array], Array]:
        """Inputs of the model, and the box of the resized picture in them."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"expected a uint8 picture [h, w, 3] of at least one pixel, got {image.dtype} {image.shape}")
        how, input_size = self.info["preprocessing"], self.info["image_size"]
        self.times = {}
        with timed(self.times, "resize"):
            size = resized_size(image.shape[0], image.shape[1], how, input_size)
            resized = resize(image, size, antialias=how["antialias"], quantize=how["quantize"])
            padded, window = pad(resized, input_size, how["placement"])
        return {"image": padded[None], "image_size": np.array([size], np.int32)}, window

    def _run(self, name: str, values: dict[str, Array]) -> dict[str, Array]:
        """Outputs of a signature, whose inputs are taken from `values` by name."""
        with timed(self.times, name):
            if name not in self._runners:
                interpreter = self._accelerated if name in ACCELERATED else self._geometry
                self._runners[name] = interpreter.get_signature_runner(name)
            inputs = {key: values[key] for key in self.info["signatures"][name]["inputs"]}
            # Copies: the next run may use the memory of these again.
            return {key: np.array(value) for key, value in self._runners[name](**inputs).items()}

    def _select(self, values: dict[str, Array], window: Array, size: Size, score_threshold: float) -> tuple[Array, ...]:
        """Rows that are wanted, and their boxes in the picture, classes and scores."""
        count = int(values["num_detections"].item())
        inclusive, clip = self.info["box_ends"] == "inclusive", self.info["clip_to"] == "image"
        boxes, has_area = restore(values["detection_boxes"][0, :count], window, size, inclusive=inclusive, clip=clip)
        scores = values["detection_scores"][0, :count]
        rows = np.flatnonzero(has_area & (scores >= score_threshold))
        return rows, boxes[rows], values["detection_classes"][0, rows].astype(np.int32), scores[rows]

    def _masks(self, regions: Array, classes: Array) -> Array:
        """Mask probabilities, from as many calls as the rows take."""
        step, masks = self.info["mask_rows"], [np.zeros((0, 28, 28), np.float32)]
        for start in range(0, len(classes), step):
            part = np.arange(start, min(start + step, len(classes)))
            filled = np.resize(part, step)  # a call with room left repeats its rows
            outputs = self._run("mask", {"regions": regions[filled], "classes": classes[filled]})
            masks.append(outputs["masks"][: len(part)])
        return np.concatenate(masks)


@contextmanager
def timed(times: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to `times[stage]`."""
    started = time.perf_counter()
    yield
    times[stage] = times.get(stage, 0.0) + time.perf_counter() - started


def read_info(bundle: str | Path) -> dict[str, Any]:
    """Read model.json of a bundle; `DetectError` says what is missing or of another format."""
    for name in ("model.json", "model.tflite"):
        if not Path(bundle, name).is_file():
            raise DetectError(f"{bundle}: not a TFLite bundle: it has no {name}")
    path = Path(bundle, "model.json")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DetectError(f"{path}: not valid JSON: {error}") from error
    found = info.get("format") if isinstance(info, dict) else None
    if found != FORMAT:
        raise DetectError(f"{path}: expected format {FORMAT}, got {found}; take the detect.py that was exported with this model")
    return info


def load_runtime(name: str = "auto") -> ModuleType:
    """The module with `Interpreter` and `load_delegate` of a runtime: litert, tflite-runtime, or auto."""
    if name not in ("auto", *PACKAGES):
        raise DetectError(f"runtime must be auto, {' or '.join(PACKAGES)}, got {name!r}")
    for package in PACKAGES.values() if name == "auto" else [PACKAGES[name]]:
        try:
            importlib.import_module(package)
            if package == "tflite_runtime" and _NUMPY_MAJOR >= 2:
                raise DetectError(f"tflite-runtime needs numpy < 2, here is {np.__version__}: pip install 'numpy<2'")
            return importlib.import_module(f"{package}.interpreter")
        except ImportError as error:
            if error.name != package:
                raise DetectError(f"{package} is installed but cannot be loaded: {error}") from error
    wanted = "no TFLite runtime is" if name == "auto" else f"{name} is not"
    raise DetectError(f"{wanted} installed: pip install ai-edge-litert, or pip install tflite-runtime 'numpy<2'")


def open_model(module: ModuleType, path: Path, threads: int, delegate: str | None) -> Any:
    """An interpreter, ready for signature runners."""
    try:
        delegates = [module.load_delegate(delegate)] if delegate else None
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise DetectError(f"{delegate}: the delegate cannot be loaded: {error}") from error
    try:
        interpreter = module.Interpreter(model_path=str(path), num_threads=threads, experimental_delegates=delegates)
        # Before the first runner, or tflite-runtime computes without XNNPACK, several times slower.
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        helper = f" with the delegate {delegate}" if delegate else ""
        raise DetectError(f"{path}: {module.__name__} cannot load the model{helper}: {error}") from error
    return interpreter


def load_image(path: str | Path) -> NDArray[np.uint8]:
    """Read a picture as uint8 RGB [h, w, 3], turned as its EXIF says; `ImageError` names the file and the fault."""
    try:
        with Image.open(path) as image:
            return _as_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such image file") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not a readable image: of no kind that Pillow knows") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except _FAULTS as error:
        raise ImageError(f"{path}: not a readable image: {error}") from error


def _as_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise ImageError("floating-point pixels have no known white; expected 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ImageError(f"expected 16-bit values in 0..65535, got {deep.min()}..{deep.max()}")
        return np.repeat(((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    # By way of RGBA Pillow knows what to do with several transparent colours of a palette.
    return np.array((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))


def resized_size(height: int, width: int, how: dict[str, Any], input_size: Sequence[int]) -> Size:
    """(height, width) that a picture is resized to: by the rule `preprocessing` of model.json, and to fit the input."""
    shortest, longest, most = min(height, width), max(height, width), how["max_size"]
    scale = (max(shortest, how["min_size"]) if how["enlarge_only"] else how["min_size"]) / shortest
    if how["resize_rounding"] == "half_up":
        back = most / (scale * longest) if scale * longest > most else 1.0
        edges = [math.floor(scale * edge * back + 0.5) for edge in (height, width)]
    elif how["resize_rounding"] == "floor":
        edges = [math.floor(edge * min(scale, most / longest)) for edge in (height, width)]
    else:
        scale = most / longest if round(longest * scale) > most else scale
        edges = [round(edge * scale) for edge in (height, width)]
    new_height, new_width = max(1, edges[0]), max(1, edges[1])
    shrink = min(1.0, input_size[0] / new_height, input_size[1] / new_width)
    return max(1, int(new_height * shrink + 0.5)), max(1, int(new_width * shrink + 0.5))


def resize(image: NDArray[np.uint8], size: Size, *, antialias: bool, quantize: bool) -> NDArray[np.uint8]:
    """Bilinear: Pillow's with antialiasing, else between the four nearest pixels, by way of whole levels if `quantize`."""
    if image.shape[:2] == size:
        return image
    if antialias:
        return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    across = _interpolated(image.swapaxes(0, 1), size[1]).swapaxes(0, 1)
    down = _interpolated(np.floor(across + 0.5) if quantize else across, size[0])
    return np.floor(down + 0.5).astype(np.uint8)


def _interpolated(rows: Array, count: int) -> Array:
    """[n, ...] -> [count, ...] float32, with half-pixel centres."""
    # In float32, as TensorFlow computes: many results lie halfway between two levels.
    half, scale = np.float32(0.5), np.float32(len(rows)) / np.float32(count)
    positions = (np.arange(count, dtype=np.float32) + half) * scale - half
    below = np.floor(positions)
    places = below.astype(int)
    first, second = (rows[np.clip(places + step, 0, len(rows) - 1)].astype(np.float32) for step in (0, 1))
    return first + (second - first) * (positions - below)[:, None, None]


def pad(image: NDArray[np.uint8], size: Sequence[int], placement: str) -> tuple[NDArray[np.uint8], Array]:
    """Zeros around an image up to `size`, and its box [4] float32 therein."""
    height, width = image.shape[:2]
    top, left = ((size[0] - height) // 2, (size[1] - width) // 2) if placement == "centre" else (0, 0)
    padded = np.zeros((*size, 3), np.uint8)
    padded[top : top + height, left : left + width] = image
    return padded, np.array([top, left, top + height, left + width], np.float32)


def restore(boxes: Array, window: Array, image_size: Sequence[int], *, inclusive: bool, clip: bool) -> tuple[Array, Array]:
    """Boxes [N, 4] of the input in pixels of the picture, cut there if `clip`, and whether each has area there, [N].

    `inclusive` scales from first pixel to last pixel and not from edge to edge.
    """
    last, sides = np.float32(inclusive), np.array(image_size, np.float32)
    ends = np.array([0, 0, last, last], np.float32)
    new, old = np.maximum(sides - last, 1), np.maximum(window[2:] - window[:2] - last, 1)
    moved = (boxes - ends - np.tile(window[:2], 2)) * np.tile(new, 2) / np.tile(old, 2) + ends
    inside = np.clip(moved, 0, np.tile(sides, 2))
    return inside if clip else moved, (inside[:, 2:] > inside[:, :2]).all(axis=1)


def paste_region(mask_probs: Array, box: Array, image_size: Sequence[int], paste: str) -> tuple[int, int, Array]:
    """Lay a mask over its box: (first row, first column, bool [h, w]) of the part of the picture in its frame.

    A pixel is set where the probability, interpolated at its centre with zeros around the mask, reaches 0.5, or with "expanded"
    exceeds it. The frame is the box ("centred"), the box of rounded corners ("stretched"), or what is left when box and mask get
    a border of one cell, the corners are cut to whole pixels, and the last pixel counts as inside ("expanded").
    """
    low, high = _frame(box, len(mask_probs), paste)
    start = np.clip(np.ceil(low - 0.5), 0, image_size).astype(int)
    stop = np.clip(np.floor(high - 0.5) + 1, start, image_size).astype(int)
    region = np.zeros(stop - start, bool)
    if region.size:
        rows, columns = (_weights(start[axis], stop[axis], low[axis], high[axis], len(mask_probs)) for axis in (0, 1))
        down, reaches = rows @ mask_probs, np.greater if paste == "expanded" else np.greater_equal
        step = max(1, _BLOCK_PIXELS // region.shape[1])
        for first in range(0, len(region), step):
            region[first : first + step] = reaches(down[first : first + step] @ columns.T, np.float32(0.5))
    return int(start[0]), int(start[1]), region


def _frame(box: Array, cells: int, paste: str) -> tuple[Array, Array]:
    """The first and the last corner (y, x) of what the mask fills, float64; without area where the box has none."""
    first, last = box[:2], box[2:]
    if not (last > first).all():
        return np.zeros(2), np.zeros(2)
    if paste == "expanded":
        # In float32, as the original computes: a corner close to a whole number is cut to the same one.
        half, centre = (last - first) * np.float32(0.5) * np.float32((cells + 2) / cells), (last + first) * np.float32(0.5)
        first, last = np.trunc(centre - half).astype(np.float64), np.trunc(centre + half).astype(np.float64) + 1
        border = (last - first) / (cells + 2)
        return first + border, last - border
    if paste == "stretched":
        first, last = np.rint(first), np.rint(last)
    return first.astype(np.float64), last.astype(np.float64)


def _weights(start: int, stop: int, low: float, high: float, cells: int) -> Array:
    """Weight of each cell at each pixel centre, [stop - start, cells] float32."""
    positions = (np.arange(start, stop) + 0.5 - low) / (high - low) * cells - 0.5
    return np.maximum(1 - np.abs(positions[:, None] - np.arange(cells)), 0).astype(np.float32)


def encode_region(y0: int, x0: int, region: Array, image_size: Size) -> dict[str, Any]:
    """COCO's compressed run lengths of a picture that is empty but for a region."""
    height, width = image_size
    # The whole columns of the region, between two empty pixels that open the first run and close the last.
    pixels = np.zeros(region.shape[1] * height + 2, bool)
    pixels[1:-1].reshape(-1, height)[:, y0 : y0 + region.shape[0]] = region.T
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + x0 * height
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    return {"size": [height, width], "counts": _compressed(counts[:-1] if counts[-1] == 0 else counts)}


def _compressed(counts: Array) -> str:
    """Each count less the last but one (from the fourth on), as letters of five bits each, the lowest first."""
    numbers = counts.astype(np.int64)
    numbers[3:] -= counts[1:-2]
    shifts = 5 * np.arange(7)
    # A letter is the last where what is left only repeats its highest bit, the sign.
    left = numbers[:, None] >> (shifts + 4)
    goes_on = (left != 0) & (left != -1)
    letters = 48 + ((numbers[:, None] >> shifts) & 31) + 32 * goes_on
    is_used = np.pad(goes_on[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return letters[is_used].astype(np.uint8).tobytes().decode("ascii")


def draw(image: NDArray[np.uint8], found: Result) -> Image.Image:
    """The picture, enlarged by a whole number if small, with mask, outline, box, name and score of each object."""
    factor = max(1, math.ceil(SMALLEST_DRAWING / max(found.image_size)))
    size = (found.image_size[0] * factor, found.image_size[1] * factor)
    canvas = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
    line, font = max(1, round(max(size) / 500)), ImageFont.load_default(max(11, round(max(size) / 55)))
    boxes = found.boxes * np.float32(factor)
    # Large ones first, so that small ones lie on top.
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(axis=1), kind="stable").tolist()
    if found.mask_probs is not None:
        for row in order:
            _paint_mask(canvas, *paste_region(found.mask_probs[row], boxes[row], size, found.paste), colour(row), line)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for row in order:
        y1, x1, y2, x2 = (round(side) for side in boxes[row].tolist())
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour(row), width=line)
    # The best ones last, so that their labels are whole.
    for row in reversed(range(len(found))):
        label = f"{found.category_names[row]} {found.scores[row]:.2f}"
        left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
        height, width = bottom - top + 4, right - left + 4
        x = max(0, min(boxes[row, 1].item(), size[1] - width))
        y = max(0, min(boxes[row, 0].item() - height, size[0] - height))
        pen.rectangle((x, y, x + width, y + height), fill=colour(row))
        is_light = np.dot(colour(row), (0.299, 0.587, 0.114)) > 140
        pen.text((x + 2 - left, y + 2 - top), label, fill=(0, 0, 0) if is_light else (255, 255, 255), font=font)
    return picture


def colour(number: int) -> tuple[int, int, int]:
    """RGB of the object with this number: the hue turns by the golden ratio, and the lightness takes turns."""
    red, green, blue = colorsys.hls_to_rgb((0.02 + number * 0.61803398875) % 1, (0.55, 0.45, 0.65)[number % 3], 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _paint_mask(canvas: Array, y0: int, x0: int, region: Array, rgb: tuple[int, int, int], line: int) -> None:
    inner = region
    for _ in range(2):  # along the columns, then along the rows
        padded = np.pad(inner, ((line, line), (0, 0)))
        inner = functools.reduce(np.logical_and, [padded[shift : shift + len(inner)] for shift in range(2 * line + 1)]).T
    for channel, value in enumerate(rgb):
        patch = canvas[y0 : y0 + region.shape[0], x0 : x0 + region.shape[1], channel]
        blended = (np.arange(256) * (1 - MASK_OPACITY) + value * MASK_OPACITY).astype(np.uint8)
        np.copyto(patch, blended[patch], where=inner)
        patch[region & ~inner] = value


def image_paths(arguments: Iterable[str | Path]) -> list[Path]:
    """Files named by files, folders (their direct children with an image suffix) and patterns, each once."""
    paths: list[Path] = []
    for path in (Path(argument).expanduser() for argument in arguments):
        if path.is_dir():
            found = sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES and child.is_file())
        elif path.exists() or not glob.has_magic(str(path)):
            found = [path]
        else:
            found = sorted(match for match in map(Path, glob.glob(str(path), recursive=True)) if match.is_file())
        if not found:
            raise DetectError(f"{path}: no image files there; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
        paths += found
    if not paths:
        raise DetectError("no images given; expected image files, folders or patterns")
    return list(dict.fromkeys(paths))


def file_names(paths: Sequence[Path]) -> list[str]:
    """Each path from the folder that all have in common."""
    full = [Path(os.path.abspath(path.parent), path.name) for path in paths]
    common = os.path.commonpath([path.parent for path in full]) if full else ""
    return [Path(os.path.relpath(path, common)).as_posix() for path in full]


def drawing_names(paths: Sequence[Path]) -> list[str]:
    """`<stem>.png`; of equal stems (case does not count) the second and others get -2, -3 and so on."""
    stems = [path.stem for path in paths]
    reserved, taken, names = {stem.lower() for stem in stems}, set(), []
    for stem in stems:
        name, number = stem, 1
        while name.lower() in taken or (number > 1 and name.lower() in reserved):
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(f"{name}.png")
    return names


def write(path: Path, data: bytes) -> None:
    """Write a file so that a reader never meets half of one."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def detect_files(detector: Detector, paths: Sequence[Path], output: Path, score_threshold: float = 0.5) -> int:
    """Write a drawing of each picture and `detections.json`, print the times, and return how many pictures were left out."""
    output.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    all_times: list[dict[str, float]] = []
    names, drawings = file_names(paths), drawing_names(paths)
    for number, path in enumerate(paths):
        times = dict.fromkeys(STAGES, 0.0)
        try:
            with timed(times, "load"):
                image = load_image(path)
        except ImageError as error:
            print(f"warning: left out: {error}", file=sys.stderr)
            continue
        found = detector(image, score_threshold=score_threshold)
        times.update(detector.times)
        with timed(times, "paste"):
            records += found.records(names[number])
        with timed(times, "draw"):
            png = io.BytesIO()
            draw(image, found).save(png, format="PNG", compress_level=3)
            write(output / drawings[number], png.getvalue())
        print(f"{names[number]}: {len(found)} found; {_milliseconds(times)}", flush=True)
        all_times.append(times)
    write(output / "detections.json", (json.dumps(records, allow_nan=False, ensure_ascii=False) + "\n").encode())
    if all_times:
        medians = {stage: statistics.median(times[stage] for times in all_times) for stage in STAGES}
        print(f"medians, {len(all_times)} done: {_milliseconds(medians)}")
    return len(paths) - len(all_times)


def _milliseconds(times: dict[str, float]) -> str:
    return ", ".join(f"{stage} {1000 * times[stage]:.1f}" for stage in STAGES) + f"; sum {1000 * sum(times.values()):.1f} ms"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Find and draw the objects of pictures with a TFLite bundle.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures, folders or globs")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets the drawings and detections.json")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--delegate", metavar="PATH", help="library of a TFLite delegate, for trunk, box head and mask head")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--runtime", choices=("auto", *PACKAGES), default="auto", help="default: auto, the first installed")
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parent, help="default: where this file lies")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    if not 0 <= options.score_threshold <= 1:
        parser.error(f"--score-threshold must be in 0..1, got {options.score_threshold}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(arguments)
    try:
        paths = image_paths(options.images)
        detector = Detector(options.bundle, threads=options.threads, delegate=options.delegate, runtime=options.runtime)
        return int(detect_files(detector, paths, options.output, options.score_threshold) > 0)
    except (DetectError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
