"""Requests of more rows than a batch may have."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.serving.recorder import SECOND, Recorder, ask, batching
from tests.serving.status import Code, StatusError


def test_large_requests_are_split_and_put_together_again():
    recorder = Recorder()
    options = {"max_batch_size": 16, "max_execution_batch_size": 4, "enable_large_batch_splitting": True}
    with batching(recorder, **options) as session:
        (result,) = ask(session, *range(10))
    np.testing.assert_array_equal(result, 2 * np.arange(10))
    assert recorder.sizes == [4, 4, 2]


def test_a_split_request_fills_the_open_batch():
    recorder = Recorder()
    options = {"max_batch_size": 16, "max_execution_batch_size": 4, "enable_large_batch_splitting": True}
    with batching(recorder, batch_timeout_micros=SECOND // 5, **options) as session, ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, session, 100, 101, 102)
        time.sleep(0.05)
        (result,) = ask(session, *range(6))
        np.testing.assert_array_equal(first.result()[0], [200, 202, 204])
    np.testing.assert_array_equal(result, 2 * np.arange(6))
    assert recorder.sizes == [4, 4, 1]


def test_a_part_that_fails_fails_the_split_request():
    options = {"max_batch_size": 8, "max_execution_batch_size": 2, "enable_large_batch_splitting": True}
    with batching(Recorder(), **options) as session, pytest.raises(StatusError, match="negative"):
        ask(session, 1, 2, 3, -4)


def test_a_split_request_needs_room():
    recorder = Recorder()
    options = {"max_batch_size": 8, "max_execution_batch_size": 2, "enable_large_batch_splitting": True}
    with (
        batching(recorder, max_enqueued_batches=2, **options) as session,
        pytest.raises(StatusError, match="task size is 5 but scheduling capacity is only 4") as caught,
    ):
        ask(session, *range(5))
    assert caught.value.code == Code.UNAVAILABLE
    assert recorder.sizes == []
