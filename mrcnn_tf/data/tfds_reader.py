"""Prepared data sets opened through TensorFlow Datasets, and their records as samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from mrcnn_tf.config import Config
from mrcnn_tf.data.augment import Sample
from mrcnn_tf.data.coco import CocoAnnotations, DataError
from mrcnn_tf.data.pipeline import raw_sample
from mrcnn_tf.data.samples import SAMPLE_KEYS, read_image, sample_arrays, select_records
from mrcnn_tf.data.tfds_index import SplitIndex, read_index
from mrcnn_tf.data.tfds_records import ENCODED, StoredImage, record_of


def open_split(folder: str, split: str) -> tuple[SplitIndex, tuple[str, ...], tfds.features.FeaturesDict]:
    """The index of a prepared split, the paths of its shards, and the features of its records.

    Raises:
        DataError: there is no such split.
    """
    index = read_index(folder, split)
    builder = tfds.builder_from_directory(folder)
    return index, tuple(str(path) for path in builder.info.splits[split].filepaths), builder.info.features


@dataclass(frozen=True)
class SerializedReader:
    """From a serialised record to what `mrcnn_tf.data.samples.SampleReader.read` gives, as tensors.

    Attributes:
        features: of the records.
        category_ids: of the labels.
        classes: 1..K of each category id.
        path: of the split, for messages.
        max_ground_truth: objects kept, the largest.
        num_rows: of ground truth.
        masks: give the mask crops.
        segmentations: give the segmentations, too.
    """

    features: tfds.features.FeaturesDict
    category_ids: tuple[int, ...]
    classes: Mapping[int, int]
    path: Path
    max_ground_truth: int
    num_rows: int
    masks: bool
    segmentations: bool

    def __call__(self, serialized: tf.Tensor) -> Sample:
        """The sample of a record [] string."""
        example = self.features.deserialize_example(serialized, decoders=ENCODED)
        left_out = {"gt_masks": not self.masks, "gt_segmentations": not self.segmentations}
        keys = [key for key in SAMPLE_KEYS if not left_out.get(key)]
        wanted = {"masks": self.masks, "segmentation": self.segmentations}
        example["objects"] = {key: value for key, value in example["objects"].items() if wanted.get(key, True)}

        def read(*values: Any) -> dict[str, np.ndarray]:
            return self._arrays(tf.nest.pack_sequence_as(example, values))

        return raw_sample(read, tf.nest.flatten(example), keys, self.num_rows)

    def _arrays(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        record = record_of(example, self.category_ids, self.classes)
        rows = {item.annotation_id: row for row, item in enumerate(record.objects)}
        selected, _ = select_records(
            CocoAnnotations(self.path, (), (record,)), max_ground_truth=self.max_ground_truth, keep_empty=True
        )
        chosen = [rows[item.annotation_id] for item in selected[0].objects]
        image = read_image(StoredImage(example["image"]), record, self.path)
        objects = example["objects"]
        crops = objects["masks"][chosen] if self.masks else None
        texts = objects["segmentation"][chosen].tolist() if self.segmentations else None
        return sample_arrays(selected[0], image, crops, texts, num_rows=self.num_rows)


def check_streamable(config: Config, path: Path, *, masks: bool) -> None:
    """Refuse a configuration that prepared data cannot serve.

    Raises:
        DataError: it needs all of the data at hand, or masks where there are none.
    """
    for key, value in (("buckets", config.data.buckets), ("repeat_threshold", config.data.repeat_threshold)):
        if value:
            message = f"data.{key} needs data.train.images and data.train.annotations; prepared data is only streamed"
            raise DataError(f"{path}: {message}", "broken file")
    if config.data.copy_paste and not masks:
        raise DataError(f"{path}: data.copy_paste needs masks, and there are none; set data.copy_paste=false", "broken file")


def classes_of(config: Config, categories: Sequence[Mapping[str, Any]], path: Path) -> dict[int, int]:
    """Classes 1..K of the category ids of prepared data.

    Raises:
        DataError: the model does not have all of them.
    """
    classes = {category.id: number for number, category in enumerate(config.model.categories, 1)}
    classes = classes or {category["id"]: number for number, category in enumerate(categories, 1)}
    unknown = sorted({category["id"] for category in categories} - set(classes))
    if unknown:
        message = f"the model does not know the categories of ids {unknown[:10]}; it knows {str(sorted(classes))[:80]}"
        raise DataError(f"{path}: {message}", "broken file")
    return classes
