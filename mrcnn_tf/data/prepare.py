"""COCO-format data sets as shards that TensorFlow Datasets reads: made by several processes, and resumable.

`tfds`' own `download_and_prepare` begins anew when it was interrupted, and works in one process. So the shards are written here,
in its format, and `tfds.builder_from_directory` reads them. Each shard is checked and written by one process, under another name
until it is complete; a shard that is there, of the same data, is not made again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from rich.console import Console
from rich.progress import Progress

from mrcnn_tf.data.check import Fault, check_entries
from mrcnn_tf.data.coco import CocoAnnotations, DataError
from mrcnn_tf.data.prepare_shard import (
    INDICES,
    ShardJob,
    ShardResult,
    end_with_parent,
    fault_entry,
    finished_shard,
    write_shard,
)
from mrcnn_tf.data.samples import has_masks
from mrcnn_tf.data.skipping import require_rest, skipped_records, without
from mrcnn_tf.data.sources import Source
from mrcnn_tf.data.tfds_index import SplitIndex, prepared_categories, write_index, write_text
from mrcnn_tf.data.tfds_metadata import prepared_splits, shard_names, write_metadata

IMAGES_PER_SHARD = 500
"""Of COCO: 237 shards of 80 MB for the training images, so that many workers can share them."""


@dataclass(frozen=True)
class Prepared:
    """What became of a split.

    Attributes:
        index: of the split; None where there are faults and it was not finished.
        faults: that this run has found.
        skipped: what is left out, by this run or the one that it goes on with: `kind`, `record`, `message`, `file_name`.
        reused: shards that were there already.
    """

    index: SplitIndex | None
    faults: tuple[Fault, ...]
    skipped: tuple[dict[str, Any], ...] = ()
    reused: int = 0


def prepare_split(
    source: Source,
    output: str,
    split: str,
    *,
    name: str,
    num_shards: int | None = None,
    num_workers: int | None = None,
    skip_bad: bool = False,
    progress: bool = False,
) -> Prepared:
    """Check a split and write it as shards; go on where an earlier run was interrupted.

    Args:
        source: of the split.
        output: folder for all splits, made if it is not there; it may be in a bucket.
        split: its name, letters, digits and _.
        name: of the data set for TensorFlow Datasets, small letters, digits and _.
        num_shards: None: one for every `IMAGES_PER_SHARD` images.
        num_workers: processes; None: as many as there are processors.
        skip_bad: leave out faulty records; otherwise a shard with some is not written, and the split not finished.
        progress: show a bar on stderr.

    Returns:
        What became of it.

    Raises:
        DataError: the source is no COCO content, or nothing of it can be used; or `output` holds other data.
        ValueError: a name that TensorFlow Datasets does not take, or more shards than images.
    """
    _check_names(name, split)
    faults = list(source.faults)
    found, _, _ = check_entries(source.content, source.path, faults)
    errors = [fault for fault in faults if fault.is_error]
    if errors and not skip_bad:
        return Prepared(None, tuple(faults))
    skipped = skipped_records(errors, source.content)
    content = without(source.content, skipped)
    require_rest(source.content, content, skipped, source.path)
    count = _num_shards(num_shards, len(content["images"]), source.path)
    jobs = _jobs(content, source, [posixpath.join(output, shard) for shard in shard_names(name, split, count)], skip_bad)
    done = {number: shard for number, job in enumerate(jobs) if (shard := finished_shard(job)) is not None}
    _check_output(output, split, found, jobs, len(done))
    tf.io.gfile.makedirs(posixpath.join(output, INDICES))
    left = {number: job for number, job in enumerate(jobs) if number not in done}
    for number, result in _write_all(left, num_workers or os.cpu_count() or 1, progress):
        faults += result.faults
        if result.index is not None:
            done[number] = result.index
    if len(done) < len(jobs):
        return Prepared(None, tuple(faults), reused=len(jobs) - len(left))
    index = SplitIndex(has_masks(found), tuple(done[number] for number in range(len(jobs))))
    if not any(map(len, index.shards)):
        raise DataError(f"{source.path}: nothing usable is left: all images are faulty", "broken file")
    write_index(index, output, split)
    write_metadata(output, name, found.categories)
    left_out = [fault_entry(fault) for fault in errors] + [entry for shard in index.shards for entry in shard.skipped]
    if skip_bad:
        write_text(json.dumps(left_out, indent=1), skipped_path(output, split))
    return Prepared(index, tuple(faults), tuple(left_out), reused=len(jobs) - len(left))


def skipped_path(output: str, split: str) -> str:
    """Where the records that were left out of a split are listed."""
    return posixpath.join(output, f"skipped-{split}.json")


def _jobs(content: Mapping[str, Any], source: Source, paths: Sequence[str], skip_bad: bool) -> list[ShardJob]:
    """Image i goes to shard i mod n, so that every shard is like the whole."""
    count = len(paths)
    images = [content["images"][number::count] for number in range(count)]
    shard_of = {image["id"]: number for number, part in enumerate(images) for image in part}
    annotations: list[list[Any]] = [[] for _ in paths]
    for annotation in content["annotations"]:
        annotations[shard_of[annotation["image_id"]]].append(annotation)
    parts = (
        {"images": i, "annotations": a, "categories": content["categories"]} for i, a in zip(images, annotations, strict=True)
    )
    return [ShardJob(part, source.path, source.images, path, skip_bad) for part, path in zip(parts, paths, strict=True)]


def _write_all(jobs: Mapping[int, ShardJob], num_workers: int, progress: bool) -> Iterator[tuple[int, ShardResult]]:
    sizes = {number: len(job.content["images"]) for number, job in jobs.items()}
    with Progress(console=Console(file=sys.stderr), disable=not progress) as bar:
        task = bar.add_task("writing images", total=sum(sizes.values()))
        for number, result in _in_processes(jobs, min(num_workers, len(jobs))):
            bar.advance(task, sizes[number])
            yield number, result


def _in_processes(jobs: Mapping[int, ShardJob], num_workers: int) -> Iterator[tuple[int, ShardResult]]:
    """The results as they come; one process does without others."""
    if num_workers <= 1:
        yield from ((number, write_shard(job)) for number, job in jobs.items())
        return
    # Not forked: TensorFlow has threads by now.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=end_with_parent)
    try:
        numbers = {pool.submit(write_shard, job): number for number, job in jobs.items()}
        yield from ((numbers[future], future.result()) for future in as_completed(numbers))
    except BrokenProcessPool as error:
        message = "a process that wrote shards has died, for want of memory perhaps; run the same again: finished shards are kept"
        raise OSError(message) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _num_shards(wanted: int | None, num_images: int, path: Path) -> int:
    if not num_images:
        raise DataError(f"{path}: there are no images to prepare", "broken file")
    if wanted is not None and wanted > num_images:
        raise ValueError(f"{path}: {wanted} shards are more than there are images, {num_images}")
    return wanted or -(-num_images // IMAGES_PER_SHARD)


def _check_names(name: str, split: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"the name of a data set must be small letters, digits and _, got {name!r}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", split) or split == "all":
        raise ValueError(f"the name of a split must be letters, digits and _, and not 'all', got {split!r}")


def _check_output(output: str, split: str, found: CocoAnnotations, jobs: Sequence[ShardJob], num_done: int) -> None:
    """See that no other data is in the folder, which then would be half of the one and half of the other."""
    ours = {posixpath.basename(job.path) for job in jobs}
    there = {posixpath.basename(path) for path in tf.io.gfile.glob(posixpath.join(output, f"[!.]*-{split}.tfrecord-*-of-*"))}
    if there - ours:
        message = f"there is another {min(there - ours)}; give the same name and number of shards, or another folder"
        raise DataError(f"{output}: {message}", "broken file")
    finished = prepared_splits(output)
    if split in finished and num_done < len(jobs):
        message = f"the split {split} is there already, of other data or with other options; give another folder"
        raise DataError(f"{output}: {message}", "broken file")
    if finished and prepared_categories(output) != found.categories:
        message = f"the splits {', '.join(finished)} that are there have other categories; give another folder"
        raise DataError(f"{output}: {message}", "broken file")
