"""Run anything that turns a picture into `Detections` over a data set, measure what it found, and write it down.

What is measured is in `mrcnn_tf.metrics`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from mrcnn_tf.class_tables import write_class_page, write_class_rows
from mrcnn_tf.data.images import ImageFolder, as_folder, load_image
from mrcnn_tf.detections import Detections, Detector
from mrcnn_tf.files import write_json
from mrcnn_tf.metrics.backends import Backend, check_backend
from mrcnn_tf.metrics.coco_tables import CocoTables, coco_tables
from mrcnn_tf.metrics.errors import error_breakdown
from mrcnn_tf.metrics.ground_truth import EvaluationError, IouType, read_ground_truth, with_crowd_masks
from mrcnn_tf.metrics.overlaps import ShapeType
from mrcnn_tf.metrics.voc import voc_metrics
from mrcnn_tf.plots import plot_classes, plot_errors, plot_precision_recall
from mrcnn_tf.workers import ALONE, Workers

__all__ = ["CocoTables", "EvaluationError", "coco_metrics", "coco_tables", "evaluate", "read_ground_truth"]

NUM_CLASS_PLOTS = 100
"""Classes with a curve in the plot of classes, those with the most objects; the page and the table have all."""


def evaluate(
    detector: Detector,
    images_dir: str | ImageFolder,
    annotations: str | Path | Mapping[str, Any],
    output_dir: str | Path | None = None,
    *,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    progress: bool = True,
    backend: Backend = "pycocotools",
    boundary: bool = False,
    voc: bool = False,
    errors: bool = False,
    workers: Workers = ALONE,
) -> dict[str, Any]:
    """Run a detector over a data set and measure it.

    `output_dir` gets `metrics.json`, `detections.json` (COCO results), plots of precision over recall, and the figures of each
    class as `classes.csv` and `classes.html`. Masks are left out, and stderr says why, where the ground truth or the detector
    has none.

    Args:
        detector: any callable from a uint8 RGB picture [h, w, 3] to `Detections`.
        images_dir: the folder that the annotations' `file_name`s start from; or what is read like one.
        annotations: COCO JSON with the images and their ground truth, as a file or as its content.
        output_dir: made if it is not there; None writes nothing.
        score_threshold: detections with a lower score are left out.
        max_detections: at most so many detections of an image count, the best first.
        progress: show a progress bar on stderr.
        backend: which program computes COCO's figures.
        boundary: measure boundary AP, too, where there are masks.
        voc: measure PASCAL VOC's AP, too.
        errors: find what kinds of errors cost how much, too.
        workers: that share the pictures; each gets the figures of all.

    Returns:
        `{"bbox": {...}, "segm": {...}, ...}` as in docs/contracts.md; without "segm" where there are no masks.

    Raises:
        EvaluationError: the detector's category ids are not those of the file, a picture has another size than annotated, or
            the backend cannot do this.
        ImageError: a picture is missing or broken.
        ModuleNotFoundError: the backend is not installed.
    """
    check_backend(backend, boundary=boundary)
    truth = with_crowd_masks(read_ground_truth(annotations))
    share = {**truth, "images": workers.share(truth["images"])}
    found = workers.gather(_detect_all(detector, share, as_folder(images_dir), score_threshold, max_detections, progress))
    results, has_masks = [result for part, _ in found for result in part], all(masks for _, masks in found)
    shapes = _shapes(truth, has_masks)
    compared: list[IouType] = [*shapes, "boundary"] if boundary and "segm" in shapes else [*shapes]
    tables = {kind: coco_tables(truth, results, kind, max_detections=max_detections, backend=backend) for kind in compared}
    metrics: dict[str, Any] = {kind: table.metrics() for kind, table in tables.items()}
    metrics["classes"] = {kind: table.classes() for kind, table in tables.items()}
    if voc:
        metrics["voc"] = {kind: voc_metrics(truth, results, kind) for kind in shapes}
    if errors:
        metrics["errors"] = {kind: error_breakdown(truth, results, kind) for kind in shapes}
    if output_dir is not None:
        _write(Path(output_dir), metrics, results, tables)
    return metrics


def coco_metrics(
    annotations: str | Path | Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    *,
    max_detections: int = 100,
    backend: Backend = "pycocotools",
) -> dict[str, Any]:
    """The figures of COCO results.

    Args:
        annotations: COCO JSON, as a file or as its content.
        results: `{"image_id", "category_id", "score"}` with `bbox` [x, y, w, h] (for bbox) or `segmentation` RLE (for segm and
            boundary).
        iou_type: what is compared.
        max_detections: at most so many results of an image and category count, the best first.
        backend: which program computes them.

    Returns:
        One section of `metrics.json` (see docs/contracts.md): figures in 0..1, None where nothing was there to measure.

    Raises:
        EvaluationError: the file is no COCO ground truth, or a result names an image that is not in it.
    """
    truth = with_crowd_masks(read_ground_truth(annotations))
    return coco_tables(truth, results, iou_type, max_detections=max_detections, backend=backend).metrics()


def _detect_all(
    detector: Detector, truth: Mapping[str, Any], folder: ImageFolder, score_threshold: float, max_detections: int, progress: bool
) -> tuple[list[dict[str, Any]], bool]:
    results: list[dict[str, Any]] = []
    has_masks = True
    with Progress(console=Console(file=sys.stderr), disable=not progress) as bar:
        for image in bar.track(truth["images"], description="evaluating"):
            found = detector(load_image(folder / image["file_name"]))
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


def _shapes(truth: Mapping[str, Any], has_masks: bool) -> list[ShapeType]:
    """What can be compared; stderr says why masks cannot."""
    without = sum(not record.get("segmentation") for record in truth["annotations"])
    if has_masks and not without:
        return ["bbox", "segm"]
    missing = f"{without} of {len(truth['annotations'])} annotations have no segmentation"
    print(f"note: segm is left out: {missing if without else 'the detector gives no masks'}", file=sys.stderr)
    return ["bbox"]


def _write(
    output_dir: Path, metrics: Mapping[str, Any], results: Sequence[Mapping[str, Any]], tables: Mapping[IouType, CocoTables]
) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(metrics, output_dir / "metrics.json")
    write_json(results, output_dir / "detections.json")
    write_class_rows(metrics["classes"], output_dir / "classes.csv")
    write_class_page(metrics, output_dir / "classes.html", title=f"Figures of each class: {output_dir.resolve().name}")
    for iou_type, table in tables.items():
        # All areas, and as many detections as count.
        precision = table.precision[:, :, :, 0, -1]
        plot_precision_recall(precision, output_dir / f"precision_recall_{iou_type}.png", title=iou_type)
        shown = table.most_frequent(NUM_CLASS_PLOTS)
        names = [table.class_names[number] for number in shown]
        plot_classes(precision[:, :, shown], names, output_dir / f"precision_recall_{iou_type}_classes.png", title=iou_type)
    if "errors" in metrics:
        plot_errors(metrics["errors"], output_dir / "errors.png")
