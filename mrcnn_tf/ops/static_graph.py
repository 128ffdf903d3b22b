"""The switch between the two kinds of graph that the operations are written for.

Outside `static_graph()` an operation may use data-dependent shapes and kernels that only the TensorFlow runtime has
(`tf.image.crop_and_resize`, `tf.where`). Inside it, whatever is traced uses static shapes and operations that XLA and
TFLite have, with the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_STATIC: ContextVar[bool] = ContextVar("mrcnn_tf_static_graph", default=False)


@contextmanager
def static_graph() -> Iterator[None]:
    """Trace for XLA or TFLite: `with static_graph(): ...` around the traced Python code, inside the `tf.function`."""
    token = _STATIC.set(True)
    try:
        yield
    finally:
        _STATIC.reset(token)


def in_static_graph() -> bool:
    """True while `static_graph()` is active in this thread."""
    return _STATIC.get()
