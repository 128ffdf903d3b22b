"""The files beside the shards by which TensorFlow Datasets knows a data set."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from mrcnn_tf.data.tfds_index import SplitIndex, index_path, read_index
from mrcnn_tf.data.tfds_records import features_of

VERSION = "1.0.0"


def write_metadata(output: str, name: str, categories: Sequence[Mapping[str, Any]]) -> None:
    """Write what TensorFlow Datasets needs to read the splits whose indices are in a folder.

    Args:
        output: the folder, which may be in a bucket.
        name: of the data set.
        categories: of all its splits, in class order; they are kept in `metadata.json`.
    """
    identity = tfds.core.DatasetIdentity(name=name, version=tfds.core.Version(VERSION), data_dir=output, module_name="")
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Images with objects: boxes, classes, crowd regions and masks. Written by mrcnn-tf prepare-data.",
        features=features_of(categories),
        metadata=tfds.core.MetadataDict(categories=[dict(category) for category in categories]),
    )
    info.set_file_format(tfds.core.FileFormat.TFRECORD)
    template = tfds.core.ShardedFileTemplate(dataset_name=name, data_dir=Path(output), filetype_suffix="tfrecord")
    splits = [_split_info(read_index(output, split), split, template) for split in prepared_splits(output)]
    info.set_splits(tfds.core.SplitDict(splits))
    with tempfile.TemporaryDirectory() as folder:
        info.write_to_directory(folder)
        # The one that makes a folder a data set comes last.
        for path in sorted(Path(folder).iterdir(), key=lambda path: path.name == "dataset_info.json"):
            temporary = posixpath.join(output, f".tmp-{path.name}")
            tf.io.gfile.copy(str(path), temporary, overwrite=True)
            tf.io.gfile.rename(temporary, posixpath.join(output, path.name), overwrite=True)


def prepared_splits(output: str) -> list[str]:
    """Names of the finished splits in a folder."""
    paths = tf.io.gfile.glob(index_path(output, "*"))
    return sorted(posixpath.basename(path).removeprefix("index-").removesuffix(".json") for path in paths)


def shard_names(name: str, split: str, count: int) -> list[str]:
    """File names of the shards of a split, as TensorFlow Datasets has them."""
    return [f"{name}-{split}.tfrecord-{number:05d}-of-{count:05d}" for number in range(count)]


def _split_info(index: SplitIndex, split: str, template: tfds.core.ShardedFileTemplate) -> tfds.core.SplitInfo:
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(shard) for shard in index.shards],
        num_bytes=sum(shard.num_bytes for shard in index.shards),
        filename_template=template.replace(split=split),
    )
