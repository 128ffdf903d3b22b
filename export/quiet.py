"""Without what libraries say that tells a user of an exporter nothing."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from absl import logging as absl_logging


@contextmanager
def without_warnings() -> Iterator[None]:
    """TensorFlow's warnings that gradients were not saved, which nobody asks for."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)


@contextmanager
def without_chatter() -> Iterator[None]:
    """The quantiser's sizes on stdout, and its warnings that signatures share constants, which they are meant to."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
