"""Images from files, whatever their kind, as uint8 RGB; and lists of image files."""

from __future__ import annotations

import glob
import io
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What counts as an image when a folder is listed."""

_JPEG_OR_PNG = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
"""How their files start."""
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_WHITE_16_BIT = 65535
_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class ImageError(ValueError):
    """An image file that cannot be read; the message names the file and the fault."""


class ImageFile(Protocol):
    """A file: a `Path`, or something that can be read like one: a member of an archive, a record."""

    def is_file(self) -> bool:
        """Whether it is there."""
        ...

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Its content.

        Raises:
            OSError: it cannot be read.
        """
        ...


class ImageFolder(Protocol):
    """A `Path`, or something else that has files by their names."""

    def is_dir(self) -> bool:
        """Whether it is there."""
        ...

    def __truediv__(self, name: str) -> ImageFile: ...


def as_folder(folder: str | ImageFolder) -> ImageFolder:
    """The folder of this path, or the folder itself."""
    return Path(folder) if isinstance(folder, str) else folder


def load_image(path: str | ImageFile) -> np.ndarray:
    """Read an image file.

    The EXIF orientation is applied. Alpha is dropped, grey is repeated, CMYK and palettes are converted (as Pillow's
    `convert("RGB")`), 16-bit grey is scaled to 8 bits where Pillow's own conversion would clip it.

    Args:
        path: of a JPEG, PNG, TIFF, WebP, BMP or GIF (its first frame).

    Returns:
        [height, width, 3] uint8 RGB.

    Raises:
        ImageError: the file is missing, is no image, is broken or truncated, or holds values with no known white.
    """
    try:
        with (Path(path) if isinstance(path, str) else path).open("rb") as file, Image.open(file) as image:
            return _as_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such image file") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        # Pillow's own message names an object in memory where the file is not one of a disk.
        raise ImageError(f"{path}: not a readable image: of no kind that Pillow knows") from error
    except _FAULTS as error:
        raise ImageError(f"{path}: not a readable image: {error}") from error


def encoded_image(path: str | ImageFile) -> bytes:
    """A picture as a server takes it: the file itself if it is JPEG or PNG, otherwise what `load_image` reads, as PNG.

    Raises:
        ImageError: the file cannot be read, or is of another kind and no image.
    """
    try:
        with (Path(path) if isinstance(path, str) else path).open("rb") as file:
            data = file.read()
    except OSError as error:
        raise ImageError(f"{path}: not a readable image: {error.strerror}") from error
    return data if data.startswith(_JPEG_OR_PNG) else encode_png(load_image(path))


def encode_png(pixels: np.ndarray) -> bytes:
    """The file of a uint8 RGB picture [h, w, 3]; it is read once, so it need not be small."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG", compress_level=1)
    return encoded.getvalue()


def image_paths(arguments: Iterable[str | Path]) -> list[Path]:
    """Files named by a command line: files, folders and glob patterns.

    Args:
        arguments: a folder stands for its direct children with an image suffix, a pattern for the files it matches; anything
            else is taken as a file, there or not, so that reading it says what is wrong.

    Returns:
        The files in the order of the arguments, sorted within a folder or pattern, each once.

    Raises:
        ImageError: a folder or pattern without any image, or no argument.
    """
    paths = [path for argument in arguments for path in _expand(Path(argument).expanduser())]
    if not paths:
        raise ImageError("no images given; expected image files, folders or patterns")
    return list(dict.fromkeys(paths))


def _as_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in _DEEP_MODES:
        return np.repeat(_eight_bits(np.asarray(image))[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ImageError("floating-point pixels have no known white; expected 8 or 16 bits a channel")
    if image.mode == "P":
        # Pillow warns about palettes with several transparent entries unless they pass through RGBA.
        image = image.convert("RGBA")
    # A copy: the array of a Pillow image is read-only and keeps the image alive.
    return np.array(image.convert("RGB"))


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    if grey.min() < 0 or grey.max() > _WHITE_16_BIT:
        raise ImageError(f"expected 16-bit values in 0..{_WHITE_16_BIT}, got {grey.min()}..{grey.max()}")
    return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES and child.is_file())
    elif path.exists() or not glob.has_magic(str(path)):
        return [path]
    else:
        found = sorted(match for match in map(Path, glob.glob(str(path), recursive=True)) if match.is_file())
    if not found:
        raise ImageError(f"{path}: no image files there; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return found
