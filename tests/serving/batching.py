"""Merging the requests of several clients into one run of the graph, as TensorFlow Serving's BatchingSession does."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tests.serving.batch_queues import BatchThreads, Queue, Task
from tests.serving.batching_options import BatchingOptions
from tests.serving.c_session import CSession
from tests.serving.metrics import Metrics
from tests.serving.status import Code, StatusError


class _Signature(NamedTuple):
    """What requests must have in common to be merged."""

    feeds: tuple[str, ...]
    fetches: tuple[str, ...]


class BatchingSession:
    """Runs a session's graph on merged requests; the requests come from as many threads, each waiting for its part.

    Args:
        session: what runs the merged batches. It is not closed here.
        options: sizes and times.
        threads: they run the batches, and may be shared with other sessions.
        metrics: gets sizes of batches and times of waiting.
    """

    def __init__(self, session: CSession, options: BatchingOptions, threads: BatchThreads, metrics: Metrics):
        self._session, self._options, self._threads, self._metrics = session, options, threads, metrics
        self._lock = threading.Lock()
        self._queues: dict[_Signature, Queue] = {}

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout: float | None = None) -> list[np.ndarray]:
        """As `CSession.run`, with others that feed and fetch the same tensors.

        Raises:
            StatusError: INVALID_ARGUMENT: the feeds have no common axis 0, or too many rows; UNAVAILABLE: the queue is full;
                FAILED_PRECONDITION: the batch cannot be merged, or its outputs not be divided; RESOURCE_EXHAUSTED: every request
                of the batch waited beyond its timeout; what the merged run gives.
        """
        rows = _rows(feeds)
        self._metrics.observe("batching_session/input_batch_size", rows)
        queue = self._queue(_Signature(tuple(sorted(feeds)), tuple(sorted(set(fetches)))))
        tasks = self._threads.add(queue, feeds, rows, None if timeout is None else time.monotonic() + timeout)
        parts = []
        for task in tasks:
            try:
                parts.append(task.result.result())
            except StatusError as error:
                # Everyone in the batch gets an error of his own: a raised one carries its raiser's traceback.
                raise StatusError(error.code, error.message) from error
        return [_joined([part[name] for part in parts]) for name in fetches]

    def close(self) -> None:
        """Give up the queues; no run is under way."""
        for queue in self._queues.values():
            self._threads.remove(queue)
        self._queues.clear()

    def _queue(self, signature: _Signature) -> Queue:
        with self._lock:
            if signature not in self._queues:
                self._queues[signature] = Queue(self._options, lambda tasks: self._process(signature, tasks))
                self._threads.register(self._queues[signature])
            return self._queues[signature]

    def _process(self, signature: _Signature, tasks: list[Task]) -> None:
        """Run a batch and hand each task its rows, or the error."""
        for task in tasks:
            micros = (time.monotonic() - task.enqueued) * 1e6
            self._metrics.observe("batching_session/queuing_latency", micros, thread_pool_name=self._options.thread_pool_name)
        try:
            divided = self._run_merged(signature, tasks)
        except Exception as error:
            for task in tasks:
                task.result.set_exception(error)
        else:
            for task, part in zip(tasks, divided, strict=True):
                task.result.set_result(part)

    def _run_merged(self, signature: _Signature, tasks: list[Task]) -> list[dict[str, np.ndarray]]:
        timeout = _longest_timeout(tasks)
        rows = sum(task.rows for task in tasks)
        size = self._options.padded(rows)
        self._metrics.observe("batching_session/processed_batch_size", size)
        self._metrics.observe("batching_session/padding_size", size - rows, execution_batch_size=str(size))
        merged = {name: merge(name, [task.feeds[name] for task in tasks], size - rows) for name in signature.feeds}
        outputs = self._session.run(merged, signature.fetches, timeout)
        self._metrics.count("batching_session/wrapped_run_count")
        for output in outputs:
            if output.ndim == 0:
                raise StatusError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
            if len(output) != size:
                message = (
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input tensors"
                )
                raise StatusError(Code.FAILED_PRECONDITION, message)
        ends = np.cumsum([task.rows for task in tasks])
        parts = zip(*(np.split(output, ends)[: len(tasks)] for output in outputs), strict=True)
        return [dict(zip(signature.fetches, part, strict=True)) for part in parts]


def merge(name: str, values: list[np.ndarray], padding: int) -> np.ndarray:
    """One array of several requests' values of a tensor, with `padding` copies of the last one's first row at the end.

    Raises:
        StatusError: FAILED_PRECONDITION: they differ in shape beyond axis 0; INTERNAL: in type.
    """
    if any(value.shape[1:] != values[0].shape[1:] for value in values):
        message = (
            f"Tensors with name '{name}' from different tasks have different shapes and padding is turned off. Set "
            "pad_variable_length_inputs to true, or ensure that all tensors with the same name have equal dimensions "
            "starting with the first dim."
        )
        raise StatusError(Code.FAILED_PRECONDITION, message)
    if any(value.dtype != values[0].dtype for value in values):
        raise StatusError(Code.INTERNAL, f"Tensor concat operation failed: '{name}' is of several types")
    if padding and not len(values[-1]):
        raise StatusError(Code.FAILED_PRECONDITION, f"the batch's last task has no row of '{name}' to pad with")
    return _joined([*values, *[values[-1][:1]] * padding])


def _longest_timeout(tasks: list[Task]) -> float | None:
    """The seconds that the most patient request of a batch still has."""
    deadlines = [task.deadline for task in tasks if task.deadline is not None]
    if len(deadlines) < len(tasks):
        return None
    timeout = max(deadlines) - time.monotonic()
    if timeout <= 0:
        raise StatusError(Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue")
    return timeout


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _rows(feeds: Mapping[str, np.ndarray]) -> int:
    if not feeds:
        raise StatusError(Code.INVALID_ARGUMENT, "Batching Run() must have at least one input tensor")
    if any(value.ndim == 0 for value in feeds.values()):
        raise StatusError(Code.INVALID_ARGUMENT, "Batching Run() input tensors must have at least one dimension")
    sizes = {len(value) for value in feeds.values()}
    if len(sizes) > 1:
        raise StatusError(Code.INVALID_ARGUMENT, "Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()
