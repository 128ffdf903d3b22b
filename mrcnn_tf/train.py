"""A training run from a configuration: `mrcnn-tf train` and its pieces."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from mrcnn_tf.callbacks import (
    Checkpoints,
    CocoEvaluation,
    LearningRateLog,
    MetricsCsv,
    ProgressBar,
    StopConditions,
)
from mrcnn_tf.config import Config, ConfigError, TrainConfig
from mrcnn_tf.data.coco import DataError
from mrcnn_tf.data.pipeline import training_dataset
from mrcnn_tf.evaluate import evaluate
from mrcnn_tf.files import replacing
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.optimizers import build_optimizer, num_steps
from mrcnn_tf.predict import Predictor
from mrcnn_tf.weights import complete


@dataclass(frozen=True)
class TrainingRun:
    """What a run leaves behind.

    Attributes:
        model: as it was after the last step.
        output: the run's folder: `config.yaml`, `metrics.csv`, `last.keras`, `best.keras`, `tensorboard/`.
        steps: made.
        seconds: spent in steps, without evaluation and saving.
    """

    model: MaskRCNN
    output: Path
    steps: int
    seconds: float


def train(config: Config, output: str | Path, *, progress: bool = True) -> TrainingRun:
    """Train as a configuration says.

    Args:
        config: categories may be missing; they are then read from the training annotations.
        output: folder of the run, made if it is not there.
        progress: show a progress bar.

    Returns:
        The run.

    Raises:
        ConfigError: the configuration lacks something, or the folder already holds a run.
        DataError: the data cannot be used; the message names the record.
    """
    output = Path(output)
    _claim(output)
    config = config if config.model.categories else config.with_categories()
    config = config.model_copy(update={"model": complete(config.model)})
    dataset = training_dataset(config)
    if config.model.mask_head.enabled and "gt_masks" not in dataset.element_spec:
        print(
            "note: the training data has boxes but no masks: training Faster R-CNN (model.mask_head.enabled=false)",
            file=sys.stderr,
        )
        config = _without_masks(config)
    with replacing(output / "config.yaml") as temporary:
        temporary.write_text(config.to_yaml(), encoding="utf-8")
    model = build_model(config)
    total = num_steps(config.train)
    epoch_steps = min(config.train.epoch_steps or len(dataset), total)
    stop = StopConditions(total, config.train.max_minutes)
    callbacks = _callbacks(config, model, output, stop, ProgressBar(total) if progress else None)
    epochs = math.ceil(total / epoch_steps)
    with _data_errors():
        model.fit(dataset.repeat(), epochs=epochs, steps_per_epoch=epoch_steps, callbacks=callbacks, verbose=0, shuffle=False)
    return TrainingRun(model, output, stop.steps, stop.seconds)


def build_model(config: Config) -> MaskRCNN:
    """A compiled model under the configuration's strategy and precision.

    Args:
        config: with categories.

    Returns:
        The model, ready for `fit`.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.train.precision)
    keras.utils.set_random_seed(config.train.seed)
    try:
        with build_strategy(config.train).scope():
            model = MaskRCNN(config)
            model.compile(build_optimizer(config.train), jit_compile=config.train.xla, seed=config.train.seed)
    finally:
        keras.config.set_dtype_policy(before)
    return model


def build_strategy(config: TrainConfig) -> tf.distribute.Strategy:
    """The distribution strategy of a configuration.

    Raises:
        ConfigError: the batch cannot be divided evenly among the replicas.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if config.strategy == "none" or (config.strategy == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    strategy = tf.distribute.MirroredStrategy(gpus or tf.config.list_logical_devices("CPU"))
    replicas = strategy.num_replicas_in_sync
    if config.batch_size % replicas:
        raise ConfigError(f"train.batch_size must be a multiple of the {replicas} replicas, got {config.batch_size}")
    return strategy


def _callbacks(
    config: Config, model: MaskRCNN, output: Path, stop: StopConditions, bar: ProgressBar | None
) -> list[keras.callbacks.Callback]:
    evaluates = config.train.eval_every > 0 and config.data.val.annotations is not None
    kinds = ("bbox", "segm") if config.model.mask_head.enabled else ("bbox",)
    figures = [f"val_{kind}_{figure}" for kind in kinds for figure in ("AP", "AP50", "AP75")] if evaluates else []
    columns = ["epoch", "step", "train_seconds", "loss", *model.loss_weights, "learning_rate", *figures]
    callbacks: list[keras.callbacks.Callback] = [LearningRateLog(), stop]
    if evaluates:
        measure = _measurement(config, model)
        callbacks.append(CocoEvaluation(measure, every=config.train.eval_every, last_step=lambda: model.stop_training))
    # After the evaluation, whose figures it prints.
    callbacks += [bar] if bar else []
    monitor = f"val_{kinds[-1]}_AP"
    return [
        *callbacks,
        MetricsCsv(output / "metrics.csv", columns),
        keras.callbacks.TensorBoard(str(output / "tensorboard"), write_graph=False),
        Checkpoints(output, monitor),
    ]


def _measurement(config: Config, model: MaskRCNN) -> Callable[[], dict]:
    images, annotations = config.data.path("val", "images"), config.data.path("val", "annotations")
    predictor = Predictor(model)
    return lambda: evaluate(predictor, images, annotations, progress=False)


def _without_masks(config: Config) -> Config:
    mask_head = config.model.mask_head.model_copy(update={"enabled": False})
    return config.model_copy(update={"model": config.model.model_copy(update={"mask_head": mask_head})})


@contextmanager
def _data_errors() -> Iterator[None]:
    """tf.data wraps what a map raises in its own error; give the user the message that names the record."""
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(r"DataError: (.+)", str(error))
        if found is None:
            raise
        raise DataError(found.group(1)) from error


def _claim(output: Path) -> None:
    if (output / "metrics.csv").exists():
        raise ConfigError(f"{output} already holds a run; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
