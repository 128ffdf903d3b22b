"""COCO ground truth and results, as everything that measures takes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pycocotools import mask as coco_mask

IouType = Literal["bbox", "segm", "boundary"]
"""What is compared: boxes, masks, or masks and their boundaries (`mrcnn_tf.metrics.boundary`)."""


class EvaluationError(ValueError):
    """Detections and ground truth that cannot be compared; the message says which and why."""


def read_ground_truth(annotations: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """COCO JSON as COCOeval needs it: numbered annotations, with `iscrowd` and `area`.

    Raises:
        EvaluationError: not COCO ground truth, or without images; says which file.
    """
    origin = "the annotations" if isinstance(annotations, Mapping) else str(annotations)
    try:
        truth = annotations if isinstance(annotations, Mapping) else json.loads(Path(annotations).read_bytes())
        images, categories, records = (truth[key] for key in ("images", "categories", "annotations"))
        # COCOeval marks what it matched by the annotation's id and takes 0 for "not matched", so ids are given anew from 1.
        complete = [
            {"iscrowd": 0, "area": record["bbox"][2] * record["bbox"][3], **record, "id": number}
            for number, record in enumerate(records, start=1)
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise EvaluationError(f"{origin}: expected COCO JSON with images, categories and annotations: {error!r}") from error
    if not images:
        raise EvaluationError(f"{origin}: there are no images to evaluate on")
    return {"images": images, "categories": categories, "annotations": complete}


def with_crowd_masks(truth: Mapping[str, Any]) -> dict[str, Any]:
    """Ground truth in which a crowd region without a mask has its box for one."""
    return {**truth, "annotations": [_with_crowd_mask(record) for record in truth["annotations"]]}


def _with_crowd_mask(record: Mapping[str, Any]) -> Mapping[str, Any]:
    if not record["iscrowd"] or record.get("segmentation"):
        return record
    x, y, width, height = record["bbox"]
    right, bottom = x + width, y + height
    return {**record, "segmentation": [[x, y, right, y, right, bottom, x, bottom]]}


def as_annotations(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: IouType) -> list[dict[str, Any]]:
    """The results as COCOeval wants them; the area is that of what is compared, as `COCO.loadRes` has it.

    Raises:
        EvaluationError: a result names an image that the ground truth lacks.
    """
    known = {image["id"] for image in truth["images"]}
    unknown = sorted({result["image_id"] for result in results} - known)
    if unknown:
        raise EvaluationError(f"results name images that the annotations lack: ids {unknown[:5]}")
    annotations = []
    for number, result in enumerate(results, start=1):
        what = {key: result[key] for key in ("image_id", "category_id", "score")}
        if iou_type == "bbox":
            shape = {"bbox": result["bbox"], "area": result["bbox"][2] * result["bbox"][3]}
        else:
            shape = {"segmentation": result["segmentation"], "area": float(coco_mask.area(result["segmentation"]))}
        annotations.append({**what, **shape, "id": number, "iscrowd": 0})
    return annotations


def class_names(truth: Mapping[str, Any]) -> dict[int, str]:
    """Category id to a name that no other category has, in the order of the ids."""
    names = {int(category["id"]): str(category["name"]) for category in truth["categories"]}
    times = Counter(names.values())
    return {number: name if times[name] == 1 else f"{name} ({number})" for number, name in sorted(names.items())}
