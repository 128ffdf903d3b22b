"""A small PASCAL VOC tree for tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from mrcnn_tf.data.voc import CLASSES, VOID

SIZE = (40, 60)
"""(height, width) of all pictures."""
OBJECTS = {
    "2007_000001": [("person", (5, 3, 20, 30), 0), ("dog", (30, 10, 55, 35), 1)],
    "2007_000002": [("car", (1, 1, 60, 40), 0)],
    "2008_000003": [("cat", (10, 10, 30, 30), 0), ("cat", (35, 5, 50, 25), 0)],
    "2008_000004": [],
}
"""(class, (xmin, ymin, xmax, ymax) from 1 on with the last pixel, difficult) of each picture."""
SPLITS = {"train": ["2007_000001", "2008_000004", "2008_000003"], "val": ["2007_000002"]}


def xml(objects, size=SIZE):
    """Text of an annotation file."""
    items = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2), difficult in objects
    )
    return f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>{items}</annotation>"


def palettes(objects, order=None):
    """Instances, numbered in `order`, and classes [height, width]: each object fills its box but for a border of void pixels."""
    instances, classes = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    for index, (name, (x1, y1, x2, y2), _) in enumerate(objects):
        number = (order or range(1, len(objects) + 1))[index]
        for pixels, value in ((instances, number), (classes, CLASSES.index(name) + 1)):
            pixels[y1 - 1 : y2, x1 - 1 : x2] = VOID
            pixels[y1 : y2 - 1, x1 : x2 - 1] = value
    return instances, classes


def write_palette(path, indices):
    """A PNG of palette indices."""
    image = Image.fromarray(indices, mode="P")
    image.putpalette(bytes(range(256)) * 3)
    image.save(path)


def write_voc(folder: Path, year: str = "2012") -> Path:
    """Write the tree; gives the folder of the year."""
    root = folder / "VOCdevkit" / f"VOC{year}"
    lists = ("ImageSets/Main", "ImageSets/Segmentation")
    for name in (*lists, "Annotations", "JPEGImages", "SegmentationObject", "SegmentationClass"):
        (root / name).mkdir(parents=True)
    for number, (name, objects) in enumerate(OBJECTS.items()):
        (root / f"Annotations/{name}.xml").write_text(xml(objects))
        Image.fromarray(np.full((*SIZE, 3), 40 * number, np.uint8)).save(root / f"JPEGImages/{name}.jpg")
        for kind, indices in zip(("Object", "Class"), palettes(objects), strict=True):
            write_palette(root / f"Segmentation{kind}/{name}.png", indices)
    for image_set in ("Main", "Segmentation"):
        for split, names in SPLITS.items():
            (root / f"ImageSets/{image_set}/{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def write_voc_tar(path: Path, folder: Path) -> Path:
    """The tree in `folder` as the archive that is handed out."""
    with tarfile.open(path, "w") as archive:
        for file in sorted(p for p in (folder / "VOCdevkit").rglob("*") if p.is_file()):
            info = tarfile.TarInfo(str(file.relative_to(folder)))
            data = file.read_bytes()
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
