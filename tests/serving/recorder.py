"""A session that notes the batches it is asked to run, for the tests of batching."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from tests.serving.batch_queues import BatchThreads
from tests.serving.batching import BatchingSession
from tests.serving.batching_options import BatchingOptions
from tests.serving.metrics import Metrics
from tests.serving.status import Code, StatusError

SECOND = 1_000_000


class Recorder:
    """Doubles `x:0` into `y:0`, counts rows into `n:0`; notes the batches; waits at a gate."""

    def __init__(self):
        self.batches, self.timeouts = [], []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, feeds, fetches, timeout):
        self.timeouts.append(timeout)
        self.batches.append({name: value.copy() for name, value in feeds.items()})
        self.gate.wait(10)
        x = feeds["x:0"]
        if x.dtype == np.float32 and (x < 0).any():
            raise StatusError(Code.INVALID_ARGUMENT, "negative")
        values = {"y:0": x + x, "n:0": np.full(len(x), len(x)), "scalar:0": np.array(1), "short:0": x[1:]}
        return [values[name] for name in fetches]

    @property
    def sizes(self):
        return [len(batch["x:0"]) for batch in self.batches]


@contextmanager
def batching(recorder, metrics=None, **options):
    options = BatchingOptions(**{"batch_timeout_micros": SECOND // 20, "num_batch_threads": 1, **options})
    threads = BatchThreads(options.num_batch_threads)
    session = BatchingSession(recorder, options, threads, metrics or Metrics())
    try:
        yield session
    finally:
        recorder.gate.set()
        session.close()
        threads.close()


def ask(session, *values, fetches=("y:0",), timeout=None):
    return session.run({"x:0": np.array(values, np.float32)}, list(fetches), timeout)


def ask_together(session, *requests, **options):
    with ThreadPoolExecutor(len(requests)) as pool:
        futures = [pool.submit(ask, session, *values, **options) for values in requests]
    return futures


def wait_for(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
