"""Which processes train together, as `TF_CONFIG`, Slurm or Kubernetes tell it to each of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ValidationError

from mrcnn_tf.config import ConfigError

ClusterKind: TypeAlias = Literal["tf_config", "slurm", "kubernetes"]
PORT = 8888
"""That workers listen on where only their machines are known."""

_EXPECTED = '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
_POLL_SECONDS = 2.0


class ClusterError(ConnectionError):
    """The processes of a run cannot go on together; the message says which of them is to blame, and for what."""


@dataclass(frozen=True)
class Cluster:
    """The processes of a run.

    Attributes:
        workers: "host:port" of each, the same list for all. The first is the chief, who alone writes.
        index: of this process.
    """

    workers: tuple[str, ...]
    index: int

    def name(self, index: int) -> str:
        """A worker, for messages."""
        return f"worker {index} ({self.workers[index]})"


def find_cluster(kind: ClusterKind, timeout: float, environ: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that this process belongs to.

    Args:
        kind: who tells: the variable `TF_CONFIG`; the variables of a Slurm step; or, in Kubernetes, the pods that match
            `MRCNN_TF_PODS` (a label selector), once there are `MRCNN_TF_NUM_PODS` of them, of which this one has the address
            `POD_IP`.
        timeout: seconds to wait for the pods.
        environ: where the variables are.

    Returns:
        The cluster; None where `TF_CONFIG` is not set or names none.

    Raises:
        ConfigError: a variable is missing or malformed.
        ClusterError: the pods have not come in time.
        ModuleNotFoundError: Kubernetes' client is not installed.
    """
    if kind == "tf_config":
        return _from_tf_config(environ.get("TF_CONFIG"))
    if kind == "slurm":
        return _from_slurm(environ)
    return _from_kubernetes(environ, timeout, _InThisNamespace)


class _Task(BaseModel):
    type: Literal["chief", "worker"]
    index: int


class _TfConfig(BaseModel):
    cluster: dict[Literal["chief", "worker"], tuple[str, ...]] = {}
    task: _Task | None = None


def _from_tf_config(text: str | None) -> Cluster | None:
    if not text:
        return None
    try:
        found = _TfConfig.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ConfigError(f"TF_CONFIG: expected {_EXPECTED}; {where}: {first['msg']}, got {first['input']!r}") from error
    jobs = {name: found.cluster.get(name, ()) for name in ("chief", "worker")}
    workers = (*jobs["chief"], *jobs["worker"])
    if not workers:
        return None
    if found.task is None:
        raise ConfigError(f"TF_CONFIG: expected {_EXPECTED}; task is missing, so it is not known which worker this is")
    if not 0 <= found.task.index < len(jobs[found.task.type]):
        raise ConfigError(
            f"TF_CONFIG: task.index is {found.task.index}, but cluster.{found.task.type} has {len(jobs[found.task.type])} entries"
        )
    return _checked(workers, found.task.index + (len(jobs["chief"]) if found.task.type == "worker" else 0), "TF_CONFIG")


def _checked(workers: tuple[str, ...], index: int, origin: str) -> Cluster:
    for address in workers:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"{origin}: expected HOST:PORT for each worker, got {address!r}")
    twice = next((address for address in workers if workers.count(address) > 1), None)
    if twice is not None:
        raise ConfigError(f"{origin}: two workers have the address {twice}")
    return Cluster(workers, index)


def _from_slurm(environ: Mapping[str, str]) -> Cluster:
    import tensorflow as tf

    needed = [f"SLURM_{name}" for name in ("PROCID", "STEP_NUM_TASKS", "STEP_NODELIST", "STEP_TASKS_PER_NODE")]
    missing = [name for name in needed if name not in environ]
    if missing:
        raise ConfigError(f"train.cluster is slurm, but {', '.join(missing)} is not set; start each task with `srun`")
    # TensorFlow's resolver deals out GPUs, too, asks nvidia-smi for their number, and fails where there are none. Slurm has dealt
    # them out already; told that each task has one, the resolver tells addresses.
    count = int(environ["SLURM_STEP_NUM_TASKS"])
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=PORT, gpus_per_node=count, gpus_per_task=1, auto_set_gpu=False
        )
        workers = tuple(resolver.cluster_spec().job_tasks("worker"))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"the SLURM variables of this step cannot be used: {error}") from error
    return Cluster(workers, resolver.task_id)


def _from_kubernetes(environ: Mapping[str, str], timeout: float, client: Callable[[], Any]) -> Cluster:
    import tensorflow as tf

    missing = [name for name in ("MRCNN_TF_PODS", "MRCNN_TF_NUM_PODS", "POD_IP") if not environ.get(name)]
    if missing:
        raise ConfigError(f"train.cluster is kubernetes, but {', '.join(missing)} is not set; see docs/several_machines.md")
    selector, wanted, own = environ["MRCNN_TF_PODS"], environ["MRCNN_TF_NUM_PODS"], f"{environ['POD_IP']}:{PORT}"
    if not wanted.isdigit():
        raise ConfigError(f"MRCNN_TF_NUM_PODS must be the number of pods, got {wanted!r}")
    resolver = tf.distribute.cluster_resolver.KubernetesClusterResolver(
        {"worker": [selector]}, tf_server_port=PORT, override_client=client()
    )
    deadline = time.monotonic() + timeout
    while True:
        try:
            workers = tuple(resolver.cluster_spec().as_dict().get("worker", ()))
            seen = f"{len(workers)} are running"
        except RuntimeError as error:
            workers, seen = (), str(error)
        if len(workers) == int(wanted) and own in workers:
            return Cluster(workers, workers.index(own))
        if time.monotonic() > deadline:
            raise ClusterError(
                f"waited {timeout:g} s (train.cluster_timeout) for {wanted} pods of {selector}, {own} (this one) being of them: "
                f"{seen}"
            )
        time.sleep(_POLL_SECONDS)


class _InThisNamespace:
    """What TensorFlow's resolver asks of Kubernetes' client, for pods as they are.

    TensorFlow 2.20 looks for a kubeconfig even within a pod, asks for the pods of all namespaces, which takes rights that a job
    should not have, takes the address of a pod's machine for its own, and does not get over pods of an earlier attempt.
    """

    def __init__(self) -> None:
        try:
            from kubernetes import client, config
        except ModuleNotFoundError as error:
            message = "train.cluster=kubernetes needs Kubernetes' client; pip install 'mrcnn-tf[kubernetes]'"
            raise ModuleNotFoundError(message) from error
        config.load_incluster_config()
        self._client = client.CoreV1Api()
        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace", encoding="utf-8") as file:
            self._namespace = file.read().strip()

    def list_pod_for_all_namespaces(self, *, label_selector: str) -> SimpleNamespace:
        """The pods of this namespace that have not ended."""
        return pods_of(self._client.list_namespaced_pod(self._namespace, label_selector=label_selector))


def pods_of(listed: Any) -> SimpleNamespace:
    """Pods as TensorFlow's resolver reads them, without those that have ended; what it reads as `host_ip` is the pod's own."""
    alive = [pod for pod in listed.items if pod.status.phase not in ("Succeeded", "Failed")]
    items = [
        SimpleNamespace(metadata=pod.metadata, status=SimpleNamespace(phase=pod.status.phase, host_ip=pod.status.pod_ip))
        for pod in alive
    ]
    return SimpleNamespace(items=items)
