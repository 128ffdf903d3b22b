"""The switch between the kinds of graph that the operations are written for.

Outside `static_graph()` an operation may use data-dependent shapes and kernels that only the TensorFlow runtime has
(`tf.image.crop_and_resize`, `tf.where`). Inside it, whatever is traced uses static shapes and operations that XLA and
TFLite have, with the same numbers. `xla_on_cpu()` is a static graph in which convolutions are written as XLA's compiler for
CPUs computes them fastest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_STATIC: ContextVar[bool] = ContextVar("mrcnn_tf_static_graph", default=False)
_XLA_ON_CPU: ContextVar[bool] = ContextVar("mrcnn_tf_xla_on_cpu", default=False)


@contextmanager
def static_graph() -> Iterator[None]:
    """Trace for XLA or TFLite: `with static_graph(): ...` around the traced Python code, inside the `tf.function`."""
    token = _STATIC.set(True)
    try:
        yield
    finally:
        _STATIC.reset(token)


@contextmanager
def xla_on_cpu() -> Iterator[None]:
    """Trace for XLA where it compiles for a CPU; used as `static_graph`, which it includes."""
    token = _XLA_ON_CPU.set(True)
    try:
        with static_graph():
            yield
    finally:
        _XLA_ON_CPU.reset(token)


def in_static_graph() -> bool:
    """True while `static_graph()` or `xla_on_cpu()` is active in this thread."""
    return _STATIC.get()


def in_xla_on_cpu() -> bool:
    """True while `xla_on_cpu()` is active in this thread."""
    return _XLA_ON_CPU.get()
