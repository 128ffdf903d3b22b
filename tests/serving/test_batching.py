"""Requests merged into batches, on a session that notes what it is asked."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.serving.metrics import Metrics
from tests.serving.recorder import SECOND, Recorder, ask, ask_together, batching, wait_for
from tests.serving.status import Code, StatusError


def test_requests_are_merged_and_each_gets_its_rows():
    recorder = Recorder()
    with batching(recorder, max_batch_size=6, batch_timeout_micros=5 * SECOND) as session:
        futures = ask_together(session, (1,), (2, 3), (4, 5, 6), fetches=("n:0", "y:0"))
    for future, values in zip(futures, ((1,), (2, 3), (4, 5, 6)), strict=True):
        rows, doubled = future.result()
        # Full, so it did not wait for its five seconds.
        np.testing.assert_array_equal(rows, [6] * len(values))
        np.testing.assert_array_equal(doubled, 2 * np.array(values))
    assert recorder.sizes == [6]


def test_a_batch_that_is_not_full_waits_for_its_time():
    recorder = Recorder()
    with batching(recorder, batch_timeout_micros=SECOND // 5) as session:
        start = time.monotonic()
        ask(session, 1)
        assert 0.19 < time.monotonic() - start < 1


def test_no_time_to_wait():
    with batching(Recorder(), batch_timeout_micros=0) as session:
        start = time.monotonic()
        ask(session, 1)
        assert time.monotonic() - start < 0.1


def test_requests_that_do_not_fit_begin_the_next_batch():
    recorder = Recorder()
    with batching(recorder, max_batch_size=4, batch_timeout_micros=SECOND // 10) as session:
        ask_together(session, (1, 1, 1), (2, 2, 2))
    assert recorder.sizes == [3, 3]


def test_batches_are_padded_to_allowed_sizes_with_copies_of_a_row():
    recorder, metrics = Recorder(), Metrics()
    with batching(recorder, metrics, max_batch_size=4, allowed_batch_sizes=(1, 4)) as session:
        (result,) = ask(session, 7, 8)
    np.testing.assert_array_equal(result, [14, 16])
    np.testing.assert_array_equal(recorder.batches[0]["x:0"], [7, 8, 7, 7])
    page = metrics.page()
    assert ':tensorflow:serving:batching_session:padding_size_sum{execution_batch_size="4"} 2' in page
    assert ":tensorflow:serving:batching_session:processed_batch_size_sum{} 4" in page
    assert ":tensorflow:serving:batching_session:wrapped_run_count{} 1" in page


def test_strings_are_merged():
    recorder = Recorder()
    with batching(recorder, max_batch_size=2, batch_timeout_micros=5 * SECOND) as session, ThreadPoolExecutor(2) as pool:
        texts = [np.array([text], object) for text in (b"a", b"bb" * 30)]
        futures = [pool.submit(session.run, {"x:0": text}, ["y:0"]) for text in texts]
        assert [future.result()[0].tolist() for future in futures] == [[b"aa"], [b"bb" * 60]]
    assert recorder.sizes == [2]


def test_an_error_reaches_every_request_of_the_batch_and_no_other():
    with batching(Recorder(), max_batch_size=2, batch_timeout_micros=5 * SECOND) as session:
        failed = ask_together(session, (1,), (-1,))
        fine = ask_together(session, (1,), (2,))
    for future in failed:
        error = future.exception()
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "negative")
    assert failed[0].exception() is not failed[1].exception()
    assert [future.result()[0] for future in fine] == [2, 4]


def test_other_shapes_in_one_batch_are_an_error_for_all():
    recorder = Recorder()
    with batching(recorder, max_batch_size=2, batch_timeout_micros=5 * SECOND) as session:
        for future in ask_together(session, ((1, 2),), ((1, 2, 3),)):
            assert future.exception().code == Code.FAILED_PRECONDITION
            assert "different shapes and padding is turned off" in future.exception().message
        # Alone, or among its like, each is fine.
        assert [len(future.result()[0][0]) for future in ask_together(session, ((1, 2),), ((3, 4),))] == [2, 2]
    assert recorder.sizes == [2]


def test_only_equal_feeds_and_fetches_are_merged():
    recorder = Recorder()
    with batching(recorder) as session, ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(ask, session, 1, fetches=fetches) for fetches in (("y:0", "n:0"), ("n:0", "y:0"), ("y:0",))]
        (first, rows), (rows_too, second), (alone,) = (future.result() for future in futures)
    assert (first, second, alone, rows, rows_too) == (2, 2, 2, 2, 2)
    assert sorted(recorder.sizes) == [1, 2]


def test_a_full_queue_is_unavailable():
    recorder = Recorder()
    recorder.gate.clear()
    with (
        batching(recorder, max_batch_size=1, max_enqueued_batches=2, batch_timeout_micros=0) as session,
        ThreadPoolExecutor(3) as pool,
    ):
        running = pool.submit(ask, session, 1)
        wait_for(lambda: recorder.batches)
        waiting = [pool.submit(ask, session, number) for number in (2, 3)]
        wait_for(lambda: pool._work_queue.empty())
        time.sleep(0.1)
        with pytest.raises(StatusError, match="full; currently 2 batches enqueued and max_enqueued_batches is 2") as caught:
            ask(session, 4)
        recorder.gate.set()
        assert [future.result()[0] for future in (running, *waiting)] == [2, 4, 6]
    assert caught.value.code == Code.UNAVAILABLE


def test_several_threads_run_batches_at_the_same_time():
    recorder = Recorder()
    recorder.gate.clear()
    with batching(recorder, max_batch_size=1, num_batch_threads=2) as session, ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(ask, session, number) for number in range(3)]
        wait_for(lambda: len(recorder.batches) == 2)
        time.sleep(0.05)
        assert len(recorder.batches) == 2
        recorder.gate.set()
        assert [future.result()[0] for future in futures] == [0, 2, 4]


def test_queues_are_served_in_turn():
    recorder = Recorder()
    recorder.gate.clear()
    with batching(recorder, max_batch_size=1, batch_timeout_micros=0) as session, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask, session, 0)]
        wait_for(lambda: recorder.batches)
        for number in (1, 2, 3):
            futures.append(pool.submit(ask, session, number))
            time.sleep(0.02)
        futures.append(pool.submit(ask, session, 9, fetches=("n:0",)))
        time.sleep(0.05)
        recorder.gate.set()
        for future in futures:
            future.result()
    values = [batch["x:0"][0] for batch in recorder.batches]
    assert values.index(9) <= 2


def test_too_many_rows_for_a_batch():
    with batching(Recorder(), max_batch_size=2) as session, pytest.raises(StatusError, match="Task size 3 is larger") as caught:
        ask(session, 1, 2, 3)
    assert caught.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("output", "message"), [("scalar:0", "0 dimensions"), ("short:0", "does not equal the sum of the 0th dimension sizes")]
)
def test_outputs_must_have_the_rows_of_the_inputs(output, message):
    with batching(Recorder()) as session, pytest.raises(StatusError, match=message) as caught:
        ask(session, 1, 2, fetches=(output,))
    assert caught.value.code == Code.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "at least one input tensor"),
        ({"x:0": np.float32(1)}, "at least one dimension"),
        ({"x:0": np.zeros(2), "z:0": np.zeros(3)}, "equal 0th-dimension size"),
    ],
)
def test_inputs_must_have_a_common_first_axis(feeds, message):
    feeds = {name: np.asarray(value) for name, value in feeds.items()}
    with batching(Recorder()) as session, pytest.raises(StatusError, match=message) as caught:
        session.run(feeds, ["y:0"])
    assert caught.value.code == Code.INVALID_ARGUMENT


def test_the_most_patient_request_of_a_batch_sets_its_timeout():
    recorder = Recorder()
    with (
        batching(recorder, max_batch_size=2, batch_timeout_micros=5 * SECOND) as session,
        ThreadPoolExecutor(2) as pool,
    ):
        for timeouts in ((10, 20), (10, None)):
            for future in [pool.submit(ask, session, 1, timeout=timeout) for timeout in timeouts]:
                future.result()
    assert 19 < recorder.timeouts[0] <= 20
    assert recorder.timeouts[1] is None


def test_a_batch_nobody_waits_for_is_not_run():
    recorder = Recorder()
    with (
        batching(recorder, batch_timeout_micros=SECOND // 10) as session,
        pytest.raises(StatusError, match="timeout exceeded while waiting in batching queue") as caught,
    ):
        ask(session, 1, timeout=0.01)
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    assert recorder.batches == []


def test_no_rows_at_all():
    recorder = Recorder()
    with batching(recorder, batch_timeout_micros=0) as session:
        (result,) = ask(session)
    assert result.shape == (0,)
    with (
        batching(recorder, batch_timeout_micros=0, max_batch_size=2, allowed_batch_sizes=(1, 2)) as session,
        pytest.raises(StatusError, match="no row"),
    ):
        ask(session)
