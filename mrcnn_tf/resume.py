"""Going on with a run that was interrupted, and stopping one in order.

A run's place is in its last checkpoint alone, a file that is replaced at once: the optimizer's count of steps tells which batch
comes next, and batches, scales, flips and samples follow from their numbers.
"""

from __future__ import annotations

import csv
import itertools
import signal
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.config import Config, ConfigError, load_config
from mrcnn_tf.detections import Detections, Detector
from mrcnn_tf.modeling.loss_scale import steps_made
from mrcnn_tf.workers import ALONE, Workers

CHECKPOINT, METRICS, CONFIG = "last.keras", "metrics.csv", "config.yaml"
MAY_DIFFER = ("train.strategy", "train.cluster", "train.cluster_timeout", "train.communication")
"""Where a run is computed, not what: these may be others when it goes on."""
TOGETHER_EVERY = 8
"""Pictures of an evaluation between two questions of several processes whether to stop."""


class Interrupted(BaseException):
    """SIGTERM has come. Like `KeyboardInterrupt` it passes through whatever catches errors."""


@dataclass(frozen=True)
class RunState:
    """Where a run is.

    Attributes:
        steps: made.
        seconds: spent in steps, up to the last row of `metrics.csv`.
        rows: of `metrics.csv`, up to the checkpoint's step.
    """

    steps: int = 0
    seconds: float = 0.0
    rows: tuple[dict[str, str], ...] = ()

    def measured(self, figure: str) -> list[float]:
        """The values of a column so far."""
        return [float(row[figure]) for row in self.rows if row.get(figure)]


def restore(model: keras.Model, output: Path) -> RunState:
    """Load the last checkpoint of a run, optimizer included, into a compiled model of the same configuration.

    Args:
        model: gets weights and optimizer state; left as it is where there is no checkpoint yet.
        output: folder of the run.

    Returns:
        Where the run is.

    Raises:
        ConfigError: the checkpoint does not fit or cannot be read.
    """
    path = output / CHECKPOINT
    if not path.is_file():
        return RunState()
    try:
        model.load_weights(path)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} cannot be resumed from: {error}") from error
    steps = int(keras.ops.convert_to_numpy(steps_made(model.optimizer)))
    rows = tuple(row for row in _rows(output / METRICS) if row.get("step") and int(row["step"]) <= steps)
    return RunState(steps, float(rows[-1]["train_seconds"]) if rows else 0.0, rows)


def check_same(config: Config, output: Path) -> None:
    """See that a run is resumed as it was begun.

    Raises:
        ConfigError: names the keys that differ from the run's own configuration.
    """
    path = output / CONFIG
    if not path.is_file():
        return
    found = _differences(load_config(path).model_dump(mode="json"), config.model_dump(mode="json"))
    differing = [name for name in found if name not in MAY_DIFFER]
    if differing:
        raise ConfigError(
            f"{path} differs from the configuration given in {', '.join(differing)}; resume with `mrcnn-tf train {path}`, or "
            "choose another --output"
        )


class Termination:
    """Heeds SIGTERM where it is safe to.

    The signal can come while TensorFlow is calling back into Python, and an exception from there would be lost or break it. So it
    is noted only, and `check` raises. Of several processes it is enough that one gets it.
    """

    def __init__(self, workers: Workers = ALONE) -> None:
        """Take the processes that train together."""
        self._workers = workers
        self._is_asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM for as long as this lasts. Signals reach the main thread only; elsewhere this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def check(self) -> None:
        """Go on, or raise `Interrupted` if SIGTERM has come; once, so that there is time to save. All processes call it alike."""
        self.agree()

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """`check`, and whether each flag is set in any process."""
        is_asked, *found = self._workers.any(self._is_asked, *flags)
        if is_asked:
            self._is_asked = False
            raise Interrupted
        return tuple(found)

    def before(self, detector: Detector, num_pictures: int) -> Detector:
        """A detector that checks before each picture; with several processes, that have to check together, before some.

        Args:
            detector: of one evaluation.
            num_pictures: of all processes together.
        """
        numbers, own = itertools.count(), num_pictures // self._workers.count
        every = 1 if self._workers.count == 1 else TOGETHER_EVERY

        def detect(image: NDArray[np.uint8]) -> Detections:
            number = next(numbers)
            # Some have one picture more than others.
            if number % every == 0 and number < own:
                self.check()
            return detector(image)

        return detect

    def _note(self, *_: Any) -> None:
        self._is_asked = True


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        # A row that was being written when the run was killed has fewer cells.
        return [row for row in csv.DictReader(file) if None not in row.values()]


def _differences(first: Any, second: Any, name: str = "") -> list[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [*first, *(key for key in second if key not in first)]
        return [found for key in keys for found in _differences(first.get(key), second.get(key), f"{name}.{key}".lstrip("."))]
    return [] if first == second else [name]
