"""Keeping TensorFlow's start-up and optimiser chatter away from a user's terminal."""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import threading
from functools import cache

_LAST_LINES_SECONDS = 1.0
_CHATTER = re.compile(
    rb"^(WARNING: All log messages before absl|.*cuInit|.*oneDNN supports DT_UINT8 only"
    rb"|[IWE]\d{4} .*(PredictCost|computation_placer|cuda_|device_compiler|service\.cc|grpc_server_lib))"
)


@cache
def silence_tensorflow() -> None:
    """Drop the C++ messages that tell a user nothing; everything else still reaches stderr.

    `TF_CPP_MIN_LOG_LEVEL` does not help with messages written before absl's logging is initialised, which Python never does.
    Python's own stderr keeps the terminal, so that progress bars work; file descriptor 2, which C++ writes to, goes through a
    filter. Called by the command line before TensorFlow is loaded; only the first call does something.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow Datasets warns of its own use of a property.
    logging.getLogger("absl").addFilter(lambda record: "FeatureConnector.dtype" not in record.getMessage())
    sys.stderr.flush()
    terminal = os.dup(2)
    sys.stderr = os.fdopen(os.dup(terminal), "w", buffering=1)
    read_end, write_end = os.pipe()
    os.dup2(write_end, 2)
    os.close(write_end)
    forwarder = threading.Thread(target=_forward, args=(read_end, terminal), daemon=True)
    forwarder.start()
    atexit.register(_finish, forwarder, terminal)


def _forward(read_end: int, terminal: int) -> None:
    with os.fdopen(read_end, "rb") as lines:
        for line in lines:
            if not _CHATTER.match(line):
                os.write(terminal, line)


def _finish(forwarder: threading.Thread, terminal: int) -> None:
    """Let the last lines through: with descriptor 2 back on the terminal, the filter's pipe ends, unless a child holds it."""
    os.dup2(terminal, 2)
    forwarder.join(_LAST_LINES_SECONDS)
