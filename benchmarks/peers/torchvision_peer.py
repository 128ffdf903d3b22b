"""torchvision's Mask R-CNN, run by an interpreter that has torch and torchvision."""

from __future__ import annotations

from typing import Any

import torch
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import resnet50
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.peers import seeded
from benchmarks.peers.worker import Repetition, serve

_BUILDERS = {"torchvision_v1": maskrcnn_resnet50_fpn, "torchvision_v2": maskrcnn_resnet50_fpn_v2}
_LABELS = 90
"""COCO's ids run to 90."""


def prepare(*, task: str, threads: int, **options: Any) -> Repetition:
    """What is repeated."""
    torch.set_num_threads(threads)
    return {"inference": inference, "training": training}[task](**options)


def inference(*, weights: str, height: int, width: int, batch: int = 1, **changes: Any) -> Repetition:
    """Pictures to detections with pasted masks, as `model(images)` gives them.

    The norms are batch norms in inference mode, which is faster here than the `FrozenBatchNorm2d` of the published first version.
    """
    sizes = {"min_size": min(height, width), "max_size": max(height, width)}
    model = _BUILDERS[weights](weights=None, weights_backbone=None, **sizes, **changes)
    _load(model, weights)
    model.eval()
    images = _images(batch, height, width)

    def repeat() -> dict[str, Any]:
        with torch.inference_mode():
            found = model(images)
        return {"detections": sum(len(one["scores"]) for one in found)}

    return repeat


def training(*, height: int, width: int, batch: int = 1, objects: int = 10) -> Repetition:
    """One step of SGD: stem and first stage frozen, frozen norms, the whole heads."""
    torch.manual_seed(0)
    backbone = _resnet_fpn_extractor(resnet50(weights=None, norm_layer=FrozenBatchNorm2d), trainable_layers=3)
    model = MaskRCNN(backbone, num_classes=_LABELS + 1, min_size=min(height, width), max_size=max(height, width))
    _load(model, "torchvision_v1")
    model.train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4)
    images = _images(batch, height, width)
    keys = ("boxes", "labels", "masks")
    truth = [
        dict(zip(keys, map(torch.from_numpy, found), strict=True))
        for found in seeded.truth(batch, height, width, objects, _LABELS)
    ]

    def repeat() -> dict[str, Any]:
        losses = model(images, truth)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        return {name: value.item() for name, value in losses.items()}

    return repeat


def _images(count: int, height: int, width: int) -> list[torch.Tensor]:
    return [torch.from_numpy(picture).permute(2, 0, 1).float() / 255 for picture in seeded.pictures(count, height, width)]


def _load(model: torch.nn.Module, weights: str) -> None:
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    made = seeded.parameters(weights, shapes)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in made.items()})


if __name__ == "__main__":
    serve(prepare)
