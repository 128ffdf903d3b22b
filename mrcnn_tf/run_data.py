"""What a run trains and evaluates on, opened before its first step, and what to tell the user when that fails."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from mrcnn_tf.config import Config
from mrcnn_tf.data.coco import DataError, parse_categories
from mrcnn_tf.data.pipeline import CocoBatches, coco_batches
from mrcnn_tf.data.skipping import NOT_SKIPPABLE
from mrcnn_tf.resume import CHECKPOINT
from mrcnn_tf.splits import Listed, Split, read_skipped, training_split, validation_split
from mrcnn_tf.weights import complete


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
    batches: CocoBatches
    validation: Split | None
    skipped: Listed


def open_data(config: Config, output: Path, *, resume: bool = False, progress: bool = False) -> RunData:
    """Read the annotations of a run; with `data.skip_bad` all images too, and what is faulty is left out.

    Args:
        config: categories may be missing; they are then read from the training annotations.
        output: folder of the run.
        resume: leave out what the run left out when it began, if it has made steps.
        progress: show a bar on stderr while images are read.

    Raises:
        ConfigError: the configuration lacks something, or the list of what the run left out is lost.
        DataError: the data cannot be used; the message names the record.
        NotADirectoryError: a folder of images is none.
    """
    listed = read_skipped(output) if config.data.skip_bad and resume and (output / CHECKPOINT).is_file() else None
    training = training_split(config, listed, progress=progress)
    config = config if config.model.categories else config.with_categories(parse_categories(training.content, training.path))
    config = config.model_copy(update={"model": complete(config.model)})
    batches = coco_batches(training.images, training.path, config, content=training.content)
    if config.model.mask_head.enabled and "gt_masks" not in batches.epoch().element_spec:
        print(
            "note: the training data has boxes but no masks: training Faster R-CNN (model.mask_head.enabled=false)",
            file=sys.stderr,
        )
        config = _without_masks(config)
    validation = validation_split(config, listed, progress=progress)
    skipped = {"train": training.skipped, "val": validation.skipped if validation else ()}
    return RunData(config, batches, validation, skipped)


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
    """tf.data wraps what a map raises in its own error."""
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(r"DataError: (.+)", str(error))
        if found is None:
            raise
        raise DataError(found.group(1)) from error


def _without_masks(config: Config) -> Config:
    mask_head = config.model.mask_head.model_copy(update={"enabled": False})
    return config.model_copy(update={"model": config.model.model_copy(update={"mask_head": mask_head})})
