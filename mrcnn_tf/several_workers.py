"""The processes of a run on several machines.

All of them make the same calls in the same order, as the collective operations beneath need it. Nothing but the training step and
these calls goes from one to another, so the machines need no folder in common.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from mrcnn_tf.cluster import Cluster, ClusterError
from mrcnn_tf.rendezvous import difference
from mrcnn_tf.workers import ALONE, Workers

_PACKED = np.int64
_REPORTED = re.compile(r"Error reported from /job:worker/(?:replica:0/)?task:(\d+): (.+)")
_SILENT = re.compile(r"stopped sending heartbeats\):?\s*((?:/job:worker/replica:0/task:\d+\s*)+)")
_PEER = re.compile(r"remote target /job:worker/replica:0/task:(\d+)")
_AGAIN = "The run cannot go on without it; start the same command with --resume on every machine"


class SeveralWorkers(Workers):
    """One of several processes, under `MultiWorkerMirroredStrategy`."""

    def __init__(self, strategy: tf.distribute.MultiWorkerMirroredStrategy) -> None:
        resolver = strategy.cluster_resolver
        self.cluster = Cluster(tuple(resolver.cluster_spec().job_tasks("worker")), resolver.task_id)
        self.index, self.count = self.cluster.index, len(self.cluster.workers)
        self._strategy = strategy
        # Traced once: each collective operation made eagerly would be another one, and remembered for ever.
        self._sum = tf.function(lambda values: strategy.reduce("SUM", values, axis=None), autograph=False)
        self._gather = tf.function(
            lambda values: strategy.gather(values, axis=0), [tf.TensorSpec([None], _PACKED)], autograph=False
        )

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set in any process."""
        with self.naming_the_lost():
            total = self._sum(tf.constant(flags, tf.float32)).numpy()
        return tuple(bool(value > 0) for value in total)

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all processes, in their order."""
        text = zlib.compress(json.dumps(value).encode())
        size = np.dtype(_PACKED).itemsize
        packed = np.frombuffer(text + bytes(-len(text) % size), _PACKED)
        with self.naming_the_lost():
            sizes = self._gather(tf.constant([len(packed)], _PACKED)).numpy()
            everything = self._gather(tf.constant(packed)).numpy()
        parts = np.split(everything, np.cumsum(sizes)[:-1])
        return [json.loads(zlib.decompressobj().decompress(part.tobytes())) for part in parts]

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """See that JSON values by names are the same in all processes.

        Raises:
            ClusterError: they are not; names worker and value.
        """
        first, *others = self.gather(dict(facts))
        problem = next(filter(None, (difference(self.cluster, first, n, found) for n, found in enumerate(others, 1))), "")
        if problem:
            raise ClusterError(problem)

    def take_over(self, model: keras.Model) -> None:
        """Give all processes the chief's weights and optimizer."""
        with self.naming_the_lost():
            for variable in (*model.weights, *model.optimizer.variables):
                value = keras.ops.convert_to_numpy(variable)
                # Float64 holds whole numbers exactly up to 2^53, and every GPU library adds it.
                exact = value if np.issubdtype(value.dtype, np.floating) else value.astype(np.float64)
                total = self._strategy.reduce("SUM", tf.constant(exact if self.is_chief else np.zeros_like(exact)), axis=None)
                variable.assign(total.numpy().astype(value.dtype))

    def dataset(self, batches: Any, start: int) -> Any:
        """This process's share of the batches, one element for each of its replicas at a time."""
        own = batches.endless(start, shard=(self.index, self.count))
        replicas = self._strategy.num_replicas_in_sync // self.count
        if replicas > 1:
            size = own.element_spec["images"].shape[0]
            own = own.rebatch(size // replicas, drop_remainder=True)
        # Where the end is not known, TensorFlow would ask all workers before each step whether they have more.
        own = own.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        # Not `experimental_distribute_dataset`, which would deal this share out once more.
        return self._strategy.distribute_datasets_from_function(lambda _: own)

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """Tell the others of an error that ends this process; they end, too."""
        try:
            with self.naming_the_lost():
                yield
            # So that nobody leaves while the chief writes.
            self.any(False)
        except ClusterError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            message = f"{type(error).__name__}: {error}".replace("\n", " ")
            context.context().report_error_to_cluster(tf.errors.ABORTED, message)
            raise

    @contextmanager
    def naming_the_lost(self) -> Iterator[None]:
        """Turn TensorFlow's error about another process into one that names it.

        Raises:
            ClusterError: another process has ended with an error, or is gone.
        """
        try:
            yield
        except tf.errors.OpError as error:
            message = what_ended(str(error), self.cluster)
            if message is None:
                raise
            raise ClusterError(message) from error


def workers_of(strategy: tf.distribute.Strategy) -> Workers:
    """The processes that a strategy trains on."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and strategy.extended._in_multi_worker_mode():
        return SeveralWorkers(strategy)
    return ALONE


def what_ended(text: str, cluster: Cluster) -> str | None:
    """What TensorFlow's error says of another process.

    Args:
        text: of the error.
        cluster: of this process.

    Returns:
        A message that names the process and what happened to it; None where the error is of another kind.
    """
    silent = _SILENT.search(text)
    if silent:
        lost = [cluster.name(int(number)) for number in re.findall(r"task:(\d+)", silent.group(1))]
        return f"{', '.join(lost)} gives no sign of life: killed, or its machine is gone. {_AGAIN}"
    reported = _REPORTED.search(text)
    if reported:
        return f"{cluster.name(int(reported.group(1)))} has ended: {reported.group(2).strip()}"
    peer = _PEER.search(text)
    if peer:
        return f"the connection to {cluster.name(int(peer.group(1)))} is lost: killed, or its machine is gone. {_AGAIN}"
    if "Collective ops is aborted" in text or "CoordinationService" in text:
        return f"another worker, or the network between, has failed: {text.strip().splitlines()[-1]}. {_AGAIN}"
    return None
