"""PASCAL VOC's average precision, computed by hand."""

import pytest

from mrcnn_tf.metrics.voc import voc_metrics
from tests.metrics.scenes import found, random_scene, truth_of

CAT, DOG = 1, 2
BOX, FAR, THIRD = [10, 10, 40, 40], [100, 60, 40, 40], [60, 10, 30, 30]
DIFFICULT = {"difficult": 1}


def cats(truth, results, kind="bbox"):
    return voc_metrics(truth, results, kind)["per_class"]["cat"]


def test_all_found():
    metrics = voc_metrics(truth_of((CAT, BOX), (DOG, FAR)), found((CAT, 0.9, BOX), (DOG, 0.9, FAR)), "bbox")
    row = {"objects": 1, "AP50": 1, "AP50_2007": 1}
    assert metrics == {"AP50": 1, "AP50_2007": 1, "per_class": {"cat": row, "dog": row}}


def test_both_means_by_hand():
    """Right, wrong, right of three cats: recalls 1/3, 1/3, 2/3 with precisions 1, 1/2, 2/3."""
    truth = truth_of((CAT, BOX), (CAT, FAR), (CAT, THIRD))
    figures = cats(truth, found((CAT, 0.9, BOX), (CAT, 0.8, [0, 80, 20, 20]), (CAT, 0.7, FAR)))
    assert figures["AP50"] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    # Recalls 0, 0.1, 0.2, 0.3 with precision 1, then 0.4, 0.5, 0.6 with 2/3, and 0.
    assert figures["AP50_2007"] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)


def test_recalls_that_are_just_reached_count():
    """Three of ten: recall 0.3 is reached, 0.4 is not."""
    boxes = [[12 * n, 10, 10, 10] for n in range(10)]
    truth = truth_of(*((CAT, box) for box in boxes))
    figures = cats(truth, found(*((CAT, 0.9, box) for box in boxes[:3])))
    assert figures["AP50_2007"] == pytest.approx(4 / 11)
    assert figures["AP50"] == pytest.approx(0.3)


def test_a_second_detection_of_an_object_is_wrong():
    assert cats(truth_of((CAT, BOX), (CAT, FAR)), found((CAT, 0.9, BOX), (CAT, 0.8, BOX), (CAT, 0.7, FAR)))["AP50"] == (
        pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    )


def test_only_the_object_of_the_highest_iou_is_looked_at():
    """Two cats nearly at the same place, both detections closer to the first: COCO would give the second one the other cat."""
    first, second = [10, 10, 40, 40], [14, 10, 40, 40]
    results = found((CAT, 0.9, [10, 10, 40, 40]), (CAT, 0.8, [11, 10, 40, 40]))
    assert cats(truth_of((CAT, first), (CAT, second)), results)["AP50"] == pytest.approx(1 / 2)


def test_difficult_objects_are_not_asked_for_and_what_is_compared_with_them_does_not_count():
    truth = truth_of((CAT, BOX, DIFFICULT), (CAT, FAR))
    figures = cats(truth, found((CAT, 0.9, BOX), (CAT, 0.8, BOX), (CAT, 0.7, FAR)))
    assert figures == {"objects": 1, "AP50": 1, "AP50_2007": 1}
    # Not found does not matter either.
    assert cats(truth, found((CAT, 0.7, FAR)))["AP50"] == 1
    # Too far from it, a detection is wrong.
    assert cats(truth, found((CAT, 0.9, [40, 10, 40, 40]), (CAT, 0.7, FAR)))["AP50"] == 0.5


def test_an_iou_of_a_half_is_enough():
    assert cats(truth_of((CAT, BOX)), found((CAT, 0.9, [10, 10, 40, 20])))["AP50"] == 1
    assert cats(truth_of((CAT, BOX)), found((CAT, 0.9, [10, 10, 40, 19])))["AP50"] == 0


def test_other_classes_and_other_images_do_not_match():
    truth = truth_of((CAT, BOX), num_images=2)
    assert cats(truth, found((CAT, 0.9, BOX, 2)))["AP50"] == 0
    assert cats(truth, found((DOG, 0.9, BOX)))["AP50"] == 0


def test_the_order_is_that_of_the_scores_over_all_images():
    truth = truth_of((CAT, BOX), (CAT, BOX, {"image_id": 2}), num_images=2)
    figures = cats(truth, found((CAT, 0.5, BOX, 1), (CAT, 0.8, FAR, 1), (CAT, 0.9, BOX, 2)))
    assert figures["AP50"] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


def test_masks():
    """IoU 0.6: right up to 0.6."""
    figures = cats(truth_of((CAT, BOX)), found((CAT, 0.9, [10, 10, 40, 24])), "segm")
    assert figures == {"objects": 1, "AP50": 1, "AP70": 0, "AP_vol": pytest.approx(6 / 9)}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_nothing_to_measure(kind):
    for truth in (truth_of(), truth_of((CAT, BOX, DIFFICULT)), truth_of((CAT, BOX, {"iscrowd": 1}))):
        for results in ([], found((CAT, 0.9, BOX))):
            metrics = voc_metrics(truth, results, kind)
            assert metrics["AP50"] is None
            assert metrics["per_class"]["cat"]["objects"] == 0
    nothing = voc_metrics(truth_of((CAT, BOX)), [], kind)
    assert nothing["AP50"] == 0
    assert nothing["per_class"]["dog"]["AP50"] is None


def test_masks_of_drawn_scenes_fall_with_the_threshold():
    metrics = voc_metrics(*random_scene(0), "segm")
    assert 0 < metrics["AP70"] < metrics["AP50"] < 1
    assert metrics["per_class"]["class 14"]["AP_vol"] is None
