import sys

import pytest

from benchmarks.peers.turns import Side, WorkerError, measure


def side(**options):
    return Side(sys.executable, "tests.benchmarks.fake_worker", options)


def test_sides_are_measured_in_turns_after_one_repetition_that_does_not_count():
    told = []
    found = measure({"slow": side(sleep=0.03), "quick": side()}, rounds=3, report=told.append)
    assert [line.split(":")[0] for line in told] == ["slow", "quick"] * 3
    assert found["slow"]["count"] == 4
    assert len(found["slow"]["all_seconds"]) == 3
    assert sorted(found["slow"]["all_seconds"])[1] == found["slow"]["seconds"] >= 0.03
    assert found["slow"]["first_seconds"] >= 0.03


def test_peak_memory_is_that_since_loading():
    found = measure({"large": side(blocks=64), "small": side()}, rounds=1, report=lambda line: None)
    assert found["large"]["peak_mib"] - found["small"]["peak_mib"] == pytest.approx(2 * 64, abs=16)


@pytest.mark.parametrize("fail_at", [0, 2])
def test_a_worker_that_ends_is_an_error_with_what_it_wrote(fail_at):
    with pytest.raises(WorkerError, match=r"(?s)broken ended with status 1.*no more"):
        measure({"good": side(), "broken": side(fail_at=fail_at)}, rounds=3, report=lambda line: None)
