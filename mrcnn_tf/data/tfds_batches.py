"""Training batches from a data set that `mrcnn-tf prepare-data` has written, streamed through TensorFlow Datasets.

Nothing is held in memory but a window of encoded pictures. A pass over the data opens the shards in an order of its own, reads
some of them in turns and shuffles what comes within a window; all of that follows from (seed, pass, worker) alone. A worker has
its own shards and passes over them at its own pace: its part of batch k are the samples from k * share on of its endless stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from mrcnn_tf.config import Config
from mrcnn_tf.data.augment import Sample, prepare_sample
from mrcnn_tf.data.batches import batch_samples
from mrcnn_tf.data.coco import DataError
from mrcnn_tf.data.epochs import rows_of_shard
from mrcnn_tf.data.python_calls import call_python
from mrcnn_tf.data.recipe import Recipe, training_recipe
from mrcnn_tf.data.stateless import number_of, seed_of, shuffled
from mrcnn_tf.data.tfds_index import Selection, SplitIndex, prepared_categories, select
from mrcnn_tf.data.tfds_reader import SerializedReader, check_streamable, classes_of, open_split

WINDOW = 1000
"""Records that are shuffled at a time: 170 MB of COCO's pictures, encoded."""
READ_BYTES = 2**22
"""Of a shard at a time."""
OPEN_SHARDS = 8
"""Read in turns, so that what is near in the window is from several of them."""

Contents = Callable[[tf.Tensor], tf.data.Dataset]


def tfds_batches(
    folder: str, split: str, config: Config, *, batch_size: int | None = None, seed: int | None = None
) -> TfdsBatches:
    """The training batches of a prepared split.

    Args:
        folder: that `mrcnn-tf prepare-data` has written, local or in a bucket.
        split: of it.
        config: its `data`, `model.preprocessing` and `model.mask_head` are used.
        batch_size: images of one batch over all replicas of all workers; None: `train.batch_size`.
        seed: None: `train.seed`.

    Raises:
        DataError: there is no such split, fewer images than a batch, or the configuration needs what cannot be streamed.
    """
    path = Path(folder) / split
    index, files, features = open_split(folder, split)
    selection = select(index, path, max_ground_truth=config.data.max_ground_truth, keep_empty=config.data.keep_empty)
    selection.report.log()
    size = batch_size or config.train.batch_size
    if selection.report.num_images < size:
        message = f"a batch needs {size} images, there are {selection.report.num_images} to train on"
        raise DataError(f"{path}: {message}", "too few images")
    masks = config.model.mask_head.enabled and index.masks
    check_streamable(config, path, masks=masks)
    categories = prepared_categories(folder)
    classes = classes_of(config, categories, path)
    recipe = training_recipe(config)
    return TfdsBatches(
        path=path,
        files=files,
        index=index,
        selection=selection,
        batch_size=size,
        seed=config.train.seed if seed is None else seed,
        num_workers=config.data.num_workers,
        image_size=config.data.image_size,
        recipe=recipe,
        read=SerializedReader(
            features=features,
            category_ids=tuple(category["id"] for category in categories),
            classes=classes,
            path=path,
            max_ground_truth=config.data.max_ground_truth,
            num_rows=selection.num_rows,
            masks=masks,
            segmentations=masks and recipe.cuts,
        ),
    )


@dataclass(frozen=True, eq=False)
class TfdsBatches:
    """The batches of a prepared split, numbered from 0 on through all epochs, with the members of `CocoBatches`.

    Attributes:
        path: of the split, for messages.
        files: the shards.
        index: what is in them.
        selection: what is used of it.
        batch_size: images of a batch over all workers.
        seed: of the run.
        num_workers: samples that are made at a time.
        image_size: (height, width) of the padded input.
        recipe: what is done to a sample.
        read: from a serialised record to a sample.
    """

    path: Path
    files: tuple[str, ...]
    index: SplitIndex
    selection: Selection
    batch_size: int
    seed: int
    num_workers: int
    image_size: tuple[int, int]
    recipe: Recipe
    read: Callable[[tf.Tensor], Sample]

    @property
    def num_per_epoch(self) -> int:
        """Batches of an epoch, which is as many images as are used; several workers pass over their shares at their own pace."""
        return self.selection.report.num_images // self.batch_size

    def epoch(self) -> tf.data.Dataset:
        """The batches of the next epoch, each time the data set is iterated; `len()` is known."""
        numbers = itertools.count()

        def first() -> np.int64:
            return np.int64(next(numbers) * self.num_per_epoch * self.batch_size)

        def expand(_: tf.Tensor) -> tf.data.Dataset:
            return self._elements(tf.ensure_shape(call_python(first, [], tf.int64), []), (0, 1), self._records)

        batches = self._batches(tf.data.Dataset.from_tensors(0).flat_map(expand), self.batch_size).take(self.num_per_epoch)
        return batches.apply(tf.data.experimental.assert_cardinality(self.num_per_epoch))

    def endless(self, start: int = 0, shard: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
        """All batches from number `start` on; of those before it in the same pass the records are read, and not decoded.

        Args:
            start: number of the first.
            shard: (worker, workers): this worker's share of each batch, from the shards `worker`, `worker + workers`, ...; the
                others are not read. What is in a batch depends on the number of workers.

        Returns:
            A data set of batches of `batch_size / workers` images.

        Raises:
            ValueError: the batches cannot be divided evenly among the workers.
            DataError: there are fewer shards than workers, or nothing to train on in those of this one; or one is missing or not
                whole.
        """
        rows = rows_of_shard(shard, self.batch_size)
        share = rows.stop - rows.start
        self._require_shards(shard)
        return self._batches(self._elements(tf.constant(start * share, tf.int64), shard, self._records), share)

    def file_names(self, number: int, num_workers: int = 1) -> list[str]:
        """The images of a batch of so many workers; with `data.copy_paste`, those that objects are pasted into."""
        share = self.batch_size // num_workers
        names = [name for shard in self.index.shards for name in shard.file_name]
        found = []
        for worker in range(num_workers):
            begin = tf.constant(number * share, tf.int64)
            elements = self._elements(begin, (worker, num_workers), self._numbers)
            found += [names[position] for _, position in elements.take(share).as_numpy_iterator()]
        return found

    def _elements(self, begin: tf.Tensor, shard: tuple[int, int], contents: Contents) -> tf.data.Dataset:
        """The endless stream of a worker from element `begin` on: (pass, what `contents` gives of a record)."""
        worker, workers = shard
        numbers = np.arange(worker, len(self.files), workers)
        count = sum(int(self.selection.kept[number].sum()) for number in numbers)
        self._require(count, shard)

        def whole_pass(number: tf.Tensor) -> tf.data.Dataset:
            seed = tf.random.experimental.stateless_fold_in(seed_of(self.seed, number), worker)
            order = tf.random.experimental.stateless_shuffle(tf.constant(numbers, tf.int64), seed=seed)
            records = tf.data.Dataset.from_tensor_slices(order).interleave(
                contents, cycle_length=OPEN_SHARDS, block_length=1, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
            )
            return shuffled(records, seed, WINDOW).map(lambda *record: (number, *record))

        first = begin // count
        begun = whole_pass(first).skip(begin % count)
        return begun.concatenate(tf.data.Dataset.counter(first + 1, dtype=tf.int64).flat_map(whole_pass))

    def _places(self, shard: tf.Tensor) -> tf.data.Dataset:
        """Of the used records of a shard, counted through all shards."""
        lengths = np.array([len(shard) for shard in self.index.shards], np.int64)
        start = tf.gather(tf.constant(np.cumsum(lengths) - lengths), shard)
        used = tf.constant(np.concatenate(self.selection.kept))
        places = tf.data.Dataset.range(start, start + tf.gather(tf.constant(lengths), shard))
        return places.map(lambda place: (place, tf.gather(used, place)))

    def _records(self, shard: tf.Tensor) -> tf.data.Dataset:
        """The used records of a shard with their places."""
        records = tf.data.TFRecordDataset(tf.gather(tf.constant(self.files), shard), buffer_size=READ_BYTES)
        used = tf.data.Dataset.zip(self._places(shard), records).filter(lambda place, _: place[1])
        return used.map(lambda place, record: (place[0], record))

    def _numbers(self, shard: tf.Tensor) -> tf.data.Dataset:
        """As `_records`, the places alone."""
        return self._places(shard).filter(lambda _, used: used).map(lambda place, _: place)

    def _batches(self, elements: tf.data.Dataset, size: int) -> tf.data.Dataset:
        if self.recipe.copy_paste:
            # The objects that are pasted come from the next picture of the stream.
            pairs = elements.window(2, shift=1, drop_remainder=True)
            elements = pairs.flat_map(
                lambda *columns: tf.data.Dataset.zip(*(column.batch(2, drop_remainder=True) for column in columns))
            )
        else:
            elements = elements.batch(1, drop_remainder=True)
        samples = elements.map(self._sample, num_parallel_calls=self.num_workers, deterministic=True)
        return batch_samples(samples, size)

    @tf.autograph.experimental.do_not_convert
    def _sample(self, passes: tf.Tensor, places: tf.Tensor, records: tf.Tensor) -> Sample:
        """A sample for a batch from one or two records."""
        seed = number_of(tf.random.experimental.stateless_fold_in(seed_of(self.seed, passes[0]), places[0]))
        raw = [self.read(records[number]) for number in range(2 if self.recipe.copy_paste else 1)]
        return prepare_sample(raw[0], seed, self.image_size, self.recipe, *raw[1:])

    def _require_shards(self, shard: tuple[int, int]) -> None:
        """See that the shards of a worker are there and as long as they were written."""
        worker, workers = shard
        for path, index in zip(self.files[worker::workers], self.index.shards[worker::workers], strict=True):
            found = tf.io.gfile.stat(path).length if tf.io.gfile.exists(path) else None
            if found != index.num_bytes:
                what = "there is no such shard" if found is None else f"the shard has {found} bytes"
                raise DataError(
                    f"{path}: {what}, written were {index.num_bytes}; copy it, or prepare the data again", "broken file"
                )

    def _require(self, count: int, shard: tuple[int, int]) -> None:
        worker, workers = shard
        if len(self.files) < workers:
            message = f"{len(self.files)} shards cannot be shared by {workers} workers"
            raise DataError(f"{self.path}: {message}; prepare the data with --shards {workers} or more", "broken file")
        if not count:
            raise DataError(f"{self.path}: the shards of worker {worker} of {workers} have nothing to train on", "too few images")
