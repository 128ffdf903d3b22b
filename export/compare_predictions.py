"""Whether two runs found the same.

python -m mrcnn_tf.export.compare_predictions EXPECTED/detections.json FOUND/detections.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

Record = Mapping[str, Any]


def main() -> None:
    """Compare two files, print the largest differences, and fail where they are too large."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("expected", type=Path, help="detections.json")
    parser.add_argument("found", type=Path, help="detections.json")
    parser.add_argument("--box-tolerance", type=float, default=0.05, help="pixels")
    parser.add_argument("--score-tolerance", type=float, default=1e-4)
    parser.add_argument("--mask-iou", type=float, default=0.999, help="least overlap of the masks of an object")
    arguments = parser.parse_args()
    try:
        expected, found = (json.loads(path.read_text(encoding="utf-8")) for path in (arguments.expected, arguments.found))
        worst = largest_differences(expected, found)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    boxes, scores, overlap = worst["box"], worst["score"], worst["mask_iou"]
    print(f"{len(expected)} objects: boxes {boxes:.2g} px, scores {scores:.2g}, masks overlap {overlap:.5f}")
    if boxes > arguments.box_tolerance or scores > arguments.score_tolerance or overlap < arguments.mask_iou:
        sys.exit("error: that is more than the tolerance")


def largest_differences(expected: Sequence[Record], found: Sequence[Record]) -> dict[str, float]:
    """How far two lists of `detections.json` are from each other.

    The objects of a picture are paired in their order, which is that of their scores.

    Args:
        expected: records of `mrcnn-tf predict`.
        found: records of something that should find the same.

    Returns:
        `{"box": pixels, "score": probability, "mask_iou": least intersection over union}`.

    Raises:
        ValueError: another number of objects in a picture, or another class in a pair.
    """
    worst = {"box": 0.0, "score": 0.0, "mask_iou": 1.0}
    groups = [_by_picture(records) for records in (expected, found)]
    for name in sorted(groups[0].keys() | groups[1].keys()):
        wanted, got = (group[name] for group in groups)
        classes = [[record["category_id"] for record in records] for records in (wanted, got)]
        if classes[0] != classes[1]:
            raise ValueError(
                f"{name}: expected {len(wanted)} objects of categories {classes[0]}, found {len(got)} of {classes[1]}"
            )
        for pair in zip(wanted, got, strict=True):
            worst["box"] = max(worst["box"], *(abs(a - b) for a, b in zip(*(record["bbox"] for record in pair), strict=True)))
            worst["score"] = max(worst["score"], abs(pair[0]["score"] - pair[1]["score"]))
            worst["mask_iou"] = min(worst["mask_iou"], _overlap(*pair))
    return worst


def _by_picture(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups = defaultdict(list)
    for record in records:
        groups[record["file_name"]].append(record)
    return groups


def _overlap(expected: Record, found: Record) -> float:
    masks = [record.get("segmentation") for record in (expected, found)]
    if masks[0] is None or masks[1] is None or masks[0]["size"] != masks[1]["size"]:
        return float(masks[0] == masks[1])
    if not coco_mask.area(masks[0]) and not coco_mask.area(masks[1]):
        return 1.0
    return float(coco_mask.iou([masks[0]], [masks[1]], [0])[0, 0])


if __name__ == "__main__":
    main()
