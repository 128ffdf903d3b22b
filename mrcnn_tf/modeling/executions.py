"""Several steps in one call of TensorFlow, under any distribution strategy.

Keras 3.15.1 asks the data inside the loop whether there is more of it. Under a strategy that puts the sums over the replicas into
a branch, where they fail. Here the number of steps is known before the loop begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from mrcnn_tf.modeling.graph_options import sums_in_fixed_order

Logs = dict[str, tf.Tensor]


class Executions:
    """How many steps each execution makes: `length`, but no more than there are in an epoch."""

    def __init__(self, length: int, num_steps: int | None) -> None:
        """Begin an epoch.

        Args:
            length: steps of one execution.
            num_steps: of an epoch; None where nobody knows.
        """
        self.length = length
        self.num_steps = num_steps
        self._done = 0

    def next_count(self) -> int | None:
        """Steps of the next execution; None where it has to be found out. After the last of an epoch another epoch begins."""
        if self.num_steps is None:
            return None
        count = min(self.length, self.num_steps - self._done)
        self._done = (self._done + count) % self.num_steps
        return count


def num_batches(data: Any) -> int | None:
    """Batches of a `tf.data.Dataset`; None where they cannot be told, or there is no end of them."""
    if not isinstance(data, tf.data.Dataset):
        return None
    count = int(data.cardinality())
    return count if count >= 0 else None


def make_executions(
    step: Callable[[Any], Logs],
    strategy: tf.distribute.Strategy,
    executions: Callable[[], Executions],
    names: Mapping[str, Any],
    *,
    eager: bool,
) -> Callable[[Any], Logs]:
    """The function that Keras calls with an iterator, for each execution.

    Args:
        step: from the batch of a replica to logs, float32 scalars that are the same on all replicas.
        strategy: that the step is made under.
        executions: the current ones.
        names: of the logs.
        eager: do not compile.

    Returns:
        From an iterator to the logs of the last step made. It raises what the iterator raises where the data have run out.
    """

    def one_step(data: Any) -> Logs:
        outputs = strategy.run(step, args=(data,))
        return {name: strategy.experimental_local_results(value)[0] for name, value in outputs.items()}

    def one(iterator: Any) -> Logs:
        return one_step(next(iterator))

    def several(iterator: Any, count: tf.Tensor) -> Logs:
        start = {name: tf.zeros([]) for name in names}
        return tf.while_loop(lambda i, logs: i < count, lambda i, logs: (i + 1, one(iterator)), [tf.constant(0), start])[1]

    if not eager:
        one_step, one, several = (tf.function(function, autograph=False) for function in (one_step, one, several))

    def until_the_end(iterator: Any, length: int) -> Logs:
        logs = one(iterator)
        for _ in range(length - 1):
            try:
                logs = one(iterator)
            except (StopIteration, tf.errors.OutOfRangeError):
                break
        return logs

    @sums_in_fixed_order()
    def execute(iterator: Any) -> Logs:
        if not isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)):
            # `train_on_batch`
            return one_step(next(iterator))
        count = executions().next_count()
        if count is None:
            return until_the_end(iterator, executions().length)
        return one(iterator) if count == 1 else several(iterator, tf.constant(count))

    return execute
