"""The batches of a COCO data set by their numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from mrcnn_tf.data.augment import Sample
from mrcnn_tf.data.coco_records import Record
from mrcnn_tf.data.epochs import Planner, rows_of_shard
from mrcnn_tf.data.python_calls import call_python

_PREFETCHED_BATCHES = 2
_PLAN_TYPES = (tf.int64, tf.int64, tf.int64, tf.int32)


@dataclass(frozen=True)
class CocoBatches:
    """The batches of a COCO data set, numbered from 0 on through all epochs.

    Attributes:
        records: that the batches are made of.
        batch_size: images of a batch.
    """

    records: tuple[Record, ...]
    batch_size: int
    _num_workers: int
    _planner: Planner
    _load: Callable[..., Sample]

    @property
    def num_per_epoch(self) -> int:
        """Batches of an epoch; the images that do not fill another one are left out of it."""
        return self._planner.num_batches

    def epoch(self) -> tf.data.Dataset:
        """The batches of the next epoch, each time the data set is iterated; `len()` is known."""
        batches = self._batches(self._epochs(0, slice(None)), self.batch_size)
        return batches.apply(tf.data.experimental.assert_cardinality(self.num_per_epoch))

    def endless(self, start: int = 0, shard: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
        """All batches from number `start` on; those before it are not made.

        Args:
            start: number of the first.
            shard: (worker, workers): only this worker's share of each batch, equal stretches of it in the order of the workers.
                What the others compute is not read. The batches are the same, however many workers there are.

        Returns:
            A data set of batches of `batch_size / workers` images.

        Raises:
            ValueError: the batches cannot be divided evenly among the workers.
        """
        rows = rows_of_shard(shard, self.batch_size)
        share = rows.stop - rows.start
        epoch, done = divmod(start, self.num_per_epoch)
        begun = self._epochs(epoch, rows).skip(done * share)
        return self._batches(begun.concatenate(self._epochs(epoch + 1, rows).repeat()), share)

    def file_names(self, number: int, num_workers: int = 1) -> list[str]:
        """The images of a batch, for any number of workers; with `data.copy_paste`, those that objects are pasted into."""
        epoch, position = divmod(number, self.num_per_epoch)
        order = self._planner.draw(epoch).image[position * self.batch_size :][: self.batch_size]
        return [self.records[index].file_name for index in order]

    def _epochs(self, first: int, rows: slice) -> tf.data.Dataset:
        """The `EpochPlan` of an epoch as its lines, of these rows of each batch; the k-th iteration gives epoch first + k."""
        numbers = itertools.count(first)

        def draw() -> list[np.ndarray]:
            columns = self._planner.draw(next(numbers))
            return [column.reshape(-1, self.batch_size)[:, rows].ravel() for column in columns]

        def expand(_: tf.Tensor) -> tf.data.Dataset:
            columns = call_python(draw, [], _PLAN_TYPES)
            return tf.data.Dataset.from_tensor_slices(tuple(tf.ensure_shape(column, [None]) for column in columns))

        return tf.data.Dataset.from_tensors(0).flat_map(expand)

    def _batches(self, plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        samples = plan.map(self._load, num_parallel_calls=self._num_workers, deterministic=True)
        return batch_samples(samples, size)


def batch_samples(samples: tf.data.Dataset, size: int) -> tf.data.Dataset:
    """Full batches of prepared samples, some of them made ahead; in the same order every time."""
    return samples.batch(size, drop_remainder=True).prefetch(_PREFETCHED_BATCHES).with_options(_options())


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    # There are no files to deal out to several workers; every one draws the same plan and takes its share.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return options
