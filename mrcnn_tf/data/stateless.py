"""Random choices in a `tf.data` pipeline that follow from seeds alone, so that they are the same wherever it begins."""

from __future__ import annotations

import tensorflow as tf


def shuffled(records: tf.data.Dataset, seed: tf.Tensor, window: int) -> tf.data.Dataset:
    """Records in another order within each window, from `seed` [2] alone: `Dataset.shuffle` follows a global one, too."""

    def mixed(number: tf.Tensor, *columns: tf.Tensor) -> tuple[tf.Tensor, ...]:
        own = tf.random.experimental.stateless_fold_in(seed, number)
        order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(columns[0])[0]), seed=own)
        return tuple(tf.gather(column, order) for column in columns)

    windows = records.map(lambda *columns: columns).batch(window).enumerate()
    return windows.map(lambda number, columns: mixed(number, *columns)).prefetch(1).unbatch()


def seed_of(seed: int, number: tf.Tensor) -> tf.Tensor:
    """[2] int64 of a pass."""
    return tf.stack([tf.constant(seed, tf.int64), number])


def number_of(seed: tf.Tensor) -> tf.Tensor:
    """[] int64, not negative."""
    return tf.random.stateless_uniform([], seed, 0, tf.int64.max, tf.int64)
