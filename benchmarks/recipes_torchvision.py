"""The peer of `recipes.py`, run by it in an environment with torch: a DataLoader with `torchvision.transforms.v2`.

Images, boxes and whole-image bitmaps of the masks (`tv_tensors`) go through RandomShortestSize, or ScaleJitter, RandomCrop with
padding and ColorJitter, and RandomHorizontalFlip. `paste` does what SimpleCopyPaste of torchvision's references does, on two
pictures made so. Crowd regions and images without objects are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from epochs import measure_epochs
from input_pipeline_torchvision import CocoObjects
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    for name in ("threads", "batch", "side", "epochs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--scales", type=float, nargs=2, required=True)
    parser.add_argument("--colours", type=float, nargs=4, required=True)
    parser.add_argument("--edges", type=int, nargs="+", required=True)
    arguments = parser.parse_args()
    pictures = CocoObjects(arguments.images, arguments.annotations, _transforms(arguments))
    loader = DataLoader(
        Pasted(pictures) if arguments.worker == "paste" else pictures,
        batch_size=arguments.batch,
        shuffle=True,
        drop_last=True,
        num_workers=arguments.threads,
        collate_fn=lambda samples: tuple(zip(*samples, strict=True)),
        persistent_workers=arguments.threads > 0,
    )
    sizes = []

    def run_epoch() -> int:
        count = 0
        for images, targets in loader:
            batch = torch.stack(images)
            assert batch.shape == (arguments.batch, 3, arguments.side, arguments.side), batch.shape
            sizes.append((batch.nbytes + sum(value.nbytes for target in targets for value in target.values())) / len(batch))
            count += len(batch)
        return count

    figures = measure_epochs(run_epoch, epochs=arguments.epochs, seconds=arguments.seconds)
    print(json.dumps(figures | {"batch_bytes": round(sum(sizes) / len(sizes)), "torch": torch.__version__}))


class Pasted(Dataset):
    """Random objects of a second picture laid over each."""

    def __init__(self, pictures: Dataset):
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        below, target = self._pictures[index]
        above, other = self._pictures[int(torch.randint(len(self), ()))]
        chosen = torch.rand(len(other["labels"])) < 0.5
        if not chosen.any():
            return below, target
        pasted = other["masks"][chosen]
        alpha = pasted.any(dim=0)
        left = target["masks"] * ~alpha
        kept = left.flatten(1).any(dim=1)
        masks = torch.cat([left[kept], pasted])
        found = {
            "boxes": masks_to_boxes(masks),
            "labels": torch.cat([target["labels"][kept], other["labels"][chosen]]),
            "masks": masks,
        }
        return torch.where(alpha, above, below), found


def _transforms(arguments: argparse.Namespace) -> v2.Transform:
    side = arguments.side
    flip = v2.RandomHorizontalFlip(0.5)
    if arguments.worker == "plain":
        return v2.Compose([v2.PILToTensor(), flip, v2.RandomShortestSize(arguments.edges, max_size=side), _Pad(side)])
    jitter = v2.ScaleJitter((side, side), scale_range=tuple(arguments.scales))
    crop = v2.RandomCrop((side, side), pad_if_needed=True)
    return v2.Compose(
        [v2.PILToTensor(), flip, jitter, crop, v2.SanitizeBoundingBoxes(min_size=1), v2.ColorJitter(*arguments.colours)]
    )


class _Pad(torch.nn.Module):
    """Zeros at the bottom and the right."""

    def __init__(self, side: int):
        super().__init__()
        self._side = side

    def forward(self, image: torch.Tensor, target: dict) -> tuple[torch.Tensor, dict]:
        height, width = image.shape[-2:]
        padding = [0, 0, self._side - width, self._side - height]
        made = {
            key: v2.functional.pad(value, padding) if isinstance(value, tv_tensors.TVTensor) else value
            for key, value in target.items()
        }
        return v2.functional.pad(image, padding), made


if __name__ == "__main__":
    main()
