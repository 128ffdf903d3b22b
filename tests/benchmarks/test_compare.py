import json
import sys

import pytest

from benchmarks import compare, comparisons
from benchmarks.comparisons import Comparison, Interpreters
from benchmarks.peers.turns import Side
from benchmarks.report import tables, write_report


def side(**options):
    return Side(sys.executable, "tests.benchmarks.fake_worker", options)


def test_systems_that_are_not_here_are_left_out():
    found = {one.name: one for one in comparisons.comparisons(Interpreters("us", torchvision="them"), threads=2)}
    assert set(found["training_512"].present()) == {
        "ours",
        "ours, recomputing",
        "ours, bfloat16",
        "torchvision",
        "bare convolutions",
    }
    assert "inference_model_garden" not in found
    assert all(one.present()[one.base] for one in found.values())
    assert len({one.name for one in found.values()}) == len(found)


def test_all_sides_of_a_comparison_are_given_the_same():
    everything = Interpreters("us", torchvision="a", model_garden="b", detectron2="c")
    for one in comparisons.comparisons(everything, threads=3):
        for key in ("threads", "height", "width", "batch"):
            assert len({side.options.get(key) for side in one.present().values()}) == 1, (one.name, key)


def test_without_any_peer_only_our_own_are_compared():
    found = comparisons.comparisons(Interpreters("us"), threads=2)
    assert {one.name for one in found} == {"inference_detectron2", "training_xla"}


def test_ratios_are_to_the_base_and_a_failure_is_kept_as_one():
    one = Comparison("x", "x", {"ours": side(sleep=0.02), "peer": side(sleep=0.04), "gone": None}, base="peer")
    found = compare._measured(one, rounds=2)
    assert set(found["sides"]) == {"ours", "peer"}
    assert found["sides"]["peer"]["ratio"] == found["sides"]["peer"]["memory_ratio"] == 1
    assert found["sides"]["ours"]["ratio"] < 1
    broken = Comparison("x", "x", {"ours": side(fail_at=0), "peer": side()}, base="peer")
    assert compare._measured(broken, rounds=2)["error"].startswith("ours ended with status 1")


def test_results_of_what_is_not_run_stay(tmp_path):
    path = tmp_path / "results.json"
    for name in ("a", "b", "a"):
        compare._keep(path, Comparison(name, name, {}), {"title": name})
    assert json.loads(path.read_text()) == {"a": {"title": "a"}, "b": {"title": "b"}}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_an_unknown_comparison_is_named_with_those_there_are():
    found = comparisons.comparisons(Interpreters("us", torchvision="them"), threads=2)
    assert {one.group for one in compare._chosen(found, ["classes"])} == {"classes"}
    with pytest.raises(SystemExit, match="nothing_of_the_kind; there are batch"):
        compare._chosen(found, ["nothing_of_the_kind"])


def figures(seconds, **facts):
    return {"seconds": seconds, "ratio": seconds / 2, "first_seconds": 3.0, "peak_mib": 100.0, "memory_ratio": 1.0, **facts}


def test_report(tmp_path):
    machine = {
        "processor": "P",
        "instructions": ["avx2"],
        "cores": 2,
        "memory_gib": 24.0,
        "threads": 2,
        "versions": {"ours": {"tensorflow": "2.20.0"}},
    }
    sides = {"ours": figures(1.0, detections=100), "torchvision": figures(2.0, detections=99)}
    results = {
        "inference_v1": {"title": "inference", "base": "torchvision", "sides": sides, "machine": machine},
        "broken": {"title": "another", "base": "torchvision", "error": "ours ended with status 1", "machine": machine},
        "classes_1": {"title": "inference, 1 class", "group": "classes", "at": 1, "sides": sides, "machine": machine},
    }
    text = tables(results)
    assert "| ours | 1.000 | 0.50 | 3.0 | 100 | 1.00 | 100 detections |" in text
    assert "Not measured: ours ended with status 1" in text
    assert "| 1 class | 1.000 | 2.000 | 0.50 | 1.00 | 100, 99 |" in text
    assert text.count("P (avx2), 2 cores") == 1
    (tmp_path / "images").mkdir()
    write_report(results, tmp_path)
    assert (tmp_path / "images" / "performance_systems.png").stat().st_size > 1000
    assert (tmp_path / "images" / "performance_growth.png").stat().st_size > 1000


def test_report_of_nothing(tmp_path):
    write_report({}, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["performance_tables.md"]
