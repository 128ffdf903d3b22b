"""The training and validation data of a run as they are used, and the list of what was left out of them (`skipped.json`)."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError

from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.data.coco import DataError, load_coco
from mrcnn_tf.data.images import ImageFolder
from mrcnn_tf.data.skipping import (
    Skipped,
    find_skipped,
    require_rest,
    require_sound,
    skipped_records,
    summary_lines,
    unknown_categories,
    without,
)
from mrcnn_tf.files import write_json

SKIPPED = "skipped.json"
Listed: TypeAlias = Mapping[str, Sequence[Skipped]]
"""What is left out of each split, "train" and "val"."""

_LOG = logging.getLogger("mrcnn_tf.data")
_FILE = TypeAdapter(dict[str, tuple[Skipped, ...]])


@dataclass(frozen=True)
class Split:
    """A COCO data set as it is used.

    Attributes:
        images: folder of the images.
        path: of the annotation file, or of the prepared split.
        content: of that file, without the records that are left out.
        skipped: those records.
    """

    images: ImageFolder
    path: Path
    content: Mapping[str, Any] = field(repr=False)
    skipped: tuple[Skipped, ...] = ()


def training_split(config: Config, listed: Listed | None = None, *, progress: bool = False) -> Split:
    """The data to train on; with `data.skip_bad` all of it is read, and faulty records are left out, counted and named.

    Args:
        config: of the run; categories may be missing.
        listed: the records that are left out of each split, where that is known already: then nothing is read.
        progress: show a bar on stderr.

    Raises:
        ConfigError: the configuration does not name the data.
        DataError: the annotation file cannot be used, or nothing of it can.
        NotADirectoryError: the folder of images is none.
    """
    images, path = config.data.path("train", "images"), config.data.path("train", "annotations")
    content = load_coco(path)
    if not config.data.skip_bad:
        return Split(images, path, content)
    if listed is not None:
        return _listed(images, path, content, listed.get("train", ()))
    categories = [category.model_dump() for category in config.model.categories] or None
    masks = config.model.mask_head.enabled
    found = find_skipped(content, path, images, categories=categories, masks=masks, progress=progress)
    return _found(images, path, content, found)


def validation_split(config: Config, listed: Listed | None = None, *, progress: bool = False) -> Split | None:
    """The data to evaluate on during training; faulty records are left out as in `training_split`, or else refused.

    Args:
        config: of the run, with categories.
        listed: as for `training_split`.
        progress: show a bar on stderr.

    Returns:
        None where the configuration has no evaluation.

    Raises:
        ConfigError: the configuration does not name the folder of the images.
        DataError: as `training_split`; without `data.skip_bad` also where an annotation is faulty, an image file is missing, or
            the file has a category that the model does not have.
        NotADirectoryError: the folder of images is none.
    """
    if not config.train.eval_every or not config.data.val.is_set:
        return None
    prepared = config.data.prepared("val")
    if prepared is not None:
        return _prepared_validation(prepared_split(*prepared), config)
    images, path = config.data.path("val", "images"), config.data.path("val", "annotations")
    content = load_coco(path)
    known = {category.id for category in config.model.categories}
    if not config.data.skip_bad:
        require_sound(content, path, images, known)
        return Split(images, path, content)
    if listed is not None:
        return _listed(images, path, content, listed.get("val", ()))
    found = find_skipped(content, path, images, masks=config.model.mask_head.enabled, progress=progress)
    found += skipped_records(unknown_categories(content, path, known), content)
    return _found(images, path, content, found)


def prepared_split(folder: str, split: str) -> Split:
    """A split that `mrcnn-tf prepare-data` has written, to evaluate on.

    Args:
        folder: with the shards, local or in a bucket.
        split: its name.

    Raises:
        DataError: there is no such split.
        ModuleNotFoundError: TensorFlow Datasets is not installed.
    """
    require_tfds()
    from mrcnn_tf.data.tfds_truth import PreparedImages, truth_of

    return Split(PreparedImages(folder, split), Path(folder) / split, truth_of(folder, split))


def require_tfds() -> None:
    """See that TensorFlow Datasets is installed.

    Raises:
        ModuleNotFoundError: it is not; says how to install it.
    """
    try:
        importlib.import_module("tensorflow_datasets")
    except ModuleNotFoundError as error:
        message = "prepared data is written and read with TensorFlow Datasets; pip install 'mrcnn-tf[tfds]'"
        raise ModuleNotFoundError(message) from error


def write_skipped(listed: Listed, output: Path) -> None:
    """Write the list of what was left out into the folder of a run."""
    write_json(skipped_as_json(listed), output / SKIPPED)


def skipped_as_json(listed: Listed) -> dict[str, list[dict[str, Any]]]:
    """The list of what was left out as JSON values."""
    return {name: [asdict(item) for item in skipped] for name, skipped in listed.items()}


def skipped_from_json(values: Any) -> Listed:
    """The inverse of `skipped_as_json`."""
    return _FILE.validate_python(values)


def read_skipped(output: Path) -> Listed:
    """Read the list of what a run leaves out.

    Raises:
        ConfigError: it is missing or broken.
    """
    path = output / SKIPPED
    try:
        return _FILE.validate_json(path.read_bytes())
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}); a run with data.skip_bad is resumed with the list it began with"
        raise ConfigError(message) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path} is not a list that a run has written: {where}: {first['msg']}") from error


def _prepared_validation(prepared: Split, config: Config) -> Split:
    """It was checked when it was prepared; what it may have besides is a category that the model lacks."""
    unknown = unknown_categories(prepared.content, prepared.path, {category.id for category in config.model.categories})
    if not config.data.skip_bad:
        for fault in unknown:
            raise DataError(f"{prepared.path}: {fault.record}: {fault.message}", fault.kind)
    return _found(prepared.images, prepared.path, prepared.content, skipped_records(unknown, prepared.content))


def _found(images: ImageFolder, path: Path, content: Mapping[str, Any], skipped: tuple[Skipped, ...]) -> Split:
    rest = without(content, skipped)
    require_rest(content, rest, skipped, path)
    for line in summary_lines(content, rest, skipped):
        _LOG.warning("%s: %s", path, line)
    return Split(images, path, rest, skipped)


def _listed(images: Path, path: Path, content: Mapping[str, Any], skipped: Sequence[Skipped]) -> Split:
    rest = without(content, skipped)
    require_rest(content, rest, skipped, path)
    _LOG.info("%s: left out what %s lists", path, SKIPPED)
    return Split(images, path, rest, tuple(skipped))
