"""What a run trains and evaluates on, opened before its first step, and what to tell the user when that fails."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import tensorflow as tf

from mrcnn_tf.config import Config
from mrcnn_tf.data.coco import DataError, parse_categories
from mrcnn_tf.data.pipeline import CocoBatches, coco_batches
from mrcnn_tf.data.skipping import NOT_SKIPPABLE, Skipped
from mrcnn_tf.resume import CHECKPOINT
from mrcnn_tf.splits import Listed, Split, read_skipped, require_tfds, training_split, validation_split
from mrcnn_tf.weights import complete

if TYPE_CHECKING:
    from mrcnn_tf.data.tfds_batches import TfdsBatches


class Batches(Protocol):
    """The training batches of a run by their numbers: `CocoBatches`, or `TfdsBatches` for prepared data."""

    @property
    def num_per_epoch(self) -> int:
        """Batches of an epoch."""
        ...

    def epoch(self) -> tf.data.Dataset:
        """The batches of the next epoch, each time the data set is iterated."""
        ...

    def endless(self, start: int = 0, shard: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
        """All batches from number `start` on; of `shard` (worker, workers) this worker's share of each."""
        ...

    def file_names(self, number: int, num_workers: int = 1) -> list[str]:
        """The images of a batch where so many workers share it."""
        ...


@dataclass(frozen=True)
class RunData:
    """The data of a run.

    Attributes:
        config: of the run, complete: with categories, and without masks where there are none.
        batches: to train on.
        validation: to evaluate on; None where the configuration has no evaluation.
        skipped: the records that are left out of each split.
    """

    config: Config
    batches: Batches
    validation: Split | None
    skipped: Listed


def open_data(
    config: Config, output: Path, *, resume: bool = False, progress: bool = False, listed: Listed | None = None
) -> RunData:
    """Read the annotations of a run; with `data.skip_bad` all images too, and what is faulty is left out.

    Args:
        config: categories may be missing; they are then read from the training annotations.
        output: folder of the run.
        resume: leave out what the run left out when it began, if it has made steps.
        progress: show a bar on stderr while images are read.
        listed: what to leave out, where another process has found it.

    Raises:
        ConfigError: the configuration lacks something, or the list of what the run left out is lost.
        DataError: the data cannot be used; the message names the record.
        NotADirectoryError: a folder of images is none.
    """
    if listed is None and config.data.skip_bad and resume and (output / CHECKPOINT).is_file():
        listed = read_skipped(output)
    opened = _prepared_batches(config) if config.data.train.tfds else _coco_batches(config, listed, progress=progress)
    config, batches, skipped = opened
    if config.model.mask_head.enabled and "gt_masks" not in batches.epoch().element_spec:
        print(
            "note: the training data has boxes but no masks: training Faster R-CNN (model.mask_head.enabled=false)",
            file=sys.stderr,
        )
        config = _without_masks(config)
    validation = validation_split(config, listed, progress=progress)
    return RunData(config, batches, validation, {"train": skipped, "val": validation.skipped if validation else ()})


def _coco_batches(config: Config, listed: Listed | None, *, progress: bool) -> tuple[Config, CocoBatches, tuple[Skipped, ...]]:
    """The completed configuration, the batches, and the records that are left out."""
    training = training_split(config, listed, progress=progress)
    config = config if config.model.categories else config.with_categories(parse_categories(training.content, training.path))
    config = config.model_copy(update={"model": complete(config.model)})
    return config, coco_batches(training.images, training.path, config, content=training.content), training.skipped


def _prepared_batches(config: Config) -> tuple[Config, TfdsBatches, tuple[Skipped, ...]]:
    """As `_coco_batches`; what was faulty was left out when the data was prepared."""
    prepared = config.data.prepared("train")
    assert prepared is not None
    require_tfds()
    from mrcnn_tf.data.tfds_batches import tfds_batches
    from mrcnn_tf.data.tfds_index import prepared_categories

    config = config if config.model.categories else config.with_categories(prepared_categories(prepared[0]))
    config = config.model_copy(update={"model": complete(config.model)})
    return config, tfds_batches(*prepared, config), ()


@contextmanager
def data_errors(skip_bad: bool) -> Iterator[None]:
    """Give the user the message that names the record, and what to do about it.

    Args:
        skip_bad: whether faulty records are left out already; otherwise the message tells how.
    """
    try:
        with _unwrapped():
            yield
    except DataError as error:
        if skip_bad or error.kind in NOT_SKIPPABLE:
            raise
        advice = "`mrcnn-tf check-data` lists every fault; `mrcnn-tf train --skip-bad` goes on without the faulty records"
        raise DataError(f"{error}. {advice}", error.kind) from error


@contextmanager
def _unwrapped() -> Iterator[None]:
    """tf.data wraps what a map raises in its own error, and does not name a shard that is damaged."""
    try:
        yield
    except tf.errors.DataLossError as error:
        message = f"a shard of data.train.tfds is damaged ({error.message}); copy the shards, or prepare the data again"
        raise DataError(message, "broken file") from error
    except tf.errors.OpError as error:
        found = re.search(r"DataError: (.+)", str(error))
        if found is None:
            raise
        raise DataError(found.group(1)) from error


def _without_masks(config: Config) -> Config:
    mask_head = config.model.mask_head.model_copy(update={"enabled": False})
    return config.model_copy(update={"model": config.model.model_copy(update={"mask_head": mask_head})})
