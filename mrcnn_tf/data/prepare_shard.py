"""One shard of a prepared data set, checked and written by one process."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import posixpath
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from mrcnn_tf.data.check import Fault, check_content
from mrcnn_tf.data.coco import CocoAnnotations, parse_annotations
from mrcnn_tf.data.images import ImageFolder, encoded_image
from mrcnn_tf.data.skipping import skipped_records, without
from mrcnn_tf.data.tfds_index import FORMAT, ShardIndex, index_of, write_text
from mrcnn_tf.data.tfds_records import example_of, features_of

INDICES = ".shards"
"""Folder of the indices of finished shards, by which another run knows them."""


@dataclass(frozen=True, slots=True)
class ShardJob:
    """What a shard is made of.

    Attributes:
        content: of a COCO file, cut down to the images of the shard; its entries are sound.
        source: where that comes from, for messages.
        images: folder of the pictures.
        path: of the shard to write, which may be in a bucket.
        skip_bad: leave out what is faulty; otherwise a shard with faults is not written.
    """

    content: Mapping[str, Any] = field(repr=False)
    source: Path
    images: ImageFolder
    path: str
    skip_bad: bool

    @property
    def index_path(self) -> str:
        """Where the shard's own index is."""
        folder, name = posixpath.split(self.path)
        return posixpath.join(folder, INDICES, f"{name}.json")

    def fingerprint(self) -> str:
        """Of all that decides what is in the shard, but for the pictures themselves."""
        decides = [FORMAT, str(self.source), str(self.images), self.content]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What became of a shard: `index` is None where it has faults and was not written."""

    index: ShardIndex | None
    faults: tuple[Fault, ...]


def finished_shard(job: ShardJob) -> ShardIndex | None:
    """The index of a shard that an earlier run has finished, of the same data; None where there is none."""
    try:
        with tf.io.gfile.GFile(job.index_path, "rb") as file:
            index = ShardIndex(**json.loads(file.read()))
        size = tf.io.gfile.stat(job.path).length
    except (tf.errors.NotFoundError, TypeError, ValueError):
        return None
    is_same = index.fingerprint == job.fingerprint() and index.num_bytes == size
    return index if is_same and (job.skip_bad or not index.skipped) else None


def write_shard(job: ShardJob) -> ShardResult:
    """Check the pictures and masks of a shard and write it; its file appears complete or not at all, its index after it."""
    faults: list[Fault] = []
    check_content(job.content, job.source, job.images, faults, num_workers=1)
    errors = [fault for fault in faults if fault.is_error]
    if errors and not job.skip_bad:
        return ShardResult(None, tuple(faults))
    rest = without(job.content, skipped_records(errors, job.content))
    found = parse_annotations(rest, job.source)
    folder, name = posixpath.split(job.path)
    temporary = posixpath.join(folder, f".tmp-{name}")
    with tf.io.TFRecordWriter(temporary) as writer:
        for example in _serialized(found, rest, job.images):
            writer.write(example)
    num_bytes = tf.io.gfile.stat(temporary).length
    tf.io.gfile.rename(temporary, job.path, overwrite=True)
    index = index_of(found, job.fingerprint(), num_bytes, [fault_entry(fault) for fault in errors])
    write_text(json.dumps(asdict(index)), job.index_path)
    return ShardResult(index, tuple(faults))


def fault_entry(fault: Fault) -> dict[str, Any]:
    """A fault as it is listed in files."""
    return {key: getattr(fault, key) for key in ("kind", "record", "message", "file_name")}


def end_with_parent() -> None:
    """See that this process ends when the one that started it is killed, which would leave it waiting for work forever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _serialized(found: CocoAnnotations, content: Mapping[str, Any], images: ImageFolder) -> Iterator[bytes]:
    features = features_of(found.categories)
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
    entries: dict[int, Mapping[str, Any]] = {entry["id"]: entry for entry in _of(content, "annotations")}
    for record in found.records:
        example = features.encode_example(example_of(record, entries, encoded_image(images / record.file_name)))
        # The same bytes in every process.
        yield serializer.get_tf_example(example).SerializeToString(deterministic=True)


def _of(content: Mapping[str, Any], section: str) -> Sequence[Mapping[str, Any]]:
    return content[section]
