"""What `compare.py` measures: comparisons, each a set of sides that run in turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.turns import Side

FULL, SMALL = {"height": 800, "width": 1216}, {"height": 512, "width": 512}
OF_64 = {"height": 768, "width": 1216}
"""Model Garden pads to multiples of 64."""
V1, V2 = {"weights": "torchvision_v1"}, {"weights": "torchvision_v2"}
SIZES = ((320, 320), (512, 512), (512, 768), (800, 800), (800, 1216), (1024, 1344), (1344, 1344))
BATCHES = (1, 2, 4)
PROPOSALS = (1, 10, 100, 300, 1000)
DETECTIONS = (1, 10, 30, 100)
CLASSES = (1, 20, 80, 1203)
LIMIT = "bare convolutions"


@dataclass(frozen=True)
class Interpreters:
    """Pythons that have the systems; None: not here, and left out."""

    ours: str
    torchvision: str | None = None
    model_garden: str | None = None
    garden_weights: str | None = None
    """A checkpoint that Model Garden's Python has written."""
    detectron2: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Sides that are measured in turns.

    Attributes:
        name: its key in the results; what varies within a `group` comes after it.
        title: in the table.
        sides: by name; None where the system is not here.
        base: the side that the others are divided by.
        group: of comparisons that differ in one number, which is drawn on the x axis.
        at: that number.
    """

    name: str
    title: str
    sides: Mapping[str, Side | None]
    base: str = "torchvision"
    group: str | None = None
    at: float = 0

    def present(self) -> dict[str, Side]:
        """The sides that are here."""
        return {name: side for name, side in self.sides.items() if side is not None}


def comparisons(where: Interpreters, threads: int) -> list[Comparison]:
    """All of them."""
    ours, torchvision, garden, detectron2 = (
        _Maker(getattr(where, name), worker, threads)
        for name, worker in (
            ("ours", "ours"),
            ("torchvision", "torchvision_peer"),
            ("model_garden", "model_garden_peer"),
            ("detectron2", "detectron2_peer"),
        )
    )
    detection = "inference"
    bfloat16, sampling_2 = {"precision": "mixed_bfloat16"}, {"sampling_ratio": 2}
    found = [
        Comparison(
            "inference_v1",
            "inference, 800 x 1216, R50-FPN, weights of torchvision v1",
            {
                "ours": ours(detection, **V1, **FULL),
                "ours, bfloat16": ours(detection, **V1, **FULL, **bfloat16),
                "torchvision": torchvision(detection, **V1, **FULL),
                LIMIT: ours("inference_limit", **V1, **FULL),
            },
        ),
        Comparison(
            "inference_v2",
            "inference, 800 x 1216, R50-FPN, weights of torchvision v2",
            {
                "ours": ours(detection, **V2, **FULL),
                "torchvision": torchvision(detection, **V2, **FULL),
                LIMIT: ours("inference_limit", **V2, **FULL),
            },
        ),
        Comparison(
            "inference_detectron2",
            "inference, 800 x 1216, R50-FPN, weights of detectron2",
            {
                "ours, adaptive sampling": ours(detection, weights="detectron2", **FULL),
                "ours, 2 samples": ours(detection, weights="detectron2", **FULL, roi_align=sampling_2),
                "detectron2": detectron2(detection, **FULL),
                "detectron2, 2 samples": detectron2(detection, **FULL, **sampling_2),
            },
            base="detectron2" if where.detectron2 else "ours, adaptive sampling",
        ),
        Comparison(
            "inference_model_garden",
            "inference, 768 x 1216, Model Garden's R50-FPN and its weights",
            {
                "ours": ours(detection, weights=where.garden_weights, **OF_64),
                "Model Garden": garden(detection, **OF_64),
            },
            base="Model Garden",
        ),
    ]
    for name, title, size in (("training_512", "512 x 512", SMALL), ("training_800", "800 x 1216", FULL)):
        sides = {
            "ours": ours("training", **size),
            "ours, recomputing": ours("training", **size, recompute=True),
            "ours, bfloat16": ours("training", **size, **bfloat16),
            "torchvision": torchvision("training", **size),
            "detectron2": detectron2("training", **size),
            "Model Garden, its box head": garden("training", **size) if size == SMALL else None,
            LIMIT: ours("training_limit", **size),
        }
        found.append(Comparison(name, f"training step, {title}, R50-FPN, batch 1", sides))
    found.append(
        Comparison(
            "training_xla",
            "training step, 512 x 512, R50-FPN, under XLA",
            {"ours, XLA": ours("training", **SMALL, xla=True), "ours": ours("training", **SMALL)},
            base="ours",
        )
    )

    def pair(group: str, at: float, title: str, our_options: dict[str, Any], their_options: dict[str, Any]) -> Comparison:
        sides = {"ours": ours(detection, **our_options), "torchvision": torchvision(detection, **their_options)}
        return Comparison(f"{group}_{at:.4g}", title, sides, group=group, at=at)

    for height, width in SIZES:
        size = {**V1, "height": height, "width": width}
        found.append(pair("megapixels", height * width / 1e6, f"inference, {height} x {width}", size, size))
    for batch in BATCHES:
        options = {**V1, **FULL, "batch": batch}
        found.append(pair("batch", batch, f"inference, 800 x 1216, batches of {batch}", options, options))
    small = {**V1, **SMALL}
    for count in PROPOSALS:
        changed = {**small, "rpn": {"post_nms_top_k_test": count}}, {**small, "rpn_post_nms_top_n_test": count}
        found.append(pair("proposals", count, f"inference, 512 x 512, {count} proposals", *changed))
    for count in DETECTIONS:
        changed = {**small, "box_head": {"max_detections": count}}, {**small, "box_detections_per_img": count}
        found.append(pair("detections", count, f"inference, 512 x 512, {count} detections", *changed))
    for count in CLASSES:
        # So low that 100 detections come out with any number of classes.
        changed = (
            {**small, "num_classes": count, "box_head": {"score_threshold": 1e-4}},
            {**small, "num_classes": count + 1, "box_score_thresh": 1e-4},
        )
        found.append(pair("classes", count, f"inference, 512 x 512, {count} classes", *changed))
    return [one for one in found if one.base in one.present() and len(one.present()) > 1]


class _Maker:
    """Sides of one system."""

    def __init__(self, python: str | None, worker: str, threads: int) -> None:
        self._python, self._worker, self._threads = python, worker, threads

    def __call__(self, task: str, **options: Any) -> Side | None:
        if self._python is None:
            return None
        return Side(self._python, f"benchmarks.peers.{self._worker}", {"task": task, "threads": self._threads, **options})
