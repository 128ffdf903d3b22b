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
    FiniteLosses,
    LearningRateLog,
    MetricsCsv,
    ProgressBar,
    StopConditions,
    save_model,
)
from mrcnn_tf.config import Config, ConfigError, TrainConfig
from mrcnn_tf.data.coco import DataError
from mrcnn_tf.data.pipeline import CocoBatches, training_batches
from mrcnn_tf.evaluate import evaluate
from mrcnn_tf.files import replacing
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.optimizers import build_optimizer, num_steps
from mrcnn_tf.predict import Predictor
from mrcnn_tf.resume import CHECKPOINT, CONFIG, METRICS, Interrupted, RunState, check_same, restore, terminable
from mrcnn_tf.weights import complete


@dataclass(frozen=True)
class TrainingRun:
    """What a run leaves behind.

    Attributes:
        model: as it was after the last step.
        output: the run's folder: `config.yaml`, `metrics.csv`, `last.keras`, `best.keras`, `tensorboard/`.
        steps: made.
        seconds: spent in steps, without evaluation and saving.
        interrupted: by SIGTERM, before its last step; `last.keras` is where it goes on.
    """

    model: MaskRCNN
    output: Path
    steps: int
    seconds: float
    interrupted: bool = False


def train(config: Config, output: str | Path, *, progress: bool = True, resume: bool = False) -> TrainingRun:
    """Train as a configuration says. SIGTERM saves `last.keras` and ends the run in order.

    Args:
        config: categories may be missing; they are then read from the training annotations.
        output: folder of the run, made if it is not there.
        progress: show a progress bar.
        resume: go on from `last.keras` in the folder, if it is there.

    Returns:
        The run.

    Raises:
        ConfigError: the configuration lacks something, the folder already holds a run, or it holds one of another configuration.
        DataError: the data cannot be used; the message names the record.
        NonFiniteLossError: a loss is NaN or infinite; names the step and its images.
    """
    output = Path(output)
    _claim(output, resume)
    config = config if config.model.categories else config.with_categories()
    config = config.model_copy(update={"model": complete(config.model)})
    batches = training_batches(config)
    if config.model.mask_head.enabled and "gt_masks" not in batches.epoch().element_spec:
        print(
            "note: the training data has boxes but no masks: training Faster R-CNN (model.mask_head.enabled=false)",
            file=sys.stderr,
        )
        config = _without_masks(config)
    if resume:
        check_same(config, output)
    with replacing(output / CONFIG) as temporary:
        temporary.write_text(config.to_yaml(), encoding="utf-8")
    model = build_model(config)
    state = restore(model, output) if resume else RunState()
    total = num_steps(config.train)
    stop = StopConditions(total, config.train.max_minutes, steps=state.steps, seconds=state.seconds)
    bar = ProgressBar(total, state.steps) if progress else None
    callbacks = [FiniteLosses(output, batches.file_names, state.steps), *_callbacks(config, model, output, stop, bar, state)]
    try:
        with _data_errors(), terminable():
            _fit(model, batches, total, config.train.epoch_steps, state.steps, callbacks)
    except Interrupted:
        save_model(model, output / CHECKPOINT)
        return TrainingRun(model, output, stop.steps, stop.seconds, interrupted=True)
    finally:
        if bar:
            bar.close()
    return TrainingRun(model, output, stop.steps, stop.seconds)


def _fit(
    model: MaskRCNN,
    batches: CocoBatches,
    total: int,
    epoch_steps: int | None,
    done: int,
    callbacks: list[keras.callbacks.Callback],
) -> None:
    """Steps `done` to `total`; a run resumed within an epoch counts its epochs from there."""
    if done >= total:
        return
    length = min(epoch_steps or batches.num_per_epoch, total)
    first = done // length
    epochs = first + math.ceil((total - done) / length)
    model.fit(
        batches.endless(done),
        initial_epoch=first,
        epochs=epochs,
        steps_per_epoch=length,
        callbacks=callbacks,
        verbose=0,
        shuffle=False,
    )


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
    config: Config, model: MaskRCNN, output: Path, stop: StopConditions, bar: ProgressBar | None, state: RunState
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
        MetricsCsv(output / METRICS, columns, state.rows),
        keras.callbacks.TensorBoard(str(output / "tensorboard"), write_graph=False),
        Checkpoints(output, monitor, state.best(monitor)),
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


def _claim(output: Path, resume: bool) -> None:
    if not resume and (output / METRICS).exists():
        raise ConfigError(f"{output} already holds a run; go on with it with --resume, or choose another --output")
    output.mkdir(parents=True, exist_ok=True)
