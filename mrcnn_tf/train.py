"""A training run from a configuration: `mrcnn-tf train` and its pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import tensorflow as tf

from mrcnn_tf.callbacks import (
    Checkpoints,
    Checks,
    CocoEvaluation,
    EarlyStopping,
    FiniteLosses,
    LearningRateLog,
    MetricsCsv,
    ProgressBar,
    StopConditions,
    save_checkpoint,
)
from mrcnn_tf.config import Config, ConfigError, StageConfig, TrainConfig
from mrcnn_tf.data.pipeline import CocoBatches
from mrcnn_tf.evaluate import evaluate
from mrcnn_tf.files import replacing
from mrcnn_tf.modeling.freezing import freeze
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.optimizers import averaged_weights, build_optimizer
from mrcnn_tf.predict import Predictor
from mrcnn_tf.resume import CONFIG, METRICS, Interrupted, RunState, Termination, check_same, restore
from mrcnn_tf.run_data import data_errors, open_data
from mrcnn_tf.run_plan import RunCallbacks, plan_run
from mrcnn_tf.schedules import num_steps
from mrcnn_tf.splits import Split, write_skipped
from mrcnn_tf.tensorboard import TensorBoardLog, validation_pictures


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


def train(
    config: Config,
    output: str | Path,
    *,
    progress: bool = True,
    resume: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> TrainingRun:
    """Train as a configuration says. SIGTERM saves `last.keras` and ends the run in order.

    Args:
        config: categories may be missing; they are then read from the training annotations.
        output: folder of the run, made if it is not there.
        progress: show a progress bar.
        resume: go on from `last.keras` in the folder, if it is there.
        callbacks: of your own. They come after those of the run, so that the logs of an epoch have the AP.

    Returns:
        The run.

    Raises:
        ConfigError: the configuration lacks something, the folder already holds a run, or it holds one of another configuration.
        DataError: the data cannot be used; the message names the record.
        NonFiniteLossError: a loss is NaN or infinite; names the step and its images.
    """
    output = Path(output)
    _claim(output, resume)
    with data_errors(config.data.skip_bad):
        data = open_data(config, output, resume=resume, progress=progress)
    config, batches = data.config, data.batches
    if resume:
        check_same(config, output)
    with replacing(output / CONFIG) as temporary:
        temporary.write_text(config.to_yaml(), encoding="utf-8")
    if config.data.skip_bad:
        write_skipped(data.skipped, output)
    model = build_model(config)
    state = restore(model, output) if resume else RunState()
    total = num_steps(config.train)
    stop = StopConditions(total, config.train.max_minutes, steps=state.steps, seconds=state.seconds)
    bar = ProgressBar(total, state.steps) if progress else None
    figures = state.measured(_monitor(config))
    early = EarlyStopping(_monitor(config), config.train.early_stopping_patience or math.inf, figures)
    termination = Termination()
    own = [
        FiniteLosses(output, batches.file_names, state.steps),
        *_callbacks(config, model, output, stop, bar, state, data.validation, termination),
        early,
    ]
    try:
        with data_errors(config.data.skip_bad), termination.listening():
            if not early.is_over:
                _fit(model, batches, config, state.steps, [*own, *callbacks, Checks(termination.check)])
    except Interrupted:
        save_checkpoint(model, output)
        return TrainingRun(model, output, stop.steps, stop.seconds, interrupted=True)
    finally:
        if bar:
            bar.close()
    return TrainingRun(model, output, stop.steps, stop.seconds)


def _fit(model: MaskRCNN, batches: CocoBatches, config: Config, done: int, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """All steps from number `done` on."""
    total, stages = num_steps(config.train), config.train.stages
    length = config.train.epoch_steps or batches.num_per_epoch
    around = RunCallbacks(callbacks, model)
    for stretch in plan_run(total, length, [stage.start for stage in stages], done):
        if stages:
            _enter(stages[stretch.stage], model)
        model.fit(
            batches.endless(stretch.start),
            initial_epoch=stretch.first_epoch,
            epochs=stretch.first_epoch + stretch.num_epochs,
            steps_per_epoch=stretch.epoch_steps,
            callbacks=around,
            verbose=0,
            shuffle=False,
        )
        if model.stop_training:
            break
    around.finish()


def _enter(stage: StageConfig, model: MaskRCNN) -> None:
    least = model.config.backbone.frozen_stages
    freeze(model, frozen_stages=least if stage.frozen_stages is None else stage.frozen_stages, parts=stage.freeze)


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
            model.compile(
                build_optimizer(config.train),
                jit_compile=config.train.xla,
                seed=config.train.seed,
                steps_per_execution=config.train.steps_per_execution,
                gradient_accumulation_steps=config.train.gradient_accumulation_steps,
            )
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
    parts = config.gradient_accumulation_steps
    if config.batch_size % (replicas * parts):
        times = f" times gradient_accumulation_steps={parts}" if parts > 1 else ""
        raise ConfigError(f"train.batch_size must be a multiple of the {replicas} replicas{times}, got {config.batch_size}")
    return strategy


def _callbacks(
    config: Config,
    model: MaskRCNN,
    output: Path,
    stop: StopConditions,
    bar: ProgressBar | None,
    state: RunState,
    validation: Split | None,
    termination: Termination,
) -> list[keras.callbacks.Callback]:
    kinds = ("bbox", "segm") if config.model.mask_head.enabled else ("bbox",)
    figures = [f"val_{kind}_{figure}" for kind in kinds for figure in ("AP", "AP50", "AP75")] if validation else []
    columns = ["epoch", "step", "train_seconds", "loss", *model.loss_weights, *model.observed, "learning_rate", *figures]
    callbacks: list[keras.callbacks.Callback] = [LearningRateLog(), stop]
    pictures = None
    if validation:
        predictor = termination.before(Predictor(model))
        measure = _averaged(partial(evaluate, predictor, validation.images, validation.content, progress=False), model)
        pictures = validation_pictures(predictor, validation.images, validation.content, config.train.tensorboard_images)
        callbacks.append(CocoEvaluation(measure, every=config.train.eval_every, last_step=lambda: model.stop_training))
    # After the evaluation, whose figures it prints.
    callbacks += [bar] if bar else []
    monitor = _monitor(config)
    return [
        *callbacks,
        MetricsCsv(output / METRICS, columns, state.rows),
        TensorBoardLog(output / "tensorboard", config.to_yaml(), steps=state.steps, pictures=pictures),
        Checkpoints(output, monitor, state.measured(monitor)),
    ]


def _averaged(measure: Callable[[], dict], model: MaskRCNN) -> Callable[[], dict]:
    def measure_averaged() -> dict:
        with averaged_weights(model):
            return measure()

    return measure_averaged


def _monitor(config: Config) -> str:
    """The figure that the best checkpoint is chosen by."""
    return "val_segm_AP" if config.model.mask_head.enabled else "val_bbox_AP"


def _claim(output: Path, resume: bool) -> None:
    if not resume and (output / METRICS).exists():
        raise ConfigError(f"{output} already holds a run; go on with it with --resume, or choose another --output")
    output.mkdir(parents=True, exist_ok=True)
