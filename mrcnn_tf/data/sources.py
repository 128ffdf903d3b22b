"""Data sets as their publishers hand them out, in a folder that the user has filled: archives, or what was unpacked of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mrcnn_tf.data.archives import ArchiveMember, locate
from mrcnn_tf.data.check import Fault
from mrcnn_tf.data.coco import load_coco
from mrcnn_tf.data.images import ImageFile, ImageFolder
from mrcnn_tf.data.voc import ImageSet, voc_content

VOC_ARCHIVES: Mapping[str, tuple[str, ...]] = {
    "2007": ("VOCtrainval_06-Nov-2007.tar",),
    "2012": ("VOCtrainval_11-May-2012.tar",),
}
VOC_TEST_ARCHIVE = "VOCtest_06-Nov-2007.tar"
"""The labels of the test images of 2012 were never published."""


@dataclass(frozen=True)
class Source:
    """A split of a data set as the user has it.

    Attributes:
        content: of a COCO file.
        path: where that comes from, for messages.
        images: folder of the pictures.
        faults: what was found wrong before; those records are not in `content`.
    """

    content: Mapping[str, Any] = field(repr=False)
    path: Path
    images: ImageFolder
    faults: tuple[Fault, ...] = ()


def coco_source(images: Path, annotations: Path) -> Source:
    """Any set in COCO format: a folder of images and a JSON file.

    Raises:
        DataError: the file is missing or broken.
        NotADirectoryError: `images` is no folder.
    """
    if not images.is_dir():
        raise NotADirectoryError(f"{images}: no such folder of images")
    return Source(load_coco(annotations), annotations, images)


def coco_2017_source(source: Path, split: str) -> Source:
    """COCO 2017: `train2017.zip`, `val2017.zip` and `annotations_trainval2017.zip`, or the folders that they hold.

    Args:
        source: folder with them.
        split: train or val.

    Raises:
        FileNotFoundError: something is missing; says what.
        DataError: an archive is damaged, or the annotations are broken.
    """
    annotations = locate(source, f"annotations/instances_{split}2017.json", "annotations_trainval2017.zip")
    images = locate(source, f"{split}2017", f"{split}2017.zip")
    return Source(load_coco(annotations), Path(str(annotations)), images)


def lvis_source(source: Path, split: str) -> Source:
    """LVIS v1: `lvis_v1_train.json.zip` and `lvis_v1_val.json.zip`, or the files that they hold, and the images of COCO 2017.

    Arguments and errors are those of `coco_2017_source`.
    """
    annotations = locate(source, f"lvis_v1_{split}.json", f"lvis_v1_{split}.json.zip")
    return Source(load_coco(annotations), Path(str(annotations)), CocoFolders(source))


def voc_source(source: Path, split: str, *, year: str, image_set: ImageSet = "Segmentation") -> Source:
    """PASCAL VOC: `VOCtrainval_11-May-2012.tar` or those of 2007, or the folder `VOCdevkit` that they hold.

    Args:
        source: folder with them.
        split: name of a list of images: train, val, trainval, of 2007 test.
        year: 2007 or 2012.
        image_set: "Segmentation" has masks, "Main" boxes only.

    Raises:
        FileNotFoundError: something is missing; says what.
        DataError: an archive is damaged, or the list of images is missing or empty.
    """
    archives = (VOC_TEST_ARCHIVE,) if (year, split) == ("2007", "test") else VOC_ARCHIVES[year]
    root = locate(source, f"VOCdevkit/VOC{year}", *archives)
    content, faults = voc_content(root, split, image_set)
    return Source(content, Path(f"{root}/ImageSets/{image_set}/{split}.txt"), root / "JPEGImages", tuple(faults))


KINDS: Mapping[str, Callable[..., Source]] = {
    "coco2017": coco_2017_source,
    "lvis": lvis_source,
    "voc2007": partial(voc_source, year="2007"),
    "voc2012": partial(voc_source, year="2012"),
}
"""From a folder and the name of a split to its source, by the names of the command line."""


@dataclass(frozen=True, slots=True)
class CocoFolders:
    """The images of COCO 2017 by names with their folder: `train2017/000000000009.jpg`."""

    source: Path

    def __str__(self) -> str:
        return str(self.source)

    def is_dir(self) -> bool:
        """Whether it is there."""
        return self.source.is_dir()

    def __truediv__(self, name: str) -> ImageFile:
        folder, _, file = name.partition("/")
        return _in(locate(self.source, folder, f"{folder}.zip"), file)


def _in(folder: Path | ArchiveMember, name: str) -> ImageFile:
    return folder / name
