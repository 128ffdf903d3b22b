"""What the readers of foreign checkpoints raise."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What pickle, zipfile, h5py, numpy and the readers themselves raise on nonsense.
BROKEN_FILE_ERRORS = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError),
    *(ValueError, TypeError, LookupError, AttributeError, RuntimeError, OSError, OverflowError),
)


class CheckpointError(ValueError):
    """A file that cannot be read as a checkpoint; the message says which and why."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that asks for more than arrays; nothing of it has been run."""


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn what goes wrong inside into a `CheckpointError`, and see to it that the message names the file.

    Args:
        path: of the file.
        kind: what it should be, with an article.

    Raises:
        CheckpointError: instead of the other error; an `UnsafeCheckpointError` stays one.
    """
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except BROKEN_FILE_ERRORS as error:
        raise CheckpointError(f"{path} is truncated, broken or not {kind}: {error or type(error).__name__}") from error
