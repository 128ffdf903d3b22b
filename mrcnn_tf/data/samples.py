"""Which records are trained on, and one record as arrays."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from mrcnn_tf.config import MASK_SIZE
from mrcnn_tf.data.coco import CocoAnnotations, CocoObject, DataError, Record
from mrcnn_tf.data.images import ImageError, ImageFolder, load_image
from mrcnn_tf.data.masks import Segmentation, mask_crop

_LOG = logging.getLogger("mrcnn_tf.data")
SAMPLE_KEYS = ("images", "image_sizes", "gt_boxes", "gt_classes", "gt_crowd", "gt_masks", "gt_segmentations")
_NAMED = 20
"""File names in one line of the log; the report has all."""
MISSING_MASK = "segmentation is missing, others have it; give it to all, or train boxes only with model.mask_head.enabled=false"


@dataclass(frozen=True)
class DataReport:
    """What is used of an annotation file and what is dropped.

    `empty_images` are the file names of images without an object to learn (none, or crowd regions only) that are left out;
    `flat_objects` tells, by file name, how many objects were left out because their box has no width or no height, and
    `cut_images` how many were left out of images with more than `data.max_ground_truth`.
    """

    path: Path
    num_images: int
    num_objects: int
    empty_images: tuple[str, ...]
    flat_objects: Mapping[str, int]
    cut_images: Mapping[str, int]

    def log(self) -> None:
        """Write the report to the logger `mrcnn_tf.data`."""
        _LOG.info("%s: %d images with %d objects", self.path, self.num_images, self.num_objects)
        if self.empty_images:
            _LOG.warning("%s: left out %d images without objects: %s", self.path, len(self.empty_images), few(self.empty_images))
        for why, counts in (("objects whose box is empty", self.flat_objects), ("smallest objects", self.cut_images)):
            if counts:
                total, names = sum(counts.values()), [f"{name} ({count})" for name, count in counts.items()]
                _LOG.warning("%s: left out the %d %s of %d images: %s", self.path, total, why, len(names), few(names))


def select_records(
    annotations: CocoAnnotations, *, max_ground_truth: int, keep_empty: bool
) -> tuple[tuple[Record, ...], DataReport]:
    """Records to train on.

    Args:
        annotations: of a whole file.
        max_ground_truth: objects kept per image, crowd regions included; the largest boxes stay, in the order of the file.
        keep_empty: keep images without an object to learn.

    Returns:
        The records with the objects that are kept, and what was left out.
    """
    solid = [replace(record, objects=tuple(filter(has_area, record.objects))) for record in annotations.records]
    learnable = [r for r in solid if keep_empty or not all(item.crowd for item in r.objects)]
    kept = tuple(replace(record, objects=_largest(record.objects, max_ground_truth)) for record in learnable)
    used = {record.image_id for record in kept}
    report = DataReport(
        path=annotations.path,
        num_images=len(kept),
        num_objects=sum(len(record.objects) for record in kept),
        empty_images=tuple(record.file_name for record in annotations.records if record.image_id not in used),
        flat_objects=_lost(annotations.records, solid),
        cut_images=_lost(learnable, kept),
    )
    return kept, report


def has_area(item: CocoObject) -> bool:
    """Whether its box has a width and a height."""
    top, left, bottom, right = item.box
    return bottom > top and right > left


def _lost(before: Iterable[Record], after: Iterable[Record]) -> dict[str, int]:
    """How many objects fewer each image has, by file name."""
    counts = {new.file_name: len(old.objects) - len(new.objects) for old, new in zip(before, after, strict=True)}
    return {name: count for name, count in counts.items() if count}


def has_masks(annotations: CocoAnnotations) -> bool:
    """True if the objects carry masks, False if none does.

    Raises:
        DataError: some do and some do not; names the first that lacks one. Crowd regions may lack it: they are never a target.
    """
    items = [item for record in annotations.records for item in record.objects]
    missing = missing_masks(annotations)
    if missing:
        raise DataError(f"{annotations.path}: annotation {missing[0].annotation_id}: {MISSING_MASK}", "missing mask")
    return bool(items) and all(item.segmentation is not None or item.crowd for item in items)


def missing_masks(annotations: CocoAnnotations) -> tuple[CocoObject, ...]:
    """Objects without a mask where others have one; crowd regions may lack it."""
    items = [item for record in annotations.records for item in record.objects]
    if all(item.segmentation is None for item in items):
        return ()
    return tuple(item for item in items if item.segmentation is None and not item.crowd)


class ByteCache:
    """Keeps computed arrays until `max_bytes` are held; nothing is evicted, since epochs visit all keys equally often."""

    def __init__(self, max_bytes: int):
        self._left = max_bytes
        self._held: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of `key`, computed where it is not held."""
        if key in self._held:
            return self._held[key]
        value = compute()
        with self._lock:
            if key not in self._held and value.nbytes <= self._left:
                self._held[key] = value
                self._left -= value.nbytes
        return value


class SampleReader:
    """Reads records as arrays of `num_rows` ground-truth rows."""

    def __init__(
        self,
        folder: ImageFolder,
        path: Path,
        records: Sequence[Record],
        *,
        num_rows: int,
        masks: bool,
        cache_bytes: int,
        segmentations: bool = False,
    ):
        """Check that every image file is there.

        Args:
            folder: of the images.
            path: of the annotations, for messages.
            records: to read.
            num_rows: ground-truth rows G, at least the objects of any record.
            masks: read masks too.
            cache_bytes: bound of the decoded images, and of the mask crops, that are kept.
            segmentations: with masks, give the segmentations as text, too.

        Raises:
            DataError: an image file is missing.
        """
        self._folder, self._path, self._records = folder, path, records
        self._num_rows, self._masks, self._segmentations = num_rows, masks, masks and segmentations
        self._images, self._crops = ByteCache(cache_bytes), ByteCache(cache_bytes)
        for record in records:
            require_image(folder, record, path)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of what `read` gives."""
        kept = {"gt_masks": self._masks, "gt_segmentations": self._segmentations}
        return tuple(key for key in SAMPLE_KEYS if kept.get(key, True))

    def read(self, index: int) -> dict[str, np.ndarray]:
        """One record.

        Args:
            index: into the records.

        Returns:
            The keys of the batch without the batch axis, in pixels of the original image: images [h, w, 3] uint8, image_sizes [2]
            int32, gt_boxes [G, 4] float32, gt_classes [G] int32, gt_crowd [G] bool and, with masks, gt_masks [G, 56, 56] uint8;
            if asked for, gt_segmentations [G] bytes, JSON as in the file or empty.

        Raises:
            DataError: the image is broken or not of the size that the record says.
        """
        record = self._records[index]
        image = self._images.get(index, lambda: read_image(self._folder, record, self._path))
        crops = self._crops.get(index, lambda: _crops(record)) if self._masks else None
        texts = [segmentation_text(item.segmentation) for item in record.objects] if self._segmentations else None
        return sample_arrays(record, image, crops, texts, num_rows=self._num_rows)


def sample_arrays(
    record: Record, image: np.ndarray, crops: np.ndarray | None, texts: Sequence[bytes] | None, *, num_rows: int
) -> dict[str, np.ndarray]:
    """What `SampleReader.read` gives.

    Args:
        record: of N objects.
        image: [height, width, 3] uint8.
        crops: [N, 56, 56] uint8, their masks; None leaves `gt_masks` out.
        texts: N segmentations as JSON; None leaves `gt_segmentations` out.
        num_rows: of ground truth, at least N.
    """
    fill = partial(_rows, num_rows=num_rows)
    sample = {
        "images": image,
        "image_sizes": np.array([record.height, record.width], np.int32),
        "gt_boxes": fill([item.box for item in record.objects], (4,), np.float32),
        "gt_classes": fill([item.class_id for item in record.objects], (), np.int32),
        "gt_crowd": fill([item.crowd for item in record.objects], (), np.bool_),
    }
    if crops is not None:
        sample["gt_masks"] = fill(crops, (MASK_SIZE, MASK_SIZE), np.uint8)
    if texts is not None:
        sample["gt_segmentations"] = np.array([*texts, *[b""] * (num_rows - len(texts))], np.object_)
    return sample


def _rows(values: Sequence | np.ndarray, shape: tuple[int, ...], dtype: type, num_rows: int) -> np.ndarray:
    rows: np.ndarray = np.zeros((num_rows, *shape), dtype)
    if len(values):
        rows[: len(values)] = values
    return rows


def require_image(folder: ImageFolder, record: Record, path: Path) -> None:
    """Check that the file of an image is there; `path` is that of the annotations, for the message.

    Raises:
        DataError: it is not.
    """
    if not (folder / record.file_name).is_file():
        raise DataError(f"{path}: image {record.image_id}: there is no file {folder / record.file_name}", "missing image")


def read_image(folder: ImageFolder, record: Record, path: Path) -> np.ndarray:
    """The picture of a record, as uint8 RGB [height, width, 3]; `path` is that of the annotations, for messages.

    Raises:
        DataError: it cannot be read, or is not of the size that the record says.
    """
    where = f"{path}: image {record.image_id}"
    try:
        image = load_image(folder / record.file_name)
    except ImageError as error:
        raise DataError(f"{where}: {error}", "broken image") from error
    if image.shape[:2] != (record.height, record.width):
        expected, came = f"{record.height} x {record.width}", f"{image.shape[0]} x {image.shape[1]}"
        message = f"{where}: {record.file_name} should have {expected} pixels (height x width), it has {came}"
        raise DataError(message, "image size")
    return image


def segmentation_text(segmentation: Segmentation | None) -> bytes:
    """A segmentation as JSON; empty for none."""
    if segmentation is None:
        return b""
    if isinstance(segmentation, Mapping):
        return json.dumps(dict(segmentation)).encode()
    return json.dumps([np.asarray(polygon).tolist() for polygon in segmentation]).encode()


def _crops(record: Record) -> np.ndarray:
    crops = np.zeros((len(record.objects), MASK_SIZE, MASK_SIZE), np.uint8)
    for row, item in enumerate(record.objects):
        if item.segmentation is not None:
            crops[row] = mask_crop(item.segmentation, item.box, (record.height, record.width))
    return crops


def _largest(items: tuple[CocoObject, ...], count: int) -> tuple[CocoObject, ...]:
    if len(items) <= count:
        return items
    areas = [(item.box[2] - item.box[0]) * (item.box[3] - item.box[1]) for item in items]
    chosen = np.argsort(areas, kind="stable")[-count:]
    return tuple(items[index] for index in sorted(chosen))


def few(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
