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


def test_the_same():
    assert agreement(detections(A, B), detections(A, B)) == Agreement(1, 0, 0, 0)
    assert agreement(detections(A, B), detections(B, A)) == Agreement(1, 0, 0, 0)
    assert agreement(detections(), detections()) == Agreement()
    assert agreement(detections(A, masks=False), detections(A, masks=False)) == Agreement()


def test_the_worst_differences():
    moved = (10, 10.5, 30, 30, 1, 0.875, 0.5)
    changed = (50, 50, 90, 91, 2, 0.8, 0.75)
    found = agreement(detections(A, B), detections(moved, changed))
    assert found == Agreement(matched=1, boxes=1, scores=pytest.approx(0.025), masks=0.5)


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
    assert agreement(detections(*expected), detections(*found)).matched == matched


def test_each_takes_the_nearest():
    near = (10, 10, 30, 31, 1, 0.1, 0.5)
    far = (10, 10, 30, 38, 1, 0.9, 0.5)
    assert agreement(detections(A), detections(far, near)).boxes == 1


def test_worst_of_two_pictures_in_words():
    worst = Agreement(0.5, 1, 0.1, 0).worst(Agreement(1, 0.5, 0.2, 0.3))
    assert worst == Agreement(0.5, 1, 0.2, 0.3)
    assert str(worst) == "50.0 % of the objects found, boxes within 1 px, scores within 0.2, masks within 0.3"
    assert str(Agreement()).startswith("all objects found")
