"""COCO data sets as `tf.data` batches (docs/contracts.md).

The samples of an epoch are drawn at once (`mrcnn_tf.data.epochs`), what is done to each from a seed of its own
(`mrcnn_tf.data.augment`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mrcnn_tf.config import MASK_SIZE, Category, Config
from mrcnn_tf.data.augment import Sample, prepare_sample
from mrcnn_tf.data.batches import CocoBatches
from mrcnn_tf.data.coco import DataError, Record, load_coco, parse_annotations
from mrcnn_tf.data.epochs import Planner, nearest_bucket
from mrcnn_tf.data.images import ImageFolder, as_folder
from mrcnn_tf.data.python_calls import call_python
from mrcnn_tf.data.recipe import Recipe, training_recipe, validation_recipe
from mrcnn_tf.data.repeat_factor import repeat_factors
from mrcnn_tf.data.samples import SampleReader, has_masks, select_records

CACHE_BYTES = 512 * 2**20
"""Bound of the decoded images kept in memory, and again of the mask crops."""

_DTYPES = {
    "images": tf.uint8,
    "image_sizes": tf.int32,
    "gt_boxes": tf.float32,
    "gt_classes": tf.int32,
    "gt_crowd": tf.bool,
    "gt_masks": tf.uint8,
    "gt_segmentations": tf.string,
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
        training: shuffled anew each epoch and changed at random as `data` says. Otherwise in the order of the file at the size of
            inference (`model.preprocessing`). Padded to `data.image_size`, or the batches to one of `data.buckets` each.
        batch_size: images of one batch over all replicas; None: `train.batch_size`.
        categories: `{"id", "name"}` in class order; None: `model.categories`, or if that is empty those of the file.
        seed: None: `train.seed`. The k-th iteration over data sets of one seed is the same.

    Returns:
        A data set of dicts of static shapes, but for height and width where there are several buckets; `len()` known. `gt_masks`
        is absent when the file has no masks or the model none.

    Raises:
        DataError: a record that cannot be used (`read_annotations`), a missing image file, or fewer images than a batch. A broken
            image ends the iteration with a `tf.errors.InvalidArgumentError` that holds the message.
    """
    return coco_batches(
        images, annotations, config, training=training, batch_size=batch_size, categories=categories, seed=seed
    ).epoch()


def coco_batches(
    images: str | ImageFolder,
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
    if training and config.data.copy_paste and not masks:
        raise DataError(
            f"{annotations}: data.copy_paste needs masks, and there are none; set data.copy_paste=false", "missing mask"
        )
    planner = _planner(records, config, size, config.train.seed if seed is None else seed, training=training)
    if not planner.num_batches:
        raise DataError(f"{annotations}: a batch needs {size} images of one of data.buckets, none has as many", "too few images")
    recipe = (training_recipe if training else validation_recipe)(config)
    num_rows = max(1, *(len(record.objects) for record in records))
    reader = SampleReader(
        as_folder(images), found.path, records, num_rows=num_rows, masks=masks, cache_bytes=CACHE_BYTES, segmentations=recipe.cuts
    )
    load = _loader(reader, recipe, config.data.buckets or (config.data.image_size,), num_rows=num_rows)
    return CocoBatches(records, size, config.data.num_workers, planner, load)


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


def _planner(records: tuple[Record, ...], config: Config, batch_size: int, seed: int, *, training: bool) -> Planner:
    sizes = [(record.height, record.width) for record in records]
    buckets = nearest_bucket(sizes, config.data.buckets or (config.data.image_size,))
    threshold = config.data.repeat_threshold if training else None
    factors = np.ones(len(records)) if threshold is None else repeat_factors(records, threshold)
    return Planner(buckets, factors, batch_size, seed, shuffled=training)


def _loader(
    reader: SampleReader, recipe: Recipe, sizes: tuple[tuple[int, int], ...], *, num_rows: int
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], Sample]:
    """The map from one line of an `EpochPlan` to one padded sample; `sizes` are the padded ones."""

    def raw(index: tf.Tensor) -> Sample:
        return raw_sample(lambda number: reader.read(int(number)), [index], reader.keys, num_rows)

    # What call_python calls would be converted, too.
    @tf.autograph.experimental.do_not_convert
    def load(index: tf.Tensor, other: tf.Tensor, seed: tf.Tensor, bucket: tf.Tensor) -> Sample:
        padded = sizes[0] if len(sizes) == 1 else tf.gather(tf.constant(sizes, tf.int32), bucket)
        return prepare_sample(raw(index), seed, padded, recipe, raw(other) if recipe.copy_paste else None)

    return load


def raw_sample(
    read: Callable[..., Mapping[str, np.ndarray]], inputs: Sequence[tf.Tensor], keys: Sequence[str], num_rows: int
) -> Sample:
    """A sample that Python reads (`mrcnn_tf.data.samples.sample_arrays`), as tensors with what is known of their shapes.

    Args:
        read: from the values of the inputs to the arrays.
        inputs: tensors.
        keys: of the arrays that are wanted.
        num_rows: of ground truth.
    """
    shapes = _shapes(num_rows)

    def values_of(*values: np.ndarray) -> list[np.ndarray]:
        sample = read(*values)
        return [sample[key] for key in keys]

    values = call_python(values_of, inputs, [_DTYPES[key] for key in keys])
    return {key: tf.ensure_shape(value, shapes[key]) for key, value in zip(keys, values, strict=True)}


def _shapes(num_rows: int) -> dict[str, list[int | None]]:
    return {
        "images": [None, None, 3],
        "image_sizes": [2],
        "gt_boxes": [num_rows, 4],
        "gt_classes": [num_rows],
        "gt_crowd": [num_rows],
        "gt_masks": [num_rows, MASK_SIZE, MASK_SIZE],
        "gt_segmentations": [num_rows],
    }


def _as_dict(category: Category | Mapping[str, Any]) -> dict[str, Any]:
    return category.model_dump() if isinstance(category, Category) else dict(category)
