"""The labels of COCO 2014 and 2017, as the data set and as torchvision's models number them.

Source: the `categories` of COCO's instance annotations. Of the ids 1..90, ten were given up before publication.
"""

from __future__ import annotations

from typing import Any

UNUSED_IDS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
MAX_ID = 90
UNUSED_NAME = "N/A"
"""What torchvision calls an id that COCO gave up."""

_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
_USED_IDS = (number for number in range(1, MAX_ID + 1) if number not in UNUSED_IDS)
_NAME_OF_ID = dict(zip(_USED_IDS, _NAMES, strict=True))

COCO_CATEGORIES: tuple[dict[str, Any], ...] = tuple({"id": number, "name": name} for number, name in _NAME_OF_ID.items())
"""The 80 categories in the order of their ids: position i is class i + 1 of detectron2's and matterport's models."""

TORCHVISION_CATEGORIES: tuple[dict[str, Any], ...] = tuple(
    {"id": number, "name": _NAME_OF_ID.get(number, UNUSED_NAME)} for number in range(1, MAX_ID + 1)
)
"""The 90 foreground classes of torchvision's and Model Garden's models: the class is COCO's id."""

TORCHVISION_LABELS = ("__background__", *(str(category["name"]) for category in TORCHVISION_CATEGORIES))
"""torchvision's 91 labels, index = COCO's id."""
