"""The demonstration: drawn shapes, a small model, a report. Everything it needs is in the package."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mrcnn_tf.config import Config, load_config
from mrcnn_tf.data.shapes import write_shapes
from mrcnn_tf.evaluate import evaluate
from mrcnn_tf.files import write_json
from mrcnn_tf.modeling.mask_rcnn import load_model
from mrcnn_tf.predict import Predictor, predict_files
from mrcnn_tf.report import write_report
from mrcnn_tf.train import TrainingRun, train

TRAIN_IMAGES, HELD_OUT_IMAGES, PICTURES = 2000, 200, 24
IMAGE_SIZE = (160, 160)
_TRAIN_SEED, _HELD_OUT_SEED = 1, 2


def run_demo(output: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Draw shapes, train `shapes_effnet_lite0`, evaluate on held-out shapes, predict and write `report.html`.

    `output` is made anew; it gets `data/`, `run/`, `images/` (held-out pictures), `predictions/`, `model.keras`, `metrics.json`
    and `report.html`.

    Args:
        output: the folder; an earlier demonstration there is replaced.
        overrides: of the configuration.

    Returns:
        The metrics, with `seconds`, the time spent in training steps.

    Raises:
        ValueError: the folder holds something else than an earlier demonstration.
    """
    output = Path(output)
    _clear(output)
    data = output / "data"
    write_shapes(data, num_images=TRAIN_IMAGES, seed=_TRAIN_SEED, image_size=IMAGE_SIZE, split="train", progress=True)
    write_shapes(data, num_images=HELD_OUT_IMAGES, seed=_HELD_OUT_SEED, image_size=IMAGE_SIZE, split="val", progress=True)
    config = load_config("shapes_effnet_lite0", [f"data.root={data}", *overrides])
    began = time.monotonic()
    run = train(config, output / "run")
    # What is measured is the file a user gets, not the model in memory.
    shutil.copyfile(output / "run" / "last.keras", output / "model.keras")
    predictor = Predictor(load_model(output / "model.keras"))
    metrics = evaluate(predictor, data / "images", data / "instances_val.json", output / "evaluation")
    metrics = {**metrics, "seconds": round(run.seconds, 1), "steps": run.steps}
    write_json(metrics, output / "metrics.json")
    pictures = _copy_pictures(data / "images", output / "images")
    predictions = predict_files(predictor, pictures, output / "predictions", score_threshold=0.5)
    _write_report(output, config, run, metrics, predictions["drawings"], time.monotonic() - began)
    return metrics


def _clear(output: Path) -> None:
    if output.exists() and any(output.iterdir()):
        if not (output / "run").is_dir():
            raise ValueError(f"{output} is not empty and holds no earlier demonstration; choose another --output")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)


def _copy_pictures(source: Path, target: Path) -> list[Path]:
    target.mkdir()
    return [Path(shutil.copy(path, target)) for path in sorted(source.glob("val_*.png"))[:PICTURES]]


def _write_report(
    output: Path, config: Config, run: TrainingRun, metrics: dict[str, Any], drawings: list[Path], seconds: float
) -> None:
    with (output / "run" / "metrics.csv").open(encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    facts = {
        "Data": f"{TRAIN_IMAGES} training and {HELD_OUT_IMAGES} held-out pictures, {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]} pixels",
        "Model": f"{config.model.backbone.name}, pyramid of width {config.model.fpn.width}",
        "Time": f"{seconds:.0f} s from the first step to the last prediction",
        "Training": f"{run.steps} steps of {config.train.batch_size} pictures, {run.seconds:.0f} s in steps",
    }
    write_report(
        output / "report.html",
        title="Mask R-CNN on drawn shapes",
        history=history,
        metrics=metrics,
        pictures=[(path.name, path) for path in drawings],
        facts=facts,
    )
