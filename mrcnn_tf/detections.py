"""What was found in one image, in pixels of that image. Numpy only: no TensorFlow is needed to hold or to convert it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.paste import PasteRule, Rle, encode_masks, paste_masks

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, best first.

    Attributes:
        boxes: [N, 4] float32, `y1, x1, y2, x2` in pixels of the original image.
        classes: [N] int32, 1..K.
        scores: [N] float32, falling.
        mask_probs: [N, 28, 28] float32, the probability in the frame of the box; None when the model has no masks.
        image_size: (height, width) of the original image.
        categories: `{"id", "name"}` of the model; position i is class i + 1.
        paste: how masks are laid over their boxes, see `mrcnn_tf.paste.PasteRule`.

    Raises:
        ValueError: the arrays do not have these shapes, a class has no category, or there is no such rule.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int32]
    scores: NDArray[np.float32]
    mask_probs: NDArray[np.float32] | None
    image_size: tuple[int, int]
    categories: tuple[Mapping[str, Any], ...]
    paste: PasteRule = "centred"

    def __post_init__(self) -> None:
        count = len(self.boxes)
        shapes = {"boxes": (self.boxes, (count, 4)), "classes": (self.classes, (count,)), "scores": (self.scores, (count,))}
        for name, (array, expected) in shapes.items():
            if array.shape != expected:
                raise ValueError(f"{name} must be {expected} for {count} detections, got {array.shape}")
        if self.mask_probs is not None and (self.mask_probs.ndim != 3 or len(self.mask_probs) != count):
            raise ValueError(f"mask_probs must be [{count}, rows, columns], got {self.mask_probs.shape}")
        if count and not (self.classes.min() >= 1 and self.classes.max() <= len(self.categories)):
            raise ValueError(f"classes must be in 1..{len(self.categories)}, got {sorted(set(self.classes.tolist()))}")
        if self.paste not in get_args(PasteRule):
            raise ValueError(f"paste must be one of {', '.join(get_args(PasteRule))}, got {self.paste!r}")

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, score_threshold: float) -> Detections:
        """Those with a score of at least `score_threshold`."""
        return self.select(self.scores >= score_threshold)

    def select(self, rows: NDArray[Any] | slice) -> Detections:
        """Those of the given rows: a slice, indices, or one bool per detection."""
        masks = None if self.mask_probs is None else self.mask_probs[rows]
        return replace(self, boxes=self.boxes[rows], classes=self.classes[rows], scores=self.scores[rows], mask_probs=masks)

    @property
    def category_ids(self) -> list[int]:
        """The data set's own id of each detection."""
        return [int(self.categories[number - 1]["id"]) for number in self.classes]

    @property
    def category_names(self) -> list[str]:
        """The name of each detection's class."""
        return [str(self.categories[number - 1]["name"]) for number in self.classes]

    def masks(self) -> NDArray[np.bool_] | None:
        """The masks, bool [N, height, width]; None when the model has none."""
        return None if self.mask_probs is None else paste_masks(self.mask_probs, self.boxes, self.image_size, rule=self.paste)

    def rles(self) -> list[Rle] | None:
        """The masks as COCO run lengths, `{"size": [height, width], "counts": str}`; None when the model has none."""
        return None if self.mask_probs is None else encode_masks(self.mask_probs, self.boxes, self.image_size, rule=self.paste)

    def to_supervision(self) -> supervision.Detections:
        """The same as `supervision.Detections`: xyxy, mask, confidence, class_id (1..K) and `data["class_name"]`."""
        import supervision

        return supervision.Detections(
            xyxy=self.boxes[:, [1, 0, 3, 2]],
            mask=self.masks(),
            confidence=self.scores,
            class_id=self.classes.astype(int),
            data={"class_name": np.array(self.category_names, dtype=str)},
        )

    def to_records(self, file_name: str) -> list[dict[str, Any]]:
        """One entry of `detections.json` of `mrcnn-tf predict` for each detection (see docs/contracts.md)."""
        return [
            {"file_name": file_name, "category_id": number, "category_name": name, **found}
            for number, name, found in zip(self.category_ids, self.category_names, self._found(), strict=True)
        ]

    def to_results(self, image_id: int) -> list[dict[str, Any]]:
        """One COCO result for each detection, as `mrcnn-tf evaluate` writes them."""
        return [
            {"image_id": image_id, "category_id": number, **found}
            for number, found in zip(self.category_ids, self._found(), strict=True)
        ]

    def _found(self) -> list[dict[str, Any]]:
        corner, size = self.boxes[:, 1::-1], (self.boxes[:, 2:] - self.boxes[:, :2])[:, ::-1]
        found: list[dict[str, Any]] = [
            {"bbox": [_shortest(value) for value in box], "score": _shortest(score)}
            for box, score in zip(np.concatenate([corner, size], axis=1), self.scores, strict=True)
        ]
        for entry, rle in zip(found, self.rles() or [], strict=False):
            entry["segmentation"] = rle
        return found


Detector = Callable[[NDArray[np.uint8]], Detections]
"""Anything that finds objects: a uint8 RGB picture [h, w, 3] to `Detections` in its pixels."""


def _shortest(value: np.float32) -> float:
    """The float whose decimal form is the shortest that names this float32 (0.1, not 0.10000000149011612)."""
    return float(str(value))
