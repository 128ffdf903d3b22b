"""A training run from a configuration: `mrcnn-tf train` and its pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import tensorflow as tf

from mrcnn_tf.callbacks import (
    Agreement,
    Checkpoints,
    CocoEvaluation,
    EarlyStopping,
    FiniteLosses,
    LearningRateLog,
    MetricsCsv,
    ProgressBar,
    StopConditions,
    save_checkpoint,
)
from mrcnn_tf.config import Config, ConfigError, StageConfig
from mrcnn_tf.evaluate import evaluate
from mrcnn_tf.files import replacing
from mrcnn_tf.modeling.freezing import freeze
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.optimizers import averaged_weights, build_optimizer
from mrcnn_tf.predict import Predictor
from mrcnn_tf.resume import CONFIG, METRICS, Interrupted, RunState, Termination, check_same, restore
from mrcnn_tf.run_data import Batches, RunData, data_errors, open_data
from mrcnn_tf.run_plan import RunCallbacks, plan_run
from mrcnn_tf.schedules import num_steps
from mrcnn_tf.several_workers import workers_of
from mrcnn_tf.splits import Split, skipped_as_json, skipped_from_json, write_skipped
from mrcnn_tf.strategies import build_strategy
from mrcnn_tf.tensorboard import TensorBoardLog, validation_pictures
from mrcnn_tf.workers import Workers


@dataclass(frozen=True)
class TrainingRun:
    """What a run leaves behind.

    Attributes:
        model: as it was after the last step.
        output: the run's folder: `config.yaml`, `metrics.csv`, `last.keras`, `best.keras`, `tensorboard/`.
        steps: made.
        seconds: spent in steps, without evaluation and saving.
        interrupted: by SIGTERM, before its last step; `last.keras` is where it goes on.
        is_chief: whether this process has written the folder; of several machines one does.
    """

    model: MaskRCNN
    output: Path
    steps: int
    seconds: float
    interrupted: bool = False
    is_chief: bool = True


def train(
    config: Config,
    output: str | Path,
    *,
    progress: bool = True,
    resume: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> TrainingRun:
    """Train as a configuration says. SIGTERM saves `last.keras` and ends the run in order.

    On several machines each calls this alike; the first writes the folder, and only there something has to be kept of it.

    Args:
        config: categories may be missing; they are then read from the training annotations.
        output: folder of the run, made if it is not there.
        progress: show a progress bar.
        resume: go on from `last.keras` in the folder, if it is there.
        callbacks: of your own. They come after those of the run, so that the logs of an epoch have the AP. Of several machines
            only the first calls them.

    Returns:
        The run.

    Raises:
        ClusterError: another machine is not there, is lost, or has ended with an error; the message names it.
        ConfigError: the configuration lacks something, the folder already holds a run, or it holds one of another configuration.
        DataError: the data cannot be used; the message names the record.
        NonFiniteLossError: a loss is NaN or infinite; names the step and its images.
    """
    strategy = build_strategy(config)
    workers = workers_of(strategy)
    with workers.ending_together():
        return _train(
            config, Path(output), strategy, workers, progress=progress and workers.is_chief, resume=resume, callbacks=callbacks
        )


def _train(
    config: Config,
    output: Path,
    strategy: tf.distribute.Strategy,
    workers: Workers,
    *,
    progress: bool,
    resume: bool,
    callbacks: Sequence[keras.callbacks.Callback],
) -> TrainingRun:
    if workers.is_chief:
        _claim(output, resume)
    with data_errors(config.data.skip_bad):
        data = _open(config, output, workers, resume=resume, progress=progress)
    config, batches = data.config, data.batches
    if workers.is_chief:
        _write_configuration(data, output, resume=resume)
    model = build_model(config, strategy)
    state = _restored(model, output, workers) if resume else RunState()
    workers.take_over(model)
    total = num_steps(config.train)
    stop = StopConditions(total, config.train.max_minutes, steps=state.steps, seconds=state.seconds)
    bar = ProgressBar(total, state.steps) if progress else None
    figures = state.measured(_monitor(config))
    early = EarlyStopping(_monitor(config), config.train.early_stopping_patience or math.inf, figures)
    termination = Termination(workers)
    own = [
        FiniteLosses(output, lambda number: batches.file_names(number, workers.count), state.steps),
        *_callbacks(config, model, output, stop, bar, state, data.validation, termination, workers),
        early,
    ]
    all_callbacks = [*own, *(callbacks if workers.is_chief else ()), Agreement(termination.agree)]
    try:
        with data_errors(config.data.skip_bad), workers.naming_the_lost(), termination.listening():
            if not early.is_over:
                _fit(model, batches, config, state.steps, all_callbacks, workers)
    except Interrupted:
        if workers.is_chief:
            save_checkpoint(model, output)
        return TrainingRun(model, output, stop.steps, stop.seconds, interrupted=True, is_chief=workers.is_chief)
    finally:
        if bar:
            bar.close()
    return TrainingRun(model, output, stop.steps, stop.seconds, is_chief=workers.is_chief)


def _fit(
    model: MaskRCNN,
    batches: Batches,
    config: Config,
    done: int,
    callbacks: Sequence[keras.callbacks.Callback],
    workers: Workers,
) -> None:
    """All steps from number `done` on."""
    total, stages = num_steps(config.train), config.train.stages
    length = config.train.epoch_steps or batches.num_per_epoch
    around = RunCallbacks(callbacks, model)
    for stretch in plan_run(total, length, [stage.start for stage in stages], done):
        if stages:
            _enter(stages[stretch.stage], model)
        model.fit(
            workers.dataset(batches, stretch.start),
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


def build_model(config: Config, strategy: tf.distribute.Strategy | None = None) -> MaskRCNN:
    """A compiled model under the configuration's strategy and precision.

    Args:
        config: with categories.
        strategy: that `build_strategy` has made of it; None: make it.

    Returns:
        The model, ready for `fit`.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.train.precision)
    keras.utils.set_random_seed(config.train.seed)
    try:
        with (strategy or build_strategy(config)).scope():
            model = MaskRCNN(config)
            model.compile(
                build_optimizer(config.train),
                jit_compile=config.train.xla,
                seed=config.train.seed,
                steps_per_execution=config.train.steps_per_execution,
                gradient_accumulation_steps=config.train.gradient_accumulation_steps,
                recompute=config.train.recompute,
            )
    finally:
        keras.config.set_dtype_policy(before)
    return model


def _callbacks(
    config: Config,
    model: MaskRCNN,
    output: Path,
    stop: StopConditions,
    bar: ProgressBar | None,
    state: RunState,
    validation: Split | None,
    termination: Termination,
    workers: Workers,
) -> list[keras.callbacks.Callback]:
    kinds = ("bbox", "segm") if config.model.mask_head.enabled else ("bbox",)
    figures = [f"val_{kind}_{figure}" for kind in kinds for figure in ("AP", "AP50", "AP75")] if validation else []
    columns = ["epoch", "step", "train_seconds", "loss", *model.loss_weights, *model.observed, "learning_rate", *figures]
    callbacks: list[keras.callbacks.Callback] = [LearningRateLog(), stop]
    pictures = None
    if validation:
        predictor, number = Predictor(model), len(validation.content["images"])

        def measure() -> dict:
            detector = termination.before(predictor, number)
            with averaged_weights(model):
                return evaluate(detector, validation.images, validation.content, progress=False, workers=workers)

        pictures = validation_pictures(predictor, validation.images, validation.content, config.train.tensorboard_images)
        callbacks.append(CocoEvaluation(measure, every=config.train.eval_every, last_step=lambda: model.stop_training))
    if not workers.is_chief:
        return callbacks
    # After the evaluation, whose figures it prints.
    callbacks += [bar] if bar else []
    monitor = _monitor(config)
    return [
        *callbacks,
        MetricsCsv(output / METRICS, columns, state.rows),
        TensorBoardLog(output / "tensorboard", config.to_yaml(), steps=state.steps, pictures=pictures),
        Checkpoints(output, monitor, state.measured(monitor)),
    ]


def _monitor(config: Config) -> str:
    """The figure that the best checkpoint is chosen by."""
    return "val_segm_AP" if config.model.mask_head.enabled else "val_bbox_AP"


def _open(config: Config, output: Path, workers: Workers, *, resume: bool, progress: bool) -> RunData:
    """The data; where faulty records are left out, the chief alone reads all of it. All must have found the same."""
    if not config.data.skip_bad or workers.is_chief:
        data = open_data(config, output, resume=resume, progress=progress)
    if config.data.skip_bad:
        listed = workers.from_chief(skipped_as_json(data.skipped) if workers.is_chief else None)
        if not workers.is_chief:
            data = open_data(config, output, listed=skipped_from_json(listed))
    workers.require_same(
        {
            "the configuration with what the data adds to it": data.config.to_yaml(),
            "the number of batches of an epoch": data.batches.num_per_epoch,
            "the number of validation images": len(data.validation.content["images"]) if data.validation else 0,
        }
    )
    return data


def _write_configuration(data: RunData, output: Path, *, resume: bool) -> None:
    if resume:
        check_same(data.config, output)
    with replacing(output / CONFIG) as temporary:
        temporary.write_text(data.config.to_yaml(), encoding="utf-8")
    if data.config.data.skip_bad:
        write_skipped(data.skipped, output)


def _restored(model: MaskRCNN, output: Path, workers: Workers) -> RunState:
    """Where the run is; the chief alone reads its folder."""
    state = restore(model, output) if workers.is_chief else RunState()
    found = workers.from_chief(asdict(state))
    return RunState(found["steps"], found["seconds"], tuple(found["rows"]))


def _claim(output: Path, resume: bool) -> None:
    if not resume and (output / METRICS).exists():
        raise ConfigError(f"{output} already holds a run; go on with it with --resume, or choose another --output")
    output.mkdir(parents=True, exist_ok=True)
