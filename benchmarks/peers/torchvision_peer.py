"""torchvision's Mask R-CNN, run by an interpreter that has torch and torchvision."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torchvision
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import resnet50
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.peers.worker import Repetition, serve
from tests.parity.gains import gains
from tests.parity.seeded import image, weight
from tests.parity.targets import targets

SEEDS = {"v1": 11, "v2": 12}
BUILDERS = {"v1": maskrcnn_resnet50_fpn, "v2": maskrcnn_resnet50_fpn_v2}


def prepare(task: str, threads: int, **options) -> Repetition:
    torch.set_num_threads(threads)
    return {"inference": inference, "training": training}[task](**options)


def inference(*, version: str = "v1", height: int, width: int, batch: int = 1, precision="float32", **changes) -> Repetition:
    sizes = {"min_size": min(height, width), "max_size": max(height, width)}
    model = BUILDERS[version](weights=None, weights_backbone=None, **sizes, **changes)
    _load(model, version)
    model.eval()
    pictures = [torch.from_numpy(image(5 + i, height, width)).permute(2, 0, 1).float() / 255 for i in range(batch)]

    def repeat() -> dict:
        with torch.inference_mode():
            found = model(pictures)
        return {"detections": sum(len(one["scores"]) for one in found)}

    return repeat


def training(*, height: int, width: int, batch: int = 1, frozen_norm: bool = True, objects: int = 10) -> Repetition:
    torch.manual_seed(0)
    trunk = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    backbone = _resnet_fpn_extractor(trunk, trainable_layers=3)
    model = MaskRCNN(backbone, num_classes=91, min_size=min(height, width), max_size=max(height, width))
    _load(model, "v1")
    model.train()
    weights = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1e-6, momentum=0.9, weight_decay=1e-4)
    pictures = [torch.from_numpy(image(5 + i, height, width)).permute(2, 0, 1).float() / 255 for i in range(batch)]
    truth = []
    for i in range(batch):
        boxes, labels, masks = targets(5 + i, height, width, objects, 91)
        truth.append({"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels), "masks": torch.from_numpy(masks)})

    def repeat() -> dict:
        losses = model(pictures, truth)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {name: float(value) for name, value in losses.items()}

    return repeat


def _load(model, version: str) -> None:
    made = functools.partial(weight, SEEDS[version], gains=gains(version))
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    state = {name: torch.from_numpy(np.asarray(made(name, shape))) for name, shape in wanted.items()}
    model.load_state_dict(state, strict=True)


if __name__ == "__main__":
    serve(prepare)
