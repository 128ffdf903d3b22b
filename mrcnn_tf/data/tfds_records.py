"""One image with its objects as an example of TensorFlow Datasets, and back.

Nothing is lost on the way: the file of the picture, COCO's boxes and areas (float64) and the segmentations come back as they
were. Beside them are the mask crops, so that training needs no polygons.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import IO, Any, Literal

import numpy as np
import tensorflow_datasets as tfds

from mrcnn_tf.config import MASK_SIZE
from mrcnn_tf.data.coco_records import DataError, Record, object_of
from mrcnn_tf.data.masks import mask_crop
from mrcnn_tf.data.samples import has_area, segmentation_text

ENCODED = {"image": tfds.decode.SkipDecoding()}
"""Decoders that leave pictures as bytes: `mrcnn_tf.data.images` reads what TensorFlow does not, and turns them upright."""
UNREAD = {**ENCODED, "objects": {"masks": tfds.decode.SkipDecoding()}}
"""Decoders that leave the mask crops as they are, too."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The file of a picture in memory; also the folder that has this one file, under any name."""

    data: bytes = field(repr=False)
    name: str = ""

    def __str__(self) -> str:
        return self.name

    def __truediv__(self, name: str) -> StoredImage:
        return StoredImage(self.data, name)

    def is_dir(self) -> bool:
        """It is there."""
        return True

    def is_file(self) -> bool:
        """It is there."""
        return True

    def open(self, mode: Literal["rb"] = "rb") -> IO[bytes]:
        """The content."""
        return io.BytesIO(self.data)


def features_of(categories: Sequence[Mapping[str, Any]]) -> tfds.features.FeaturesDict:
    """The features of a data set (docs/large_data.md#a-record).

    Args:
        categories: `{"id", "name"}` in class order; label i is class i + 1.
    """
    features = tfds.features
    return features.FeaturesDict(
        {
            "image": features.Image(shape=(None, None, 3), doc="The file as it was, if JPEG or PNG."),
            "image_id": np.int64,
            "file_name": features.Text(),
            "height": features.Scalar(np.int64, doc="Pixels, upright."),
            "width": features.Scalar(np.int64, doc="Pixels, upright."),
            "objects": features.FeaturesDict(
                {
                    "id": features.Tensor(shape=(None,), dtype=np.int64),
                    "label": features.Sequence(features.ClassLabel(names=label_names(categories))),
                    "is_crowd": features.Tensor(shape=(None,), dtype=np.bool_),
                    "difficult": features.Tensor(shape=(None,), dtype=np.bool_, doc="Of VOC."),
                    "bbox": features.Tensor(
                        shape=(None, 4), dtype=np.float64, encoding="bytes", doc="x, y, width, height in pixels, as in COCO."
                    ),
                    "area": features.Tensor(shape=(None,), dtype=np.float64, encoding="bytes", doc="Square pixels."),
                    "masks": features.Tensor(
                        shape=(None, MASK_SIZE, MASK_SIZE),
                        dtype=np.uint8,
                        encoding="zlib",
                        doc="255 times the covered fraction of each cell of the box, which is clipped to the image.",
                    ),
                    "segmentation": features.Sequence(
                        features.Text(), doc="JSON of polygons or of a compressed RLE, as in COCO; empty where there is none."
                    ),
                }
            ),
        }
    )


def label_names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the classes; TensorFlow Datasets wants each once, so those that come several times get their category's id."""
    times = Counter(category["name"] for category in categories)
    return [c["name"] if times[c["name"]] == 1 else f"{c['name']} ({c['id']})" for c in categories]


def example_of(record: Record, entries: Mapping[int, Mapping[str, Any]], image: bytes) -> dict[str, Any]:
    """An example for `features_of`.

    Args:
        record: the image and all of its objects.
        entries: its annotations as they are in the file, by their ids.
        image: the file of the picture.
    """
    items = record.objects
    found = [entries[item.annotation_id] for item in items]
    bbox = np.array([entry["bbox"] for entry in found], np.float64).reshape(-1, 4)
    area = [entry.get("area", width * height) for entry, (_, _, width, height) in zip(found, bbox.tolist(), strict=True)]
    return {
        "image": image,
        "image_id": record.image_id,
        "file_name": record.file_name,
        "height": record.height,
        "width": record.width,
        "objects": {
            "id": np.array([item.annotation_id for item in items], np.int64),
            "label": [item.class_id - 1 for item in items],
            "is_crowd": np.array([item.crowd for item in items], np.bool_),
            "difficult": np.array([bool(entry.get("difficult")) for entry in found], np.bool_),
            "bbox": bbox,
            "area": np.array(area, np.float64),
            "masks": _crops(record),
            "segmentation": [segmentation_text(item.segmentation) for item in items],
        },
    }


def annotations_of(example: Mapping[str, Any], categories: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The objects of an example as annotations of a COCO file.

    Args:
        example: numpy, as TensorFlow Datasets gives it; `masks` are not looked at.
        categories: in class order.
    """
    segmentations = example["objects"]["segmentation"].tolist()
    entries = _entries(example, [category["id"] for category in categories])
    return [
        entry | {"segmentation": json.loads(text)} if text else entry for entry, text in zip(entries, segmentations, strict=True)
    ]


def record_of(example: Mapping[str, Any], category_ids: Sequence[int], classes: Mapping[int, int]) -> Record:
    """An example as the record that `mrcnn_tf.data.coco.read_annotations` would have read, but for the segmentations.

    Args:
        example: numpy, as TensorFlow Datasets gives it; `masks` and `segmentation` are not looked at.
        category_ids: of the labels.
        classes: 1..K of each category id.

    Raises:
        DataError: the example is none that `mrcnn-tf prepare-data` writes.
    """
    image = Record(int(example["image_id"]), example["file_name"].decode(), int(example["height"]), int(example["width"]))
    find = partial(object_of, classes=classes, images={image.image_id: image}, where=image.file_name, tell=_stop)
    found = [find(entry) for entry in _entries(example, category_ids)]
    return replace(image, objects=tuple(item[1] for item in found if item is not None))


def _entries(example: Mapping[str, Any], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Annotations without segmentations."""
    keys = ("id", "label", "is_crowd", "difficult", "bbox", "area")
    return [
        {
            "id": annotation_id,
            "image_id": int(example["image_id"]),
            "category_id": category_ids[label],
            "bbox": bbox,
            "area": area,
            "iscrowd": int(is_crowd),
            "difficult": int(difficult),
        }
        for annotation_id, label, is_crowd, difficult, bbox, area in zip(
            *(example["objects"][key].tolist() for key in keys), strict=True
        )
    ]


def _crops(record: Record) -> np.ndarray:
    """[N, 56, 56] uint8, zero where there is no segmentation or the box is empty."""
    crops = np.zeros((len(record.objects), MASK_SIZE, MASK_SIZE), np.uint8)
    for row, item in enumerate(record.objects):
        if item.segmentation is not None and has_area(item):
            crops[row] = mask_crop(item.segmentation, item.box, (record.height, record.width))
    return crops


def _stop(error: DataError) -> None:
    raise error
