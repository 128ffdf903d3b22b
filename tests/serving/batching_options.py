"""What `BatchingParameters` of a text proto come to."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from tests.serving.status import Code, StatusError


@dataclass(frozen=True)
class BatchingOptions:
    """How requests are merged; the names and defaults are TensorFlow Serving's.

    Attributes:
        max_batch_size: rows of one request, and of a merged batch unless `max_execution_batch_size` says less.
        batch_timeout_micros: how long the first request of a batch waits for others.
        max_enqueued_batches: batches waiting in one queue, the open one among them.
        num_batch_threads: batches under way at the same time.
        thread_pool_name: their name in the metrics.
        allowed_batch_sizes: a merged batch is padded to the next of these; none: it is not.
        enable_large_batch_splitting: a request may be spread over batches.
        max_execution_batch_size: rows of a merged batch, with splitting.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    thread_pool_name: str = "batch_threads"
    allowed_batch_sizes: tuple[int, ...] = ()
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int | None = None

    @property
    def execution_limit(self) -> int:
        """Rows that a merged batch may have."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size is not None:
            return self.max_execution_batch_size
        return self.max_batch_size

    def padded(self, rows: int) -> int:
        """The rows that a batch of `rows` is padded to: the next allowed size, `rows` itself if there is none."""
        return min((size for size in self.allowed_batch_sizes if size >= rows), default=rows)


def batching_options(parameters: Any) -> BatchingOptions:
    """Read a `BatchingParameters` message.

    Raises:
        StatusError: INVALID_ARGUMENT: values that TensorFlow Serving refuses when it loads a model with them;
            UNIMPLEMENTED: `pad_variable_length_inputs`, which this stand-in does not have.
    """
    if parameters.pad_variable_length_inputs:
        raise StatusError(Code.UNIMPLEMENTED, "the stand-in does not do pad_variable_length_inputs: true")
    names = (
        *("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads", "thread_pool_name"),
        *("enable_large_batch_splitting", "max_execution_batch_size"),
    )
    given = {name: getattr(parameters, name).value for name in names if parameters.HasField(name)}
    options = BatchingOptions(**given, allowed_batch_sizes=tuple(parameters.allowed_batch_sizes))
    if options.max_enqueued_batches == 0 and not options.enable_large_batch_splitting:
        options = replace(options, max_enqueued_batches=1)
    for name, value, least, demand in (
        ("num_batch_threads", options.num_batch_threads, 1, "positive"),
        ("input_batch_size_limit", options.max_batch_size, 1, "positive"),
        ("batch_timeout_micros", options.batch_timeout_micros, 0, "non-negative"),
        ("max_enqueued_batches", options.max_enqueued_batches, 1, "positive"),
    ):
        if value < least:
            raise StatusError(Code.INVALID_ARGUMENT, f"{name} must be {demand}; was {value}")
    if options.allowed_batch_sizes and options.allowed_batch_sizes[-1] != options.max_batch_size:
        message = (
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
            f"{options.allowed_batch_sizes[-1]}; expected {options.max_batch_size}"
        )
        raise StatusError(Code.INVALID_ARGUMENT, message)
    if options.execution_limit > options.max_batch_size:
        message = (
            "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or equal to "
            "max_execution_batch_size."
        )
        raise StatusError(Code.INVALID_ARGUMENT, message)
    return options
