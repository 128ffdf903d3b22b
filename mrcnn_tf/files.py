"""Writing files so that a reader never meets half of one: to a temporary name first, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there takes the place of `path` unless an error comes up."""
    path = Path(path)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(value: Any, path: str | Path) -> None:
    """Write JSON.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def write_png(image: NDArray[np.uint8], path: str | Path) -> None:
    """Write a uint8 RGB picture [h, w, 3]."""
    with replacing(path) as temporary:
        # Stronger compression of a photograph saves little and takes longer than drawing it.
        Image.fromarray(image).save(temporary, format="PNG", compress_level=3)
