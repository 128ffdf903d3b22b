"""detectron2's Mask R-CNN, run by an interpreter that has torch and a detectron2 built for it."""

from __future__ import annotations

from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from benchmarks.peers import seeded
from benchmarks.peers.worker import Repetition, serve

_CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
_WEIGHTS = "detectron2"


def prepare(*, task: str, threads: int, **options: Any) -> Repetition:
    """What is repeated."""
    torch.set_num_threads(threads)
    return {"inference": inference, "training": training}[task](**options)


def inference(*, height: int, width: int, batch: int = 1, sampling_ratio: int = 0) -> Repetition:
    """Pictures, not resized, to detections with pasted masks, as `model(inputs)` gives them.

    Args:
        height: of the pictures.
        width: of the pictures.
        batch: number of pictures.
        sampling_ratio: of ROIAlign for boxes and masks; 0, the default of detectron2, takes more samples of larger boxes.
    """
    model = _model(_configuration(sampling_ratio)).eval()
    inputs = _inputs(batch, height, width)

    def repeat() -> dict[str, Any]:
        with torch.inference_mode():
            found = model(inputs)
        return {"detections": sum(len(one["instances"]) for one in found)}

    return repeat


def training(*, height: int, width: int, batch: int = 1, objects: int = 10, sampling_ratio: int = 0) -> Repetition:
    """One step of SGD: stem and first stage frozen, frozen norms, the whole heads; 1000 proposals of a picture.

    The masks are bitmaps, as everywhere here; those of COCO would be polygons.
    """
    torch.manual_seed(0)
    configuration = _configuration(sampling_ratio)
    configuration.SOLVER.BASE_LR = 1e-6
    model = _model(configuration).train()
    optimizer = build_optimizer(configuration, model)
    inputs = _inputs(batch, height, width)
    classes = configuration.MODEL.ROI_HEADS.NUM_CLASSES
    for one, found in zip(inputs, seeded.truth(batch, height, width, objects, classes), strict=True):
        boxes, labels, masks = map(torch.from_numpy, found)
        truth = {"gt_boxes": Boxes(boxes), "gt_classes": labels - 1, "gt_masks": BitMasks(masks.bool())}
        one["instances"] = Instances((height, width), **truth)

    def repeat() -> dict[str, Any]:
        with EventStorage():
            losses = model(inputs)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        return {name: value.item() for name, value in losses.items()}

    return repeat


def _configuration(sampling_ratio: int) -> Any:
    configuration = model_zoo.get_config(_CONFIG)
    configuration.MODEL.DEVICE = "cpu"
    configuration.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = sampling_ratio
    configuration.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO = sampling_ratio
    return configuration


def _model(configuration: Any) -> torch.nn.Module:
    model = build_model(configuration)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    made = seeded.parameters(_WEIGHTS, shapes)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in made.items()})
    return model


def _inputs(count: int, height: int, width: int) -> list[dict[str, Any]]:
    """What its `DefaultPredictor` gives the model: BGR, float32."""
    pictures = [picture[:, :, ::-1].transpose(2, 0, 1).astype("float32") for picture in seeded.pictures(count, height, width)]
    return [{"image": torch.from_numpy(picture), "height": height, "width": width} for picture in pictures]


if __name__ == "__main__":
    serve(prepare)
