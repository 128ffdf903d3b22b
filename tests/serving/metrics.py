"""Counters and histograms under TensorFlow Serving's names, as a Prometheus page."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager

from tests.serving.status import Code, StatusError


def _exponential(first: float, growth: float, count: int) -> list[float]:
    return [first * growth**power for power in range(count)]


_MICROSECONDS = _exponential(10, 1.8, 33)
_ROWS = _exponential(1, 2, 14)
_LIMITS = {
    "request_latency": _MICROSECONDS,
    "runtime_latency": _MICROSECONDS,
    "model_warmup_latency": _MICROSECONDS,
    "batching_session/queuing_latency": _exponential(100, 1.2, 52),
    "batching_session/input_batch_size": _ROWS,
    "batching_session/processed_batch_size": _ROWS,
    "batching_session/padding_size": _ROWS,
}
"""Upper limits of the buckets of each histogram; the last bucket has none."""

_Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counts and distributions by name (without `/tensorflow/serving/`) and labels; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[_Labels, int]] = {}
        self._histograms: dict[str, dict[_Labels, tuple[list[int], list[float]]]] = {}

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter."""
        with self._lock:
            cells = self._counters.setdefault(name, {})
            key = tuple(labels.items())
            cells[key] = cells.get(key, 0) + 1

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram, one of `_LIMITS`."""
        limits = _LIMITS[name]
        with self._lock:
            cells = self._histograms.setdefault(name, {})
            buckets, total = cells.setdefault(tuple(labels.items()), ([0] * (len(limits) + 1), [0.0]))
            buckets[bisect_left(limits, value)] += 1
            total[0] += value

    @contextmanager
    def request(self, model: str, api: str, entrypoint: str) -> Iterator[None]:
        """Count a request with the status it ends in; measure it if it ends well."""
        start = time.perf_counter()
        status = Code.INTERNAL
        try:
            yield
            status = Code.OK
            micros = (time.perf_counter() - start) * 1e6
            self.observe("request_latency", micros, model_name=model, API=api, entrypoint=entrypoint)
        except StatusError as error:
            status = error.code
            raise
        finally:
            self.count("request_count", model_name=model, status=status.name)

    def page(self) -> str:
        """Everything in Prometheus' text format."""
        lines = []
        with self._lock:
            for name, counts in sorted(self._counters.items()):
                lines.append(f"# TYPE {_full(name)} counter")
                lines += [f"{_full(name)}{_braces(labels)} {value}" for labels, value in counts.items()]
            for name, cells in sorted(self._histograms.items()):
                lines.append(f"# TYPE {_full(name)} histogram")
                for labels, (buckets, (total,)) in cells.items():
                    so_far = 0
                    for limit, number in zip([*(f"{limit:g}" for limit in _LIMITS[name]), "+Inf"], buckets, strict=True):
                        so_far += number
                        lines.append(f"{_full(name)}_bucket{_braces((*labels, ('le', limit)))} {so_far}")
                    lines += [f"{_full(name)}_sum{_braces(labels)} {total:g}", f"{_full(name)}_count{_braces(labels)} {so_far}"]
        return "\n".join(lines) + "\n"


def _full(name: str) -> str:
    return f":tensorflow:serving:{name.replace('/', ':')}"


def _braces(labels: _Labels) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{key}="{escaped(value)}"' for key, value in labels) + "}"
