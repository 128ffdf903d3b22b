"""A run as calls of `fit`: epochs of one length, trained alike, and the callbacks around all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from mrcnn_tf.config import ConfigError


@dataclass(frozen=True)
class Stretch:
    """Epochs that one call of `fit` makes.

    Attributes:
        start: number of the first step.
        first_epoch: number of the first epoch.
        num_epochs: of them.
        epoch_steps: steps of each.
        stage: which of `train.stages` this is part of; 0 where there are none.
    """

    start: int
    first_epoch: int
    num_epochs: int
    epoch_steps: int
    stage: int


def plan_run(total: int, epoch_steps: int, stage_starts: Sequence[int] = (), done: int = 0) -> tuple[Stretch, ...]:
    """Divide a run.

    An epoch ends after each `epoch_steps` steps, before a stage begins, and with the run, whether or not the run was interrupted
    in between.

    Args:
        total: steps of the run.
        epoch_steps: steps of an epoch.
        stage_starts: first steps of the stages, ascending.
        done: steps already made.

    Returns:
        What is left, in order; neighbouring epochs of equal length and stage together.

    Raises:
        ConfigError: a stage begins after the run's end.
    """
    late = [start for start in stage_starts if start >= total]
    if late:
        raise ConfigError(f"train.stages: a stage starts at step {late[0]}, but the run has {total} steps")
    ends = sorted({*range(epoch_steps, total, epoch_steps), *(start for start in stage_starts if start), total})
    stretches: list[Stretch] = []
    for epoch, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
        if end <= done:
            continue
        begin = max(begin, done)
        stage = max(0, sum(start <= begin for start in stage_starts) - 1)
        last = stretches[-1] if stretches else None
        if last is not None and (last.epoch_steps, last.stage) == (end - begin, stage):
            stretches[-1] = Stretch(last.start, last.first_epoch, last.num_epochs + 1, last.epoch_steps, stage)
        else:
            stretches.append(Stretch(begin, epoch, 1, end - begin, stage))
    return tuple(stretches)


class RunCallbacks(keras.callbacks.CallbackList):
    """Callbacks that see several calls of `fit` as one training."""

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], model: keras.Model) -> None:
        super().__init__(list(callbacks), add_history=True, model=model)
        self._begun = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Tell them, the first time."""
        if not self._begun:
            self._begun = True
            super().on_train_begin(logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Nothing yet; see `finish`."""

    def finish(self) -> None:
        """Tell them that the training has ended, if it had begun."""
        if self._begun:
            super().on_train_end()
