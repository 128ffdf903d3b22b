"""A prepared split as evaluation wants it: the content of a COCO file, and a folder of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal

import tensorflow_datasets as tfds

from mrcnn_tf.data.images import ImageFile
from mrcnn_tf.data.tfds_index import prepared_categories, read_index
from mrcnn_tf.data.tfds_records import ENCODED, UNREAD, StoredImage, annotations_of


def truth_of(folder: str, split: str) -> dict[str, Any]:
    """A prepared split as the content of a COCO file: that which it was made of, but for the order of its images.

    Args:
        folder: that `mrcnn-tf prepare-data` has written, local or in a bucket.
        split: of it.

    Raises:
        DataError: there is no such split.
    """
    categories = prepared_categories(folder)
    images, annotations = [], []
    for example in _examples(folder, split, UNREAD):
        size = {"height": int(example["height"]), "width": int(example["width"])}
        images.append({"id": int(example["image_id"]), "file_name": example["file_name"].decode(), **size})
        annotations += annotations_of(example, categories)
    return {"images": images, "annotations": annotations, "categories": [dict(category) for category in categories]}


class PreparedImages:
    """The pictures of a prepared split as a folder. They are streamed: fast in the order of `truth_of`, slow in any other."""

    def __init__(self, folder: str, split: str):
        """Open a split.

        Args:
            folder: that `mrcnn-tf prepare-data` has written, local or in a bucket.
            split: of it.

        Raises:
            DataError: there is no such split.
        """
        self._folder, self._split = folder, split
        names = [name for shard in read_index(folder, split).shards for name in shard.file_name]
        self._places = {name: place for place, name in enumerate(names)}
        self._next, self._stream = len(names), iter(())

    def __str__(self) -> str:
        return f"{self._folder}/{self._split}"

    def __truediv__(self, name: str) -> ImageFile:
        return _PreparedImage(self, name)

    def is_dir(self) -> bool:
        """It is there."""
        return True

    def has(self, name: str) -> bool:
        """Whether there is such a picture."""
        return name in self._places

    def read(self, name: str) -> bytes:
        """The file of a picture.

        Raises:
            FileNotFoundError: there is none.
        """
        if name not in self._places:
            raise FileNotFoundError(2, "the split has no such image", f"{self}/{name}")
        place = self._places[name]
        if place < self._next:
            self._next, self._stream = 0, (example["image"] for example in _examples(self._folder, self._split, _IMAGES))
        for _ in range(place - self._next):
            next(self._stream)
        self._next = place + 1
        return next(self._stream)


@dataclass(frozen=True, slots=True)
class _PreparedImage:
    folder: PreparedImages
    name: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"

    def is_file(self) -> bool:
        return self.folder.has(self.name)

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        return StoredImage(self.folder.read(self.name)).open(mode)


_IMAGES = tfds.decode.PartialDecoding({"image": True}, decoders=ENCODED)


def _examples(folder: str, split: str, decoders: Any) -> Iterator[dict[str, Any]]:
    """All records in the order of the shards, as numpy."""
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    read_index(folder, split)  # says what is missing where there is no such split
    builder = tfds.builder_from_directory(folder)
    return iter(tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders, read_config=config)))
