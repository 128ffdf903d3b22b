"""The distribution strategy of a run: one device, the GPUs of one machine, several machines, a TPU."""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.eager import context

import mrcnn_tf
from mrcnn_tf.cluster import Cluster, ClusterError, find_cluster
from mrcnn_tf.config import Config, ConfigError, TrainConfig
from mrcnn_tf.rendezvous import meet

HEARTBEAT_SECONDS = 30
"""Without a sign of life after which a worker counts as lost, where its connections have not told before."""
SHUTDOWN_SECONDS = 10
"""That a process which ends waits for the others."""


def build_strategy(config: Config) -> tf.distribute.Strategy:
    """The distribution strategy of a configuration.

    That of several machines must be made before TensorFlow has done anything else.

    Returns:
        The strategy; with several machines all of them are there, and mean the same run.

    Raises:
        ConfigError: the batch cannot be divided evenly among the replicas, or the environment does not name the machines rightly.
        ClusterError: the machines did not meet in time, or differ in their configuration.
    """
    strategy = _chosen(config)
    if strategy is not tf.distribute.get_strategy():
        _check_divisible(config.train, strategy)
    return strategy


def has_joined() -> bool:
    """Whether this process has joined, or begun to join, those of other machines."""
    return context.context().coordination_service is not None


def _chosen(config: Config) -> tf.distribute.Strategy:
    wanted = config.train.strategy
    if wanted in ("auto", "multi_worker"):
        cluster = find_cluster(config.train.cluster, config.train.cluster_timeout)
        if wanted == "multi_worker" and cluster is None:
            raise ConfigError(
                'train.strategy is multi_worker, but TF_CONFIG names no machines; set it to {"cluster": {"worker": ["HOST:PORT", '
                '...]}, "task": {"type": "worker", "index": 0}}, or set train.cluster'
            )
        if cluster is not None and (wanted == "multi_worker" or len(cluster.workers) > 1):
            return _several_machines(cluster, config)
    if wanted == "tpu":
        return _tpu()
    gpus = tf.config.list_logical_devices("GPU")
    if wanted == "none" or (wanted == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(gpus or tf.config.list_logical_devices("CPU"))


def _several_machines(cluster: Cluster, config: Config) -> tf.distribute.Strategy:
    if context.context()._context_handle is not None:
        raise ConfigError(
            "training on several machines must be set up before TensorFlow is used for anything else in the process"
        )
    meet(cluster, _facts(cluster, config), config.train.cluster_timeout)
    seconds = config.train.cluster_timeout
    # The strategy would do this itself, with a timeout of an hour.
    context.context().configure_coordination_service(
        "standalone",
        service_leader="/job:worker/task:0",
        cluster_register_timeout_in_ms=int(1000 * seconds),
        heartbeat_timeout_in_ms=1000 * HEARTBEAT_SECONDS,
        shutdown_barrier_timeout_in_ms=1000 * SHUTDOWN_SECONDS,
        coordinated_jobs=[coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=len(cluster.workers))],
    )
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.workers)}),
        task_type="worker",
        task_id=cluster.index,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=tf.distribute.experimental.CommunicationImplementation(config.train.communication.upper())
    )
    with _within(seconds):
        try:
            return tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
        except tf.errors.OpError as error:
            raise ClusterError(f"{cluster.name(cluster.index)} cannot join the others: {error.message}") from error


def _tpu() -> tf.distribute.Strategy:
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)


def _check_divisible(config: TrainConfig, strategy: tf.distribute.Strategy) -> None:
    replicas, parts = strategy.num_replicas_in_sync, config.gradient_accumulation_steps
    if config.batch_size % (replicas * parts):
        times = f" times gradient_accumulation_steps={parts}" if parts > 1 else ""
        raise ConfigError(f"train.batch_size must be a multiple of the {replicas} replicas{times}, got {config.batch_size}")


def _facts(cluster: Cluster, config: Config) -> dict[str, Any]:
    """What all workers must have in common, by names as they are in the configuration."""
    versions = {"the version of mrcnn_tf": mrcnn_tf.__version__, "the version of TensorFlow": tf.__version__}
    gpus = {"the number of GPUs": len(tf.config.list_physical_devices("GPU"))}
    return {"the list of workers": cluster.workers, **versions, **gpus, **_flat(config.model_dump(mode="json"))}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return flat


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """End the process if this takes longer: TensorFlow waits for workers without end, and lets no other Python run meanwhile."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        if threading.current_thread() is threading.main_thread():
            # TensorFlow has taken SIGTERM for itself, and would only note it.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
