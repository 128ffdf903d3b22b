"""COCO's average precision and recall of anything that turns a picture into `Detections`.

The figures are those of pycocotools' `COCOeval` (Lin et al. 2014, "Microsoft COCO"; cocodataset.org/#detection-eval), read
from its precision and recall tables, because its own summary knows no other number of detections than 100.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from rich.progress import Progress

from mrcnn_tf.data.images import load_image
from mrcnn_tf.detections import Detections, Detector
from mrcnn_tf.files import write_json
from mrcnn_tf.plots import plot_classes, plot_precision_recall

IouType = Literal["bbox", "segm"]
AREAS = ("all", "small", "medium", "large")


class EvaluationError(ValueError):
    """Detections and ground truth that cannot be compared; the message says which and why."""


@dataclass(frozen=True)
class CocoTables:
    """What COCOeval measured.

    Attributes:
        precision: [T, R, K, A, M] for T IoU thresholds (0.5..0.95), R recalls (0..1), K classes, A areas (all, small, medium,
            large) and M bounds of the detections per image; -1 where there was no ground truth.
        recall: [T, K, A, M], likewise.
        class_names: K names.
        max_detections: the largest bound, the last of M.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    class_names: tuple[str, ...]
    max_detections: int

    def metrics(self) -> dict[str, Any]:
        """The section of `metrics.json` (see docs/contracts.md); the last AR is named after `max_detections`."""
        precision, recall = self.precision[..., -1], self.recall
        average_precision = {
            "AP": _mean(precision[:, :, :, 0]),
            "AP50": _mean(precision[0, :, :, 0]),
            "AP75": _mean(precision[5, :, :, 0]),
            **{f"AP{area[0]}": _mean(precision[..., number]) for number, area in enumerate(AREAS[1:], start=1)},
        }
        average_recall = {
            "AR1": _mean(recall[:, :, 0, 0]),
            "AR10": _mean(recall[:, :, 0, 1]),
            f"AR{self.max_detections}": _mean(recall[:, :, 0, 2]),
            **{f"AR{area[0]}": _mean(recall[:, :, number, 2]) for number, area in enumerate(AREAS[1:], start=1)},
        }
        per_class = {name: _mean(precision[:, :, number, 0]) for number, name in enumerate(self.class_names)}
        return {**average_precision, **average_recall, "per_class": per_class}


def evaluate(
    detector: Detector,
    images_dir: str | Path,
    annotations: str | Path | Mapping[str, Any],
    output_dir: str | Path | None = None,
    *,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    progress: bool = True,
) -> dict[str, Any]:
    """Run a detector over a data set and measure it.

    `output_dir` gets `metrics.json`, `detections.json` (COCO results), and plots of precision over recall. Masks are left out,
    and stderr says why, where the ground truth or the detector has none.

    Args:
        detector: any callable from a uint8 RGB picture [h, w, 3] to `Detections`.
        images_dir: the folder that the annotations' `file_name`s start from.
        annotations: COCO JSON with the images and their ground truth, as a file or as its content.
        output_dir: made if it is not there; None writes nothing.
        score_threshold: detections with a lower score are left out.
        max_detections: at most so many detections of an image count, the best first.
        progress: show a progress bar on stderr.

    Returns:
        `{"bbox": {...}, "segm": {...}}` as in docs/contracts.md; without "segm" where there are no masks.

    Raises:
        EvaluationError: the detector's category ids are not those of the file, or a picture has another size than annotated.
        ImageError: a picture is missing or broken.
    """
    truth = read_ground_truth(annotations)
    results, has_masks = _detect_all(detector, truth, Path(images_dir), score_threshold, max_detections, progress)
    tables = {"bbox": coco_tables(truth, results, "bbox", max_detections=max_detections)}
    reason = _why_no_masks(truth, has_masks)
    if reason is None:
        tables["segm"] = coco_tables(truth, results, "segm", max_detections=max_detections)
    else:
        print(f"note: segm is left out: {reason}", file=sys.stderr)
    metrics = {iou_type: table.metrics() for iou_type, table in tables.items()}
    if output_dir is not None:
        _write(Path(output_dir), metrics, results, tables)
    return metrics


def coco_metrics(
    annotations: str | Path | Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    *,
    max_detections: int = 100,
) -> dict[str, Any]:
    """The figures of COCO results.

    Args:
        annotations: COCO JSON, as a file or as its content.
        results: `{"image_id", "category_id", "score"}` with `bbox` [x, y, w, h] (for bbox) or `segmentation` RLE (for segm).
        iou_type: which of the two is compared.
        max_detections: at most so many results of an image and category count, the best first.

    Returns:
        One section of `metrics.json` (see docs/contracts.md): figures in 0..1, None where nothing was there to measure.

    Raises:
        EvaluationError: the file is no COCO ground truth, or a result names an image that is not in it.
    """
    return coco_tables(read_ground_truth(annotations), results, iou_type, max_detections=max_detections).metrics()


def coco_tables(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: IouType, *, max_detections: int = 100
) -> CocoTables:
    """COCOeval's tables of precision and recall; see `coco_metrics` for the arguments, `truth` is from `read_ground_truth`."""
    known = {image["id"] for image in truth["images"]}
    unknown = sorted({result["image_id"] for result in results} - known)
    if unknown:
        raise EvaluationError(f"results name images that the annotations lack: ids {unknown[:5]}")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_index(truth), _index({**truth, "annotations": _as_annotations(results, iou_type)}), iou_type)
        evaluation.params.maxDets = [min(1, max_detections), min(10, max_detections), max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    names = {category["id"]: str(category["name"]) for category in truth["categories"]}
    return CocoTables(
        precision=evaluation.eval["precision"],
        recall=evaluation.eval["recall"],
        class_names=tuple(_unique([(number, names[number]) for number in evaluation.params.catIds])),
        max_detections=max_detections,
    )


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


def _detect_all(
    detector: Detector, truth: Mapping[str, Any], images_dir: Path, score_threshold: float, max_detections: int, progress: bool
) -> tuple[list[dict[str, Any]], bool]:
    results: list[dict[str, Any]] = []
    has_masks = True
    with Progress(console=Console(file=sys.stderr), disable=not progress) as bar:
        for image in bar.track(truth["images"], description="evaluating"):
            found = detector(load_image(images_dir / image["file_name"]))
            _check_comparable(found, image, truth["categories"])
            has_masks = has_masks and found.mask_probs is not None
            results += found.above(score_threshold).select(slice(0, max_detections)).to_results(image["id"])
    return results, has_masks


def _check_comparable(found: Detections, image: Mapping[str, Any], categories: Sequence[Mapping[str, Any]]) -> None:
    ours, theirs = {c["id"]: c["name"] for c in found.categories}, {c["id"]: c["name"] for c in categories}
    missing = sorted(set(theirs) - set(ours))
    if missing:
        named = ", ".join(f"{number} ({theirs[number]})" for number in missing[:5])
        raise EvaluationError(
            f"the annotations have category ids that the detector does not know: {named}; it knows {sorted(ours)[:10]}"
        )
    annotated = (image.get("height"), image.get("width"))
    if None not in annotated and annotated != found.image_size:
        raise EvaluationError(f"{image['file_name']}: annotated as (height, width) {annotated}, but it is {found.image_size}")


def _why_no_masks(truth: Mapping[str, Any], has_masks: bool) -> str | None:
    without = sum(not record.get("segmentation") for record in truth["annotations"])
    if without:
        return f"{without} of {len(truth['annotations'])} annotations have no segmentation"
    return None if has_masks else "the detector gives no masks"


def _as_annotations(results: Sequence[Mapping[str, Any]], iou_type: IouType) -> list[dict[str, Any]]:
    """The results as COCOeval wants them; the area is that of what is compared, as `COCO.loadRes` has it."""
    annotations = []
    for number, result in enumerate(results, start=1):
        what = {key: result[key] for key in ("image_id", "category_id", "score")}
        if iou_type == "bbox":
            shape = {"bbox": result["bbox"], "area": result["bbox"][2] * result["bbox"][3]}
        else:
            shape = {"segmentation": result["segmentation"], "area": float(coco_mask.area(result["segmentation"]))}
        annotations.append({**what, **shape, "id": number, "iscrowd": 0})
    return annotations


def _index(content: Mapping[str, Any]) -> COCO:
    coco = COCO()
    # COCOeval replaces polygons by run lengths in the records it is given.
    coco.dataset = {**content, "annotations": [dict(record) for record in content["annotations"]]}
    coco.createIndex()
    return coco


def _mean(values: NDArray[np.float64]) -> float | None:
    measured = values[values > -1]
    return float(np.mean(measured)) if measured.size else None


def _unique(names: Sequence[tuple[int, str]]) -> list[str]:
    times = Counter(name for _, name in names)
    return [name if times[name] == 1 else f"{name} ({number})" for number, name in names]


def _write(
    output_dir: Path, metrics: Mapping[str, Any], results: Sequence[Mapping[str, Any]], tables: Mapping[str, CocoTables]
) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(metrics, output_dir / "metrics.json")
    write_json(results, output_dir / "detections.json")
    for iou_type, table in tables.items():
        # All areas, and as many detections as count.
        precision = table.precision[:, :, :, 0, -1]
        plot_precision_recall(precision, output_dir / f"precision_recall_{iou_type}.png", title=iou_type)
        plot_classes(precision, table.class_names, output_dir / f"precision_recall_{iou_type}_classes.png", title=iou_type)
