import numpy as np
import pytest

from mrcnn_tf.data.coco_records import CocoObject, Record
from mrcnn_tf.data.repeat_factor import draw_repeats, repeat_factors


def _record(number, *classes, crowd=()):
    objects = [CocoObject(n, class_id, (0, 0, 1, 1), 1.0) for n, class_id in enumerate(classes)]
    objects += [CocoObject(100 + n, class_id, (0, 0, 1, 1), 1.0, crowd=True) for n, class_id in enumerate(crowd)]
    return Record(number, f"{number}.png", 10, 10, tuple(objects))


def test_factors_by_hand():
    """Of ten pictures all have class 1, four class 2 and one class 3; t = 0.5: sqrt(0.5 / 0.4) and sqrt(0.5 / 0.1)."""
    records = [_record(n, 1) for n in range(5)] + [_record(n, 1, 2, 2) for n in range(5, 9)] + [_record(9, 1, 3)]
    np.testing.assert_allclose(repeat_factors(records, 0.5), [1] * 5 + [1.25**0.5] * 4 + [5**0.5])


def test_pictures_without_objects_and_crowds():
    records = [_record(0), _record(1, crowd=(1,)), _record(2, 2), _record(3, 1)]
    np.testing.assert_allclose(repeat_factors(records, 1.0), [1, 1, 2, 2])
    assert repeat_factors([], 0.1).shape == (0,)


def test_repeats_have_the_mean_of_the_factors_and_a_constant_sum():
    factors = np.array([1.0, 1.2, 2.75, 1.0, 3.05, 1.6] * 5)
    random = np.random.default_rng(0)
    drawn = np.array([draw_repeats(factors, random) for _ in range(4000)])
    np.testing.assert_allclose(drawn.mean(axis=0), factors, atol=0.035)
    assert set(drawn.sum(axis=1)) <= {int(factors.sum()), int(factors.sum()) + 1}
    assert (drawn >= np.floor(factors)).all()
    assert (drawn <= np.ceil(factors)).all()


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_factors_of_one_are_once_each(count):
    assert (draw_repeats(np.ones(count), np.random.default_rng(1)) == 1).all()
