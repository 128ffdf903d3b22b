"""Pairing of what two systems find in a picture."""

import numpy as np
import pytest

from mrcnn_tf.detections import Detections
from mrcnn_tf.export.agreement import Agreement, agreement

CATEGORIES = tuple({"id": number, "name": str(number)} for number in (1, 2))


def detections(*rows, masks=True):
    """Rows of (y1, x1, y2, x2, class, score, mask value)."""
    table = np.array(rows, np.float32).reshape(-1, 7)
    return Detections(
        boxes=table[:, :4],
        classes=table[:, 4].astype(np.int32),
        scores=table[:, 5],
        mask_probs=np.tile(table[:, 6, None, None], (1, 28, 28)) if masks else None,
        image_size=(100, 100),
        categories=CATEGORIES,
    )


A, B = (10, 10, 30, 30, 1, 0.9, 0.5), (50, 50, 90, 90, 2, 0.8, 0.25)


def compare(expected, found):
    return agreement([(expected, found)])


def test_the_same():
    assert compare(detections(A, B), detections(A, B)) == Agreement(objects=2)
    assert compare(detections(A, B), detections(B, A)) == Agreement(objects=2)
    assert compare(detections(), detections()) == agreement([]) == Agreement()
    assert compare(detections(A, masks=False), detections(A, masks=False)) == Agreement(objects=1)


def test_differences_over_pictures():
    moved = (10, 10.5, 30, 30, 1, 0.875, 0.5)
    changed = (50, 50, 90, 91, 2, 0.8, 0.75)
    found = agreement([(detections(A), detections(moved)), (detections(B), detections(changed))])
    assert (found.objects, found.matched) == (2, 1)
    assert (found.boxes, found.scores, found.masks) == (1, pytest.approx(0.025), 0.5)
    assert found.mean_boxes == pytest.approx(1.5 / 8)
    assert found.mean_scores == pytest.approx(0.0125)
    assert found.mean_masks == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("expected", "found", "matched"),
    [
        ([A, B], [A], 0.5),
        ([A], [A, B], 0.5),
        ([A], [], 0),
        ([], [A], 0),
        ([A], [(*A[:4], 2, 0.9, 0.5)], 0),  # another class
        ([A], [(10, 21, 30, 41, 1, 0.9, 0.5)], 0),  # too little overlap
        ([A, A], [A], 0.5),  # a partner is taken once
        ([(5, 5, 5, 9, 1, 0.9, 0.5)], [(5, 5, 5, 9, 1, 0.9, 0.5)], 0),  # nothing to overlap
    ],
)
def test_objects_without_a_partner(expected, found, matched):
    assert compare(detections(*expected), detections(*found)).matched == matched


def test_each_takes_the_nearest():
    near = (10, 10, 30, 31, 1, 0.1, 0.5)
    far = (10, 10, 30, 38, 1, 0.9, 0.5)
    assert compare(detections(A), detections(far, near)).boxes == 1


def test_in_words():
    found = Agreement(4, 0.5, 1, 0.2, 0.3, 0.5, 0.1, 0.15)
    assert str(found) == (
        "50.0 % of the objects found, boxes 0.5 px apart, at most 1, scores 0.1 apart, at most 0.2, masks 0.15 apart, at most 0.3"
    )
    assert str(Agreement()).startswith("all objects found, boxes 0 px apart")
