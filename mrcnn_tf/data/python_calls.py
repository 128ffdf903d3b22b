"""Python functions inside of a data set, and the end of the process.

A data set's threads read ahead. If the interpreter ends while one of them waits for Python, it waits for ever, and whoever
destroys the iterator waits for it: the process hangs. So calls end at once when the process is about to, and the last of them is
awaited while Python is still there.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

_QUIET_SECONDS = 0.3
"""Without a call. Between two calls a sample is decoded or resized, which takes less."""
_PATIENCE_SECONDS = 10.0
_closing = threading.Event()
_last_call = 0.0


def call_python(function: Callable[..., Any], inputs: Sequence[Any], types: Any) -> Any:
    """`tf.numpy_function`, for data sets.

    Args:
        function: from numpy arrays to numpy arrays.
        inputs: tensors.
        types: of what it returns.

    Returns:
        Tensors without static shapes.
    """

    def call(*values: Any) -> Any:
        global _last_call
        _last_call = time.monotonic()
        if _closing.is_set():
            raise StopIteration("the process ends")
        try:
            return function(*values)
        finally:
            _last_call = time.monotonic()

    return tf.numpy_function(call, inputs, types)


@atexit.register
def _let_calls_end() -> None:
    if not _last_call:
        return
    _closing.set()
    begun = time.monotonic()
    while time.monotonic() - max(_last_call, begun) < _QUIET_SECONDS and time.monotonic() - begun < _PATIENCE_SECONDS:
        time.sleep(_QUIET_SECONDS / 10)
