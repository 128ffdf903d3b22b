"""What is in the shards of a split, so that a run knows its batches without reading them: `index-<split>.json`."""

from __future__ import annotations

import json
import posixpath
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mrcnn_tf.data.coco import CocoAnnotations, DataError
from mrcnn_tf.data.samples import DataReport, select_records

FORMAT = 1


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """What is in a shard; lists have one entry for each record, in the order of the shard.

    Attributes:
        fingerprint: of what the shard was made of.
        num_bytes: of its file.
        image_id: of each record, and likewise `file_name`.
        height: of the image in pixels, and likewise `width`.
        num_objects: of each record.
        num_solid: those whose box has an area.
        num_targets: those of them that are no crowd regions.
        skipped: faulty records of the source that are not in it: `kind`, `record`, `message`, `file_name`.
    """

    fingerprint: str
    num_bytes: int
    image_id: list[int]
    file_name: list[str]
    height: list[int]
    width: list[int]
    num_objects: list[int]
    num_solid: list[int]
    num_targets: list[int]
    skipped: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.image_id)


@dataclass(frozen=True, slots=True)
class SplitIndex:
    """What is in a split: `masks` tells whether its objects have any."""

    masks: bool
    shards: tuple[ShardIndex, ...]


@dataclass(frozen=True, eq=False)
class Selection:
    """The records that a run uses.

    Attributes:
        kept: of each shard, bool for each record.
        num_rows: of ground truth, the most objects of a record.
        report: what is used and what is left out.
    """

    kept: tuple[np.ndarray, ...]
    num_rows: int
    report: DataReport


def index_of(found: CocoAnnotations, fingerprint: str, num_bytes: int, skipped: Sequence[dict[str, Any]]) -> ShardIndex:
    """The index of a shard that holds these records."""
    solid, _ = select_records(found, max_ground_truth=sys.maxsize, keep_empty=True)
    return ShardIndex(
        fingerprint=fingerprint,
        num_bytes=num_bytes,
        image_id=[record.image_id for record in found.records],
        file_name=[record.file_name for record in found.records],
        height=[record.height for record in found.records],
        width=[record.width for record in found.records],
        num_objects=[len(record.objects) for record in found.records],
        num_solid=[len(record.objects) for record in solid],
        num_targets=[sum(not item.crowd for item in record.objects) for record in solid],
        skipped=list(skipped),
    )


def select(index: SplitIndex, path: Path, *, max_ground_truth: int, keep_empty: bool) -> Selection:
    """What `mrcnn_tf.data.samples.select_records` does, from the numbers alone.

    Args:
        index: of the split.
        path: of the split, for the report.
        max_ground_truth: objects kept per image.
        keep_empty: keep images without an object to learn.
    """
    kept = tuple(np.array(shard.num_targets, np.int64) > (-1 if keep_empty else 0) for shard in index.shards)
    flags = np.concatenate(kept)
    names, objects, solid = (_column(index, key) for key in ("file_name", "num_objects", "num_solid"))
    used = np.minimum(solid, max_ground_truth)
    report = DataReport(
        path=path,
        num_images=int(flags.sum()),
        num_objects=int(used[flags].sum()),
        empty_images=tuple(names[~flags].tolist()),
        flat_objects=_counts(names, objects - solid),
        cut_images=_counts(names[flags], (solid - used)[flags]),
    )
    return Selection(kept, int(max(1, used[flags].max(initial=0))), report)


def write_index(index: SplitIndex, folder: str, split: str) -> None:
    """Write the index of a split into the folder of its shards, which may be in a bucket."""
    write_text(json.dumps(asdict(index)), index_path(folder, split))


def read_index(folder: str, split: str) -> SplitIndex:
    """The index of a split.

    Raises:
        DataError: there is none, or it is broken.
    """
    path = index_path(folder, split)
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            content = json.loads(file.read())
        return SplitIndex(content["masks"], tuple(ShardIndex(**shard) for shard in content["shards"]))
    except tf.errors.NotFoundError as error:
        hint = "expected the folder that `mrcnn-tf prepare-data` has written, and one of its splits"
        raise DataError(f"{path}: there is no such file; {hint}", "broken file") from error
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no index of a prepared split: {error!r}", "broken file") from error


def prepared_categories(output: str) -> tuple[dict[str, Any], ...]:
    """The categories of a prepared data set, `{"id", "name"}` in class order.

    Raises:
        DataError: the folder has none.
    """
    path = posixpath.join(output, "metadata.json")
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return tuple({"id": int(entry["id"]), "name": str(entry["name"])} for entry in json.loads(file.read())["categories"])
    except (tf.errors.NotFoundError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no categories of a data set that `mrcnn-tf prepare-data` has written", "broken file") from error


def index_path(folder: str, split: str) -> str:
    """Where the index of a split is."""
    return posixpath.join(folder, f"index-{split}.json")


def write_text(text: str, path: str) -> None:
    """Write a file, which may be in a bucket; it appears complete or not at all."""
    temporary = posixpath.join(posixpath.dirname(path), f".tmp-{posixpath.basename(path)}")
    with tf.io.gfile.GFile(temporary, "wb") as file:
        file.write(text)
    tf.io.gfile.rename(temporary, path, overwrite=True)


def _column(index: SplitIndex, key: str) -> np.ndarray:
    return np.array(
        [value for shard in index.shards for value in getattr(shard, key)], object if key == "file_name" else np.int64
    )


def _counts(names: np.ndarray, lost: np.ndarray) -> dict[str, int]:
    return {name: int(count) for name, count in zip(names, lost, strict=True) if count}
