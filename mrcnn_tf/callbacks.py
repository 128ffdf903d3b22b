"""What happens around the steps of a run: progress, metrics.csv, COCO AP, checkpoints, a time limit."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mrcnn_tf.files import replacing
from mrcnn_tf.modeling.loss_scale import steps_made
from mrcnn_tf.optimizers import averaged_weights, averages_of

_PLAIN_SECONDS = 15.0


class LearningRateLog(keras.callbacks.Callback):
    """Puts the rate of the step just made into the logs, for the callbacks after it."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Note the rate: after the step the optimizer tells that of the next one."""
        self.rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Add `learning_rate`."""
        if logs is not None:
            logs["learning_rate"] = self.rate

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Add `learning_rate`."""
        self.on_train_batch_end(epoch, logs)


class StopConditions(keras.callbacks.Callback):
    """Ends the run after a number of steps, or of minutes spent in steps (evaluation and saving do not count)."""

    def __init__(self, num_steps: int, max_minutes: float | None = None, *, steps: int = 0, seconds: float = 0.0) -> None:
        """Set the bounds; `steps` and `seconds` are those that a resumed run has behind it."""
        super().__init__()
        self.num_steps = num_steps
        self.max_seconds = math.inf if max_minutes is None else 60 * max_minutes
        self.steps = steps
        self.seconds = seconds
        self._began = 0.0

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Count."""
        self.steps = _steps_of(self.model)
        self.seconds += time.monotonic() - self._began
        if self.steps >= self.num_steps or self.seconds >= self.max_seconds:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Add `step` and `train_seconds` to the epoch's logs."""
        if logs is not None:
            logs["step"] = self.steps
            logs["train_seconds"] = round(self.seconds, 2)


class ProgressBar(keras.callbacks.Callback):
    """A bar with every loss and the rate on a terminal; a line now and then elsewhere."""

    def __init__(self, num_steps: int, steps: int = 0) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.steps = steps
        self._printed = 0.0
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=Console(file=sys.stderr),
        )

    @property
    def _live(self) -> bool:
        return self._bar.console.is_terminal

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Show the bar."""
        self._task = self._bar.add_task("train", total=self.num_steps, completed=self.steps, losses="")
        if self._live:
            self._bar.start()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Show the losses."""
        self.steps = _steps_of(self.model)
        text = describe_losses(logs or {})
        self._bar.update(self._task, completed=self.steps, losses=text)
        if not self._live and time.monotonic() - self._printed > _PLAIN_SECONDS:
            self._printed = time.monotonic()
            print(f"step {self.steps}/{self.num_steps}  {text}", file=sys.stderr, flush=True)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Print what was evaluated."""
        found = {name: value for name, value in (logs or {}).items() if name.startswith("val_")}
        if found:
            text = "  ".join(f"{name[4:]} {value:.4f}" for name, value in found.items())
            self._bar.console.print(f"step {self.steps}: {text}", highlight=False, soft_wrap=True)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Take the bar down."""
        self.close()

    def close(self) -> None:
        """Take the bar down; may be called again."""
        if self._live:
            self._bar.stop()


class CocoEvaluation(keras.callbacks.Callback):
    """COCO AP on the validation set every few epochs and after the last step; adds `val_bbox_AP`, ... to the logs.

    A figure that is None (nothing was there to measure) is left out: TensorBoard takes numbers only.
    """

    def __init__(self, measure: Callable[[], dict], *, every: int, last_step: Callable[[], bool]) -> None:
        super().__init__()
        self.measure = measure
        self.every = every
        self.last_step = last_step

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Evaluate when it is time."""
        if logs is None or not self.every or not ((epoch + 1) % self.every == 0 or self.last_step()):
            return
        found = self.measure()
        for kind, figures in ((kind, found[kind]) for kind in ("bbox", "segm") if kind in found):
            measured = {figure: figures[figure] for figure in ("AP", "AP50", "AP75") if figures[figure] is not None}
            logs.update({f"val_{kind}_{figure}": value for figure, value in measured.items()})


class MetricsCsv(keras.callbacks.Callback):
    """One row an epoch in `metrics.csv`; a figure that was not measured leaves its cell empty."""

    def __init__(self, path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]] = ()) -> None:
        """Name file and columns; `rows` are those of a resumed run."""
        super().__init__()
        self.path = path
        self.columns = list(columns)
        self.rows = list(rows)

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Write the header, and the rows that are there already."""
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows([row.get(column, "") for column in self.columns] for row in self.rows)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Append the row."""
        row = {"epoch": epoch, **(logs or {})}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([_cell(row.get(column)) for column in self.columns])


class Checkpoints(keras.callbacks.Callback):
    """`last.keras` after every epoch, `best.keras` when the watched figure is the best so far."""

    def __init__(self, folder: Path, monitor: str, figures: Sequence[float] = ()) -> None:
        """Name folder and figure; `figures` are its values of a resumed run so far."""
        super().__init__()
        self.folder = folder
        self.monitor = monitor
        self.best = max(figures, default=-math.inf)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Save. The last one comes last: a run killed between the two makes this epoch, and its best, again."""
        figure = (logs or {}).get(self.monitor)
        if figure is not None and figure > self.best:
            self.best = figure
            with averaged_weights(self.model):
                save_model(self.model, self.folder / "best.keras")
        save_checkpoint(self.model, self.folder)


class EarlyStopping(keras.callbacks.Callback):
    """Ends the run when a figure has had no new best for a number of evaluations."""

    def __init__(self, monitor: str, patience: float, figures: Sequence[float] = ()) -> None:
        """Name figure and number of evaluations (inf: never); `figures` are its values of a resumed run so far."""
        super().__init__()
        self.monitor = monitor
        self.patience = patience
        self.figures = [_as_written(figure) for figure in figures]

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        since_best = len(self.figures) - 1 - int(np.argmax(self.figures)) if self.figures else 0
        return since_best >= self.patience

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Look at the figure, where it was measured."""
        figure = (logs or {}).get(self.monitor)
        if figure is None:
            return
        self.figures.append(_as_written(figure))
        if self.is_over:
            print(f"early stopping: {self.monitor} has had no new best in {self.patience} evaluations", file=sys.stderr)
            self.model.stop_training = True


class Agreement(keras.callbacks.Callback):
    """Ends the run in all processes when one of them wants to end it; comes last. One that went on alone would wait without end.

    The function that is called asks the others: of the flags it is given, it gives back which are set in any process, and it may
    raise to end the run.
    """

    def __init__(self, agree: Callable[..., Sequence[bool]]) -> None:
        super().__init__()
        self.agree = agree

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Ask whether something has come up since the last step."""
        self.agree()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Ask."""
        (self.model.stop_training,) = self.agree(self.model.stop_training)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Ask."""
        (self.model.stop_training,) = self.agree(self.model.stop_training)


class NonFiniteLossError(ValueError):
    """A loss has become NaN or infinite; the message says which, at which step, and on which images."""


class FiniteLosses(keras.callbacks.Callback):
    """Stops the run at the first loss that is NaN or infinite, before anything is saved."""

    def __init__(self, folder: Path, file_names: Callable[[int], Sequence[str]], steps: int = 0) -> None:
        """Prepare.

        Args:
            folder: of the run, for the message.
            file_names: the images of the batch of a step.
            steps: that a resumed run has behind it.
        """
        super().__init__()
        self.folder = folder
        self.file_names = file_names
        self.steps = steps

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Look at every loss."""
        before, self.steps = self.steps, _steps_of(self.model)
        broken = [name for name, value in (logs or {}).items() if "loss" in name and not math.isfinite(float(value))]
        if broken:
            last = self.folder / "last.keras"
            kept = f"{last} is from before it" if last.is_file() else "nothing was saved before it"
            made = range(before, self.steps)
            which = f"step {self.steps}" if len(made) == 1 else f"steps {before + 1} to {self.steps}"
            names = [name for step in made for name in self.file_names(step)]
            raise NonFiniteLossError(
                f"{which}: {', '.join(broken)} not finite; the images: {', '.join(names)}. {kept}. A lower train.learning_rate, "
                "a longer train.warmup_steps or train.clip_norm may help"
            )


def save_model(model: keras.Model, path: Path) -> None:
    """Save a `.keras` file so that an interruption leaves the old file as it was.

    Raises:
        OSError: it cannot be written, as when the disk is full.
    """
    try:
        with replacing(path) as temporary:
            model.save(temporary)
    except (OSError, RuntimeError) as error:  # h5py raises both when a write fails
        kept = "; the file of before is still there" if path.is_file() else ""
        raise OSError(f"{path} could not be written: {error}{kept}") from error


def save_checkpoint(model: keras.Model, folder: Path) -> None:
    """Write `last.keras`, where the training goes on, and before it `averaged.keras`, where the optimizer averages the weights.

    Raises:
        OSError: as `save_model`.
    """
    if averages_of(model.optimizer):
        with averaged_weights(model):
            save_model(model, folder / "averaged.keras")
    save_model(model, folder / "last.keras")


def describe_losses(logs: dict) -> str:
    """Losses and rate of a step on one line."""
    losses = "  ".join(f"{name.removesuffix('_loss')} {float(value):.3f}" for name, value in logs.items() if "loss" in name)
    return f"{losses}  lr {logs.get('learning_rate', 0.0):.2g}"


def _steps_of(model: keras.Model) -> int:
    return int(keras.ops.convert_to_numpy(steps_made(model.optimizer)))


def _as_written(figure: float) -> float:
    """As `metrics.csv` has it, so that a resumed run compares the same numbers."""
    return float(_cell(figure))


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
