"""What TF_CONFIG, Slurm and Kubernetes tell of the machines, and what is wrong with it."""

import json
from types import SimpleNamespace

import pytest

from mrcnn_tf import cluster as cluster_module
from mrcnn_tf.cluster import Cluster, ClusterError, find_cluster, pods_of
from mrcnn_tf.config import ConfigError


def from_tf_config(value):
    return find_cluster("tf_config", 1, {"TF_CONFIG": value if isinstance(value, str) else json.dumps(value)})


def test_tf_config():
    found = from_tf_config({"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}})
    assert found == Cluster(("a:1", "b:2"), 1)
    assert found.name(0) == "worker 0 (a:1)"


def test_a_chief_comes_before_the_workers():
    value = {"cluster": {"worker": ["b:2", "c:3"], "chief": ["a:1"]}, "task": {"type": "worker", "index": 1}}
    assert from_tf_config(value) == Cluster(("a:1", "b:2", "c:3"), 2)
    assert from_tf_config({**value, "task": {"type": "chief", "index": 0}}).index == 0


@pytest.mark.parametrize("environ", [{}, {"TF_CONFIG": ""}, {"TF_CONFIG": "{}"}, {"TF_CONFIG": '{"cluster": {"worker": []}}'}])
def test_no_cluster(environ):
    assert find_cluster("tf_config", 1, environ) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", r"expected .*HOST:PORT.*; the whole: Invalid JSON"),
        ({"cluster": ["a:1"]}, r"cluster: Input should be"),
        ({"cluster": {"ps": ["a:1"]}}, r"cluster\.ps"),
        ({"cluster": {"worker": "a:1"}}, r"cluster\.worker: .*got 'a:1'"),
        ({"cluster": {"worker": ["a:1"]}}, "task is missing"),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}, r"task\.index: Field required"),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}, r"task\.type"),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}, r"task\.index is 1, but .* has 1 entries"),
        ({"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}, "expected HOST:PORT for each worker, got 'a'"),
        ({"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}, "two workers have the address a:1"),
    ],
)
def test_a_malformed_tf_config_is_told(value, message):
    with pytest.raises(ConfigError, match=rf"TF_CONFIG: .*{message}"):
        from_tf_config(value)


SLURM = {
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "1,2",
}


def test_slurm(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    found = find_cluster("slurm", 1)
    assert found == Cluster(("node07:8888", "node08:8888", "node08:8889"), 2)


def test_what_slurm_does_not_tell_is_named(monkeypatch):
    with pytest.raises(ConfigError, match=r"SLURM_PROCID, SLURM_STEP_NUM_TASKS.* not set; .*srun"):
        find_cluster("slurm", 1, {})
    for name, value in {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "one"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="tasks-per-node"):
        find_cluster("slurm", 1)


def pod(name, ip, phase="Running"):
    status = SimpleNamespace(phase=phase, pod_ip=ip, host_ip="10.0.0.1")
    return SimpleNamespace(metadata=SimpleNamespace(name=name), status=status)


class FakeKubernetes:
    """Tells of one pod more each time."""

    def __init__(self, *pods):
        self.pods, self.calls = pods, 0

    def list_pod_for_all_namespaces(self, label_selector):
        assert label_selector == "job-name=run"
        self.calls += 1
        return pods_of(SimpleNamespace(items=self.pods[: self.calls]))


@pytest.fixture
def kubernetes(monkeypatch):
    def use(*pods):
        monkeypatch.setattr(cluster_module, "_InThisNamespace", lambda: FakeKubernetes(*pods))
        monkeypatch.setattr(cluster_module, "_POLL_SECONDS", 0.01)

    return use


PODS = {"MRCNN_TF_PODS": "job-name=run", "MRCNN_TF_NUM_PODS": "2", "POD_IP": "10.1.0.2"}


def test_kubernetes_waits_for_all_pods(kubernetes):
    kubernetes(pod("run-0-old", "10.1.0.9", "Failed"), pod("run-1-x", "10.1.0.2"), pod("run-0-y", "10.1.0.3"))
    assert find_cluster("kubernetes", 5, PODS) == Cluster(("10.1.0.3:8888", "10.1.0.2:8888"), 1)


def test_pods_that_do_not_come_are_told(kubernetes):
    kubernetes(pod("run-0-y", "10.1.0.3"), pod("run-1-x", None, "Pending"))
    with pytest.raises(ClusterError, match=r'waited 0\.05 s .* for 2 pods of job-name=run.*"run-1-x" is not running'):
        find_cluster("kubernetes", 0.05, PODS)


@pytest.mark.parametrize(
    ("environ", "message"),
    [({}, "MRCNN_TF_PODS, MRCNN_TF_NUM_PODS, POD_IP is not set"), ({**PODS, "MRCNN_TF_NUM_PODS": "two"}, "got 'two'")],
)
def test_what_kubernetes_needs_is_named(environ, message):
    with pytest.raises(ConfigError, match=message):
        find_cluster("kubernetes", 1, environ)
