"""Orders and numbers that follow from their seeds alone."""

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.data.stateless import number_of, seed_of, shuffled


def order(seed, window, count=20):
    tf.random.set_seed(np.random.default_rng().integers(1000))
    records = shuffled(tf.data.Dataset.range(count), seed_of(0, tf.constant(seed, tf.int64)), window)
    return [int(number) for (number,) in records.as_numpy_iterator()]


@pytest.mark.parametrize("window", [1, 7, 20, 50])
def test_each_window_is_shuffled_by_itself(window):
    found = order(1, window)
    assert found == order(1, window)
    for start in range(0, 20, window):
        assert sorted(found[start : start + window]) == list(range(start, min(20, start + window)))
    if window > 1:
        assert found not in (list(range(20)), order(2, window))


def test_nothing_to_shuffle():
    assert order(1, 5, count=0) == []


def test_numbers_are_not_negative_and_repeat():
    numbers = [int(number_of(seed_of(3, tf.constant(number, tf.int64)))) for number in (*range(50), 0)]
    assert min(numbers) >= 0
    assert numbers[0] == numbers[-1]
    assert len(set(numbers)) == 50
