"""A folder that is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ExportError(ValueError):
    """An export that cannot be made, or that does not compute what the model computes."""


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder under a temporary name; it gets its own when all has gone well, and goes when not.

    Raises:
        ExportError: there is something of this name.
    """
    if path.exists():
        raise ExportError(f"{path} exists, and nothing is written over it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    # That of an export that was killed.
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
