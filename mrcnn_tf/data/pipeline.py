"""COCO data sets as `tf.data` batches (docs/contracts.md).

One epoch is drawn at once, in numpy and from (seed, epoch) alone: the order of the images, their scale and their flip.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mrcnn_tf.config import MASK_SIZE, Category, Config
from mrcnn_tf.data.coco import DataError, Record, load_coco, parse_annotations
from mrcnn_tf.data.samples import SampleReader, has_masks, select_records
from mrcnn_tf.data.transforms import Sample, flip_sample, pad_sample, resize_sample, training_size

CACHE_BYTES = 512 * 2**20
"""Bound of the decoded images kept in memory, and again of the mask crops."""

_PREFETCHED_BATCHES = 2
EpochPlan = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of an epoch's images: index [n] int64, shortest edge [n] int32, pixels, and flip [n] bool."""
_DTYPES = {
    "images": tf.uint8,
    "image_sizes": tf.int32,
    "gt_boxes": tf.float32,
    "gt_classes": tf.int32,
    "gt_crowd": tf.bool,
    "gt_masks": tf.uint8,
}


def coco_dataset(
    images: Path | str,
    annotations: Path | str,
    config: Config,
    *,
    training: bool = True,
    batch_size: int | None = None,
    categories: Iterable[Category | Mapping[str, Any]] | None = None,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Batches of a COCO data set, one epoch per iteration.

    Images that do not fill the last batch are left out of that epoch. What else is left out (images without objects, objects
    above `data.max_ground_truth`) is counted and named by the logger `mrcnn_tf.data`; `mrcnn_tf.data.samples.select_records`
    gives it as a `DataReport`.

    Args:
        images: folder of the images.
        annotations: COCO JSON file.
        config: its `data`, `model.preprocessing` and `model.mask_head` are used.
        training: shuffled anew each epoch, scaled to one of `data.min_sizes`, flipped at random. Otherwise in the order of the
            file at the size of inference (`model.preprocessing`). Always shrunk to fit `data.image_size` and padded to it.
        batch_size: images of one batch over all replicas; None: `train.batch_size`.
        categories: `{"id", "name"}` in class order; None: `model.categories`, or if that is empty those of the file.
        seed: None: `train.seed`. The k-th iteration over data sets of one seed is the same.

    Returns:
        A data set of dicts of static shapes, `len()` known. `gt_masks` is absent when the file has no masks or the model none.

    Raises:
        DataError: a record that cannot be used (`read_annotations`), a missing image file, or fewer images than a batch. A broken
            image ends the iteration with a `tf.errors.InvalidArgumentError` that holds the message.
    """
    return coco_batches(
        images, annotations, config, training=training, batch_size=batch_size, categories=categories, seed=seed
    ).epoch()


def coco_batches(
    images: Path | str,
    annotations: Path | str,
    config: Config,
    *,
    training: bool = True,
    batch_size: int | None = None,
    categories: Iterable[Category | Mapping[str, Any]] | None = None,
    seed: int | None = None,
    content: Mapping[str, Any] | None = None,
) -> CocoBatches:
    """The batches of a COCO data set by their numbers.

    Arguments and errors are those of `coco_dataset`; `content` is that of the annotation file, where it is loaded already
    (`mrcnn_tf.data.skipping.without` leaves records out of it).
    """
    chosen = [_as_dict(category) for category in (categories or config.model.categories)] or None
    found = parse_annotations(load_coco(annotations) if content is None else content, annotations, chosen)
    masks = config.model.mask_head.enabled and has_masks(found)
    records, report = select_records(found, max_ground_truth=config.data.max_ground_truth, keep_empty=config.data.keep_empty)
    report.log()
    size = batch_size or config.train.batch_size
    if len(records) < size:
        raise DataError(f"{annotations}: a batch needs {size} images, there are {len(records)} to train on", "too few images")
    num_rows = max(1, *(len(record.objects) for record in records))
    reader = SampleReader(Path(images), found.path, records, num_rows=num_rows, masks=masks, cache_bytes=CACHE_BYTES)
    load = _loader(reader, records, config, training=training, num_rows=num_rows, masks=masks)
    draw = _drawer(len(records), config, training=training, seed=config.train.seed if seed is None else seed)
    return CocoBatches(records, size, config.data.num_workers, draw, load)


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
    _draw: Callable[[int], EpochPlan]
    _load: Callable[..., Sample]

    @property
    def num_per_epoch(self) -> int:
        """Batches of an epoch; the images that do not fill another one are left out of it."""
        return len(self.records) // self.batch_size

    def epoch(self) -> tf.data.Dataset:
        """The batches of the next epoch, each time the data set is iterated; `len()` is known."""
        return self._batches(self._epochs(0)).apply(tf.data.experimental.assert_cardinality(self.num_per_epoch))

    def endless(self, start: int = 0) -> tf.data.Dataset:
        """All batches from number `start` on; those before it are not made."""
        epoch, done = divmod(start, self.num_per_epoch)
        begun = self._epochs(epoch).skip(done * self.batch_size)
        return self._batches(begun.concatenate(self._epochs(epoch + 1).repeat()))

    def file_names(self, number: int) -> list[str]:
        """The images of a batch."""
        epoch, position = divmod(number, self.num_per_epoch)
        order = self._draw(epoch)[0][position * self.batch_size :][: self.batch_size]
        return [self.records[index].file_name for index in order]

    def _epochs(self, first: int) -> tf.data.Dataset:
        """(index, shortest edge, flip) of the images of an epoch's batches; the k-th iteration gives epoch first + k."""
        numbers, num_images = itertools.count(first), self.num_per_epoch * self.batch_size

        def draw() -> list[np.ndarray]:
            return [column[:num_images] for column in self._draw(next(numbers))]

        def expand(_: tf.Tensor) -> tf.data.Dataset:
            columns = tf.numpy_function(draw, [], [tf.int64, tf.int32, tf.bool])
            return tf.data.Dataset.from_tensor_slices(tuple(tf.ensure_shape(column, [num_images]) for column in columns))

        return tf.data.Dataset.from_tensors(0).flat_map(expand)

    def _batches(self, plan: tf.data.Dataset) -> tf.data.Dataset:
        samples = plan.map(self._load, num_parallel_calls=self._num_workers, deterministic=True)
        return samples.batch(self.batch_size, drop_remainder=True).prefetch(_PREFETCHED_BATCHES).with_options(_options())


def training_dataset(config: Config, *, batch_size: int | None = None, seed: int | None = None) -> tf.data.Dataset:
    """`coco_dataset` of `data.train`.

    Raises:
        ConfigError: the configuration does not name it.
        DataError: as `coco_dataset`.
    """
    images, annotations = config.data.path("train", "images"), config.data.path("train", "annotations")
    return coco_dataset(images, annotations, config, training=True, batch_size=batch_size, seed=seed)


def validation_dataset(config: Config, *, batch_size: int | None = None) -> tf.data.Dataset:
    """`coco_dataset` of `data.val`, neither shuffled nor flipped.

    Raises:
        ConfigError: the configuration does not name it.
        DataError: as `coco_dataset`.
    """
    images, annotations = config.data.path("val", "images"), config.data.path("val", "annotations")
    return coco_dataset(images, annotations, config, training=False, batch_size=batch_size)


def draw_epoch(num_images: int, seed: int, epoch: int, *, min_sizes: tuple[int, ...], flip: float) -> EpochPlan:
    """All random choices of one epoch, from its number alone.

    Args:
        num_images: n.
        seed: of the run.
        epoch: from 0.
        min_sizes: shortest edges drawn from, pixels.
        flip: probability of the horizontal flip.

    Returns:
        index [n] int64, a permutation; shortest edge [n] int32, pixels; flip [n] bool.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(num_images)
    edges = random.choice(np.array(min_sizes, np.int32), num_images)
    return order, edges, random.random(num_images) < flip


def _drawer(num_images: int, config: Config, *, training: bool, seed: int) -> Callable[[int], EpochPlan]:
    """From the number of an epoch to its images, their shortest edges and flips."""
    if training:
        return partial(draw_epoch, num_images, seed, min_sizes=config.data.min_sizes, flip=config.data.horizontal_flip)
    edges = np.full(num_images, config.model.preprocessing.min_size, np.int32)
    return lambda epoch: (np.arange(num_images), edges, np.zeros(num_images, np.bool_))


def _loader(
    reader: SampleReader, records: tuple[Record, ...], config: Config, *, training: bool, num_rows: int, masks: bool
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Sample]:
    """The map from one line of the plan to one padded sample."""
    image_size, how = config.data.image_size, config.model.preprocessing
    size_of = partial(
        training_size,
        max_size=config.data.max_size if training else how.max_size,
        image_size=image_size,
        rounding=how.resize_rounding,
        enlarge_only=how.enlarge_only,
    )
    shapes = _shapes(num_rows)
    keys = [key for key in _DTYPES if masks or key != "gt_masks"]

    def read(index: np.ndarray, min_size: np.ndarray) -> tuple[np.ndarray, ...]:
        record, sample = records[index], reader.read(int(index))
        size = size_of(record.height, record.width, min_size=int(min_size))
        return np.array(size, np.int32), *(sample[key] for key in keys)

    def load(index: tf.Tensor, min_size: tf.Tensor, flip: tf.Tensor) -> Sample:
        size, *values = tf.numpy_function(read, [index, min_size], [tf.int32, *(_DTYPES[key] for key in keys)])
        sample = {key: tf.ensure_shape(value, shapes[key]) for key, value in zip(keys, values, strict=True)}
        sample = resize_sample(sample, tf.ensure_shape(size, [2]), antialias=how.antialias, quantize=how.quantize)
        sample = tf.cond(flip, lambda: flip_sample(sample), lambda: sample)
        return pad_sample(sample, image_size, how.placement)

    return load


def _shapes(num_rows: int) -> dict[str, list[int | None]]:
    return {
        "images": [None, None, 3],
        "image_sizes": [2],
        "gt_boxes": [num_rows, 4],
        "gt_classes": [num_rows],
        "gt_crowd": [num_rows],
        "gt_masks": [num_rows, MASK_SIZE, MASK_SIZE],
    }


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    # There are no files to deal out to several workers; every one draws the same plan and takes its share.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return options


def _as_dict(category: Category | Mapping[str, Any]) -> dict[str, Any]:
    return category.model_dump() if isinstance(category, Category) else dict(category)
