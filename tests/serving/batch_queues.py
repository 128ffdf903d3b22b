"""Queues of tasks that are merged into batches, and the threads that serve all queues in turn."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from tests.serving.batching_options import BatchingOptions
from tests.serving.status import Code, StatusError


@dataclass
class Task:
    """Rows of one request.

    Attributes:
        feeds: values by the names of tensors.
        rows: their size along axis 0.
        deadline: when (`time.monotonic`) nobody waits for it any more; None: never.
        result: where the results go, arrays by the names of tensors.
        enqueued: when it came.
    """

    feeds: Mapping[str, np.ndarray]
    rows: int
    deadline: float | None = None
    result: Future[dict[str, np.ndarray]] = field(default_factory=Future)
    enqueued: float = field(default_factory=time.monotonic)


@dataclass
class Batch:
    """Tasks to be run together."""

    tasks: list[Task] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of all tasks."""
        return sum(task.rows for task in self.tasks)


class Queue:
    """The batches of one set of feeds and fetches. The last one is open: tasks are added to it. Not thread safe by itself."""

    def __init__(self, options: BatchingOptions, process: Callable[[list[Task]], None]):
        self.process = process
        self._options = options
        self._batches = deque([Batch()])

    def add(self, feeds: Mapping[str, np.ndarray], rows: int, deadline: float | None) -> list[Task]:
        """Enqueue a request: one task, or several if it is split over batches.

        Raises:
            StatusError: INVALID_ARGUMENT: too many rows for this queue at any time; UNAVAILABLE: the queue is full.
        """
        self._check_room(rows)
        tasks, start = [], 0
        for size in self._sizes(rows):
            task = Task({name: value[start : start + size] for name, value in feeds.items()}, size, deadline)
            start += size
            if self._batches[-1].rows + size > self._options.execution_limit:
                self._batches.append(Batch())
            self._batches[-1].tasks.append(task)
            tasks.append(task)
        return tasks

    def take(self, now: float) -> Batch | None:
        """The next batch that is due: closed, full, or its first task has waited long enough."""
        due = self.due()
        if due is None or due > now:
            return None
        batch = self._batches.popleft()
        if not self._batches:
            self._batches.append(Batch())
        return batch

    def due(self) -> float | None:
        """When (`time.monotonic`) the next batch is to be run if nothing else comes; None without tasks."""
        first = self._batches[0]
        if not first.tasks:
            return None
        if len(self._batches) > 1 or first.rows >= self._options.execution_limit:
            return 0.0
        return first.tasks[0].enqueued + self._options.batch_timeout_micros / 1e6

    def _sizes(self, rows: int) -> list[int]:
        if not self._options.enable_large_batch_splitting or rows == 0:
            return [rows]
        limit = self._options.execution_limit
        first = min(limit - self._batches[-1].rows, rows)
        rest = rows - first
        return [size for size in (first, *[limit] * (rest // limit), rest % limit) if size]

    def _check_room(self, rows: int) -> None:
        options, count, open_rows = self._options, len(self._batches), self._batches[-1].rows
        if rows > options.max_batch_size:
            message = f"Task size {rows} is larger than maximum input batch size {options.max_batch_size}"
            raise StatusError(Code.INVALID_ARGUMENT, message)
        full = "The batch scheduling queue to which this task was submitted is full; "
        if options.enable_large_batch_splitting:
            room = (options.max_enqueued_batches - count) * options.execution_limit + options.execution_limit - open_rows
            if rows > room:
                message = (
                    f"{full}task size is {rows} but scheduling capacity is only {room} (num_enqueued_batches={count}, "
                    f"max_enqueued_batches={options.max_enqueued_batches}, open_batch_size={open_rows}, "
                    f"max_execution_batch_size={options.execution_limit})"
                )
                raise StatusError(Code.UNAVAILABLE, message)
        elif open_rows + rows > options.max_batch_size and count >= options.max_enqueued_batches:
            message = f"{full}currently {count} batches enqueued and max_enqueued_batches is {options.max_enqueued_batches}"
            raise StatusError(Code.UNAVAILABLE, message)


class BatchThreads:
    """Threads that run the batches of all queues, one queue after the other."""

    def __init__(self, number: int, name: str = "batch_threads"):
        self._changed = threading.Condition()
        self._queues: deque[Queue] = deque()
        self._stopped = False
        self._threads = [threading.Thread(target=self._work, name=f"{name}_{index}", daemon=True) for index in range(number)]
        for thread in self._threads:
            thread.start()

    def register(self, queue: Queue) -> None:
        """Serve a queue from now on."""
        with self._changed:
            self._queues.append(queue)

    def remove(self, queue: Queue) -> None:
        """Serve a queue no longer; it has no tasks."""
        with self._changed:
            self._queues.remove(queue)

    def add(self, queue: Queue, feeds: Mapping[str, np.ndarray], rows: int, deadline: float | None) -> list[Task]:
        """As `Queue.add`, while the threads are at work."""
        with self._changed:
            tasks = queue.add(feeds, rows, deadline)
            self._changed.notify_all()
        return tasks

    def close(self) -> None:
        """End the threads; tasks that wait are not run."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (found := self._next()) is not None:
            queue, batch = found
            queue.process(batch.tasks)

    def _next(self) -> tuple[Queue, Batch] | None:
        """Wait for a batch that is due; None when the threads are to end."""
        with self._changed:
            while not self._stopped:
                now = time.monotonic()
                for _ in range(len(self._queues)):
                    queue = self._queues[0]
                    self._queues.rotate(-1)
                    if batch := queue.take(now):
                        return queue, batch
                times = [due for queue in self._queues if (due := queue.due()) is not None]
                self._changed.wait(min(times) - now if times else None)
        return None
