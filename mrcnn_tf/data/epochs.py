"""Which pictures an epoch's batches are made of. Numpy, and from (seed, epoch) alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mrcnn_tf.data.repeat_factor import draw_repeats


class EpochPlan(NamedTuple):
    """The samples of an epoch's batches, one batch after the other; n = batches * batch size.

    Attributes:
        image: [n] int64, number of the picture.
        other: [n] int64, number of the picture whose objects may be pasted into it.
        seed: [n] int64, of all else that is drawn for the sample.
        bucket: [n] int32, of the padded size; the same within a batch.
    """

    image: np.ndarray
    other: np.ndarray
    seed: np.ndarray
    bucket: np.ndarray


@dataclass(frozen=True, eq=False)
class Planner:
    """How epochs are planned.

    Attributes:
        buckets: [n] int, the bucket of each picture.
        factors: [n] float64, how often each is to be seen in an epoch; 1 each: once.
        batch_size: samples of a batch.
        seed: of the run.
        shuffled: anew in every epoch; otherwise all epochs are alike, in the order of the pictures.
    """

    buckets: np.ndarray
    factors: np.ndarray
    batch_size: int
    seed: int
    shuffled: bool = True

    @property
    def num_batches(self) -> int:
        """Of an epoch. What does not fill another batch of its bucket is left out of that epoch."""
        return sum(self._num_batches(bucket) for bucket in np.unique(self.buckets))

    def draw(self, epoch: int) -> EpochPlan:
        """The plan of an epoch, numbered from 0 on."""
        random = np.random.default_rng([self.seed, epoch])
        batches = np.concatenate([self._batches_of(bucket, random) for bucket in np.unique(self.buckets)])
        image = (random.permutation(batches) if self.shuffled else batches).ravel()
        other = random.integers(len(self.buckets), size=len(image))
        seed = random.integers(np.iinfo(np.int64).max, size=len(image))
        return EpochPlan(image, other, seed, self.buckets[image].astype(np.int32))

    def _batches_of(self, bucket: int, random: np.random.Generator) -> np.ndarray:
        """[batches, batch size] int64 of the pictures of one bucket."""
        members = np.flatnonzero(self.buckets == bucket)
        if self.shuffled:
            members = random.permutation(np.repeat(members, draw_repeats(self.factors[members], random)))
        count = self._num_batches(bucket)
        return members[: count * self.batch_size].reshape(count, self.batch_size)

    def _num_batches(self, bucket: int) -> int:
        total = math.fsum(self.factors[self.buckets == bucket]) if self.shuffled else np.sum(self.buckets == bucket)
        return int(total) // self.batch_size


def nearest_bucket(sizes: Sequence[tuple[int, int]], buckets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The bucket whose aspect ratio is nearest, as a ratio of ratios; the first of equally near ones.

    Args:
        sizes: n (height, width) of pictures.
        buckets: (height, width) padded.

    Returns:
        [n] int64 numbers of buckets.
    """
    pictures, padded = (np.log(np.array(pairs, np.float64).reshape(-1, 2)) for pairs in (sizes, buckets))
    distance = np.abs((pictures[:, :1] - pictures[:, 1:]) - (padded[:, 0] - padded[:, 1]))
    return np.argmin(np.round(distance, 9), axis=1)


def rows_of_shard(shard: tuple[int, int], batch_size: int) -> slice:
    """The rows of each batch that worker `shard[0]` of `shard[1]` computes.

    Raises:
        ValueError: there is no such worker, or the batch cannot be divided evenly.
    """
    worker, workers = shard
    if not 0 <= worker < workers:
        raise ValueError(f"a shard is (worker, workers) with 0 <= worker < workers, got {shard}")
    if batch_size % workers:
        raise ValueError(f"a batch of {batch_size} cannot be divided evenly among {workers} workers")
    share = batch_size // workers
    return slice(worker * share, (worker + 1) * share)
