"""The peer of `input_pipeline.py`, run by it in an environment with torch and torchvision: their detection references' pipeline.

The data set reads with Pillow, decodes each object's mask to a bitmap of the whole image with pycocotools, flips and makes float
tensors (`torchvision.transforms.v2`); the main process resizes images and masks, normalises and pads (`GeneralizedRCNNTransform`,
which is inside torchvision's models). Crowd regions and images without objects are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from epochs import measure_epochs
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("annotations", type=Path)
    for name in ("workers", "batch", "side", "epochs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--min-sizes", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    side = arguments.side
    transform = GeneralizedRCNNTransform(arguments.min_sizes, side, _MEAN, _STD, size_divisible=side)
    loader = DataLoader(
        CocoObjects(arguments.images, arguments.annotations),
        batch_size=arguments.batch,
        shuffle=True,
        drop_last=True,
        num_workers=arguments.workers,
        collate_fn=_collate,
        persistent_workers=arguments.workers > 0,
    )

    def run_epoch() -> int:
        images = 0
        for pictures, targets in loader:
            batch, _ = transform(pictures, targets)
            assert batch.tensors.shape == (arguments.batch, 3, side, side), batch.tensors.shape
            images += len(batch.tensors)
        return images

    figures = measure_epochs(run_epoch, epochs=arguments.epochs, seconds=arguments.seconds)
    print(json.dumps(figures | {"torch": torch.__version__}))


class CocoObjects(Dataset):
    """Images of a COCO file with boxes, labels and whole-image bitmaps of their objects."""

    def __init__(self, folder: Path, annotations: Path, transforms: v2.Transform | None = None):
        self._folder, self._coco = folder, COCO(str(annotations))
        objects = {key: [item for item in self._coco.imgToAnns[key] if _is_object(item)] for key in self._coco.imgs}
        self._objects = {key: items for key, items in objects.items() if items}
        self._keys = list(self._objects)
        flip, to_float = v2.RandomHorizontalFlip(0.5), v2.ToDtype(torch.float, scale=True)
        self._transforms = transforms or v2.Compose([flip, v2.PILToTensor(), to_float])

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        entry, items = self._coco.imgs[self._keys[index]], self._objects[self._keys[index]]
        size = (entry["height"], entry["width"])
        corners = [(x, y, x + width, y + height) for x, y, width, height in (item["bbox"] for item in items)]
        with Image.open(self._folder / entry["file_name"]) as image:
            picture = image.convert("RGB")
        target = {
            "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size, dtype=torch.float),
            "labels": torch.tensor([item["category_id"] for item in items]),
            "masks": tv_tensors.Mask(torch.stack([_bitmap(item["segmentation"], size) for item in items])),
        }
        return self._transforms(picture, target)


def _collate(samples: list[tuple]) -> tuple:
    return tuple(zip(*samples, strict=True))


def _is_object(item: dict) -> bool:
    return not item.get("iscrowd") and min(item["bbox"][2:]) > 0


def _bitmap(segmentation: list | dict, size: tuple[int, int]) -> torch.Tensor:
    compressed = isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list)
    rles = segmentation if compressed else coco_mask.frPyObjects(segmentation, *size)
    return torch.as_tensor(coco_mask.decode(coco_mask.merge(rles) if isinstance(rles, list) else rles))


if __name__ == "__main__":
    main()
