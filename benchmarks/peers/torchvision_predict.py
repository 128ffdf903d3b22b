"""What a user of torchvision writes for one picture: a state dict from a file, detection, pasted masks, a drawing as PNG.

python -m benchmarks.peers.torchvision_predict make STATE
python -m benchmarks.peers.torchvision_predict predict STATE PICTURE DRAWING
"""

from __future__ import annotations

import sys

import torch
from torchvision.io import ImageReadMode, decode_image, write_png
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

SCORE_THRESHOLD = 0.5


def make(state: str) -> None:
    """Write the seeded weights."""
    from benchmarks.peers import seeded

    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    made = seeded.parameters("torchvision_v1", {name: tuple(value.shape) for name, value in model.state_dict().items()})
    torch.save({name: torch.from_numpy(value) for name, value in made.items()}, state)


def predict(state: str, picture: str, drawing: str) -> None:
    """Draw what is found in a picture."""
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    model.load_state_dict(torch.load(state))
    model.eval()
    image = decode_image(picture, ImageReadMode.RGB)
    with torch.inference_mode():
        found = model([image.float() / 255])[0]
    shown = found["scores"] >= SCORE_THRESHOLD
    drawn = draw_segmentation_masks(image, found["masks"][shown, 0] > 0.5, alpha=0.42)
    write_png(draw_bounding_boxes(drawn, found["boxes"][shown], [str(int(label)) for label in found["labels"][shown]]), drawing)


if __name__ == "__main__":
    {"make": make, "predict": predict}[sys.argv[1]](*sys.argv[2:])
