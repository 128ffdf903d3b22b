"""The faster programs against pycocotools: published results, and drawn ones with all that is awkward."""

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from mrcnn_tf.metrics import backends
from mrcnn_tf.metrics.backends import check_backend
from mrcnn_tf.metrics.coco_tables import coco_tables
from mrcnn_tf.metrics.ground_truth import EvaluationError, read_ground_truth
from tests.metrics.scenes import found, random_scene, truth_of

FIXTURES = Path(__file__).parent.parent / "data_files" / "coco_eval"
FAST = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{name} is not installed"))
    for name, module in (("faster-coco-eval", "faster_coco_eval"), ("hotcoco", "hotcoco"))
]


def fixture(name):
    return json.loads(gzip.decompress((FIXTURES / f"{name}.json.gz").read_bytes()))


def assert_equal(truth, results, iou_type, backend, max_detections=100):
    expected, got = (
        coco_tables(truth, results, iou_type, max_detections=max_detections, backend=name) for name in ("pycocotools", backend)
    )
    np.testing.assert_allclose(got.precision, expected.precision, rtol=0, atol=1e-9)
    np.testing.assert_allclose(got.recall, expected.recall, rtol=0, atol=1e-9)
    ours, theirs = (tables.metrics() for tables in (got, expected))
    assert ours.pop("per_class") == pytest.approx(theirs.pop("per_class"), abs=1e-9)
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert got.classes() == [pytest.approx(row, abs=1e-9) for row in expected.classes()]
    return expected


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("iou_type", "results"), [("bbox", "fakebbox100"), ("segm", "fakesegm100")])
def test_equal_on_published_results(iou_type, results, backend):
    truth = read_ground_truth(fixture("instances_val2014_100"))
    tables = assert_equal(truth, fixture(f"instances_val2014_{results}_results"), iou_type, backend)
    assert 0.3 < tables.metrics()["AP"] < 0.6


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("max_detections", [1, 3, 100, 300])
def test_equal_on_drawn_scenes(iou_type, max_detections, backend):
    """Crowd regions, equal scores, a class without objects, images without either."""
    for seed in range(3):
        truth, results = random_scene(seed)
        tables = assert_equal(truth, results, iou_type, backend, max_detections)
        assert tables.metrics()["per_class"]["class 14"] is None


def test_equal_on_boundaries():
    pytest.importorskip("faster_coco_eval")
    for seed in range(3):
        assert_equal(*random_scene(seed), "boundary", "faster-coco-eval")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_nothing_to_compare(iou_type, backend):
    box = [10, 10, 30, 30]
    crowd = truth_of((1, box, {"iscrowd": 1}))
    for truth, results in (
        (truth_of(), []),
        (truth_of(), found((1, 0.9, box))),
        (truth_of((1, box)), []),
        (crowd, found((1, 0.9, box))),
        (crowd, []),
    ):
        assert_equal(truth, results, iou_type, backend)


def test_a_backend_is_checked_before_anything_is_detected(monkeypatch):
    check_backend("pycocotools", boundary=True)
    with pytest.raises(EvaluationError, match=r"pycocotools, faster-coco-eval, hotcoco, got 'fast'"):
        check_backend("fast", boundary=False)
    with pytest.raises(EvaluationError, match="boundaries"):
        check_backend("hotcoco", boundary=True)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"mrcnn-tf\[fast-eval\]"):
        check_backend("hotcoco", boundary=False)
