"""Each kind of error by hand, what it costs, and the laws of the breakdown."""

import numpy as np
import pytest

from mrcnn_tf.metrics.errors import ERRORS, error_breakdown
from tests.metrics.scenes import found, random_scene, truth_of

CAT, DOG = 1, 2
BOX, FAR = [10, 10, 40, 40], [100, 60, 40, 40]
NEAR = [30, 10, 40, 40]
"""IoU with BOX is 1/3."""
NONE = dict.fromkeys(ERRORS, 0)


@pytest.fixture(params=["bbox", "segm"])
def kind(request):
    return request.param


def figures(truth, results, kind):
    section = error_breakdown(truth, results, kind)
    assert set(section["cost"]) == {*ERRORS, "false_positive", "false_negative"}
    return section["AP50"], {name: count for name, count in section["count"].items() if count}, section["cost"]


def test_all_right(kind):
    ap, counts, cost = figures(truth_of((CAT, BOX)), found((CAT, 0.9, BOX)), kind)
    assert (ap, counts) == (1, {})
    assert set(cost.values()) == {0}


def test_localisation(kind):
    """One cat, found with an IoU of 1/3: right if it were better placed."""
    ap, counts, cost = figures(truth_of((CAT, BOX)), found((CAT, 0.9, NEAR)), kind)
    assert (ap, counts) == (0, {"localisation": 1})
    assert cost["localisation"] == 1
    # The object is not missed: its detection only has to move. Without false negatives nothing is left to find.
    assert {name: cost[name] for name in ERRORS if cost[name]} == {"localisation": 1}


def test_classification(kind):
    """One of two cats is called a dog."""
    truth = truth_of((CAT, BOX), (DOG, FAR))
    ap, counts, cost = figures(truth, found((DOG, 0.9, BOX), (DOG, 0.8, FAR)), kind)
    assert counts == {"classification": 1}
    # Cats: nothing found, 0. Dogs: the second of two is right, precision 1/2 everywhere.
    assert ap == pytest.approx(1 / 4)
    assert cost["classification"] == pytest.approx(3 / 4)
    assert cost["false_positive"] == pytest.approx(1 / 4)


def test_both_wrong(kind):
    """A dog at an IoU of 1/3 with a cat: neither class nor place; the cat is missed."""
    ap, counts, cost = figures(truth_of((CAT, BOX), (DOG, FAR)), found((DOG, 0.9, NEAR), (DOG, 0.8, FAR)), kind)
    assert counts == {"both": 1, "missed": 1}
    assert ap == pytest.approx(1 / 4)
    assert cost["both"] == pytest.approx(1 / 4)
    # Cats are no longer asked for and there is none among the detections: the mean is that of the dogs.
    assert cost["missed"] == pytest.approx(1 / 4)


def test_duplicate(kind):
    """The same cat twice before another one."""
    truth = truth_of((CAT, BOX), (CAT, FAR))
    ap, counts, cost = figures(truth, found((CAT, 0.9, BOX), (CAT, 0.8, BOX), (CAT, 0.7, FAR)), kind)
    assert counts == {"duplicate": 1}
    # Recalls up to 0.5 (51 of 101) with precision 1, the rest with 2/3.
    assert ap == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert cost["duplicate"] == cost["false_positive"] == pytest.approx(1 - ap)
    assert cost["false_negative"] == 0


def test_background(kind):
    ap, counts, cost = figures(truth_of((CAT, BOX)), found((CAT, 0.9, FAR), (CAT, 0.8, BOX)), kind)
    assert (ap, counts) == (0.5, {"background": 1})
    assert cost["background"] == 0.5


def test_background_where_there_are_no_objects(kind):
    truth = truth_of((CAT, BOX), num_images=2)
    ap, counts, cost = figures(truth, found((CAT, 0.9, FAR, 2), (CAT, 0.8, BOX)), kind)
    assert (ap, counts, cost["background"]) == (0.5, {"background": 1}, 0.5)


def test_missed(kind):
    ap, counts, cost = figures(truth_of((CAT, BOX), (CAT, FAR)), found((CAT, 0.9, BOX)), kind)
    assert counts == {"missed": 1}
    assert ap == pytest.approx(51 / 101)
    assert cost["missed"] == cost["false_negative"] == pytest.approx(50 / 101)
    assert cost["false_positive"] == 0


def test_only_the_best_wrong_detection_of_an_object_becomes_right(kind):
    """A misplaced and a misnamed one point to the same cat: the better one takes it, whatever is put right."""
    truth = truth_of((CAT, BOX), (DOG, FAR))
    results = found((CAT, 0.9, NEAR), (DOG, 0.8, BOX), (DOG, 0.7, FAR))
    ap, counts, cost = figures(truth, results, kind)
    assert counts == {"localisation": 1, "classification": 1}
    assert ap == pytest.approx(1 / 4)
    assert cost["localisation"] == pytest.approx(1 / 2)
    # The misnamed one goes, and its cat stays unfound.
    assert cost["classification"] == pytest.approx(1 / 4)


def test_what_lies_in_a_crowd_region_is_neither_right_nor_wrong(kind):
    truth = truth_of((CAT, BOX), (CAT, FAR, {"iscrowd": 1}))
    ap, counts, cost = figures(truth, found((CAT, 0.9, [110, 65, 20, 20]), (CAT, 0.8, BOX)), kind)
    assert ap == 1
    assert cost["background"] == cost["false_positive"] == 0
    assert "missed" not in counts
    # A dog among the cats is an error like any other.
    ap, _, cost = figures(truth_of((DOG, BOX), (CAT, FAR, {"iscrowd": 1})), found((DOG, 0.9, FAR), (DOG, 0.8, BOX)), kind)
    assert ap == cost["background"] == 0.5


def test_no_objects(kind):
    for truth in (truth_of(), truth_of((CAT, BOX, {"iscrowd": 1}))):
        for results in ([], found((CAT, 0.9, FAR))):
            section = error_breakdown(truth, results, kind)
            assert section["AP50"] is None
            assert set(section["cost"].values()) == {None}
            assert section["count"] == {**NONE, "background": len(results)}


def test_no_detections(kind):
    ap, counts, cost = figures(truth_of((CAT, BOX), (DOG, FAR)), [], kind)
    assert (ap, counts) == (0, {"missed": 2})
    assert {name for name, value in cost.items() if value} == {"missed", "false_negative"}
    assert cost["missed"] == 1


def test_laws_on_drawn_scenes(kind):
    for seed in range(3):
        truth, results = random_scene(seed)
        section = error_breakdown(truth, results, kind)
        num_objects = sum(not record["iscrowd"] for record in truth["annotations"])
        wrong = sum(section["count"][name] for name in ERRORS[:-1])
        assert 0 < section["AP50"] < 1
        assert 0 <= len(results) - wrong <= num_objects
        assert all(0 <= cost <= 1 - section["AP50"] + 1e-9 for cost in section["cost"].values())
        # Errors do not depend on the order of the images or on a monotone change of the scores.
        renumbered = [{**result, "score": result["score"] ** 2 / 2} for result in results]
        shuffled = {**truth, "images": truth["images"][::-1]}
        assert error_breakdown(truth, renumbered, kind) == section
        assert error_breakdown(shuffled, results, kind)["count"] == section["count"]


def test_the_ap_is_close_to_that_of_coco():
    """The matching differs from COCO's in details only (a better object may be taken later there)."""
    from mrcnn_tf.evaluate import coco_metrics

    gaps = []
    for seed in range(3):
        truth, results = random_scene(seed, crowd=0)
        gaps.append(error_breakdown(truth, results, "bbox")["AP50"] - coco_metrics(truth, results, "bbox")["AP50"])
    assert np.abs(gaps).max() < 0.02
