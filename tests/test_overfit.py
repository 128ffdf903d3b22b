"""One real photo, learned by heart: the whole way from COCO JSON to AP works with real pictures, polygons and categories."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrcnn_tf.config import load_config
from mrcnn_tf.evaluate import evaluate
from mrcnn_tf.predict import Predictor
from mrcnn_tf.train import train

FOLDER = Path(__file__).parent / "data_files" / "one_photo"


@pytest.mark.slow
def test_one_photo_overfits_to_ap_above_nine_tenths(tmp_path):
    config = load_config(
        "coco_open_effnet_lite0",
        [
            f"data.root={FOLDER}",
            "data.train.annotations=instances.json",
            "data.val.annotations=instances.json",
            "data.min_sizes=[320]",
            "data.horizontal_flip=0",
            "train.batch_size=1",
            "train.reference_batch_size=1",
            "train.num_steps=700",
            "train.epoch_steps=700",
            "train.learning_rate=0.015",
            "train.eval_every=0",
        ],
    )
    run = train(config, tmp_path / "run", progress=False)
    metrics = evaluate(Predictor(run.model), FOLDER / "images", FOLDER / "instances.json", progress=False)
    assert metrics["segm"]["AP"] > 0.9
    assert metrics["bbox"]["AP"] > 0.9
