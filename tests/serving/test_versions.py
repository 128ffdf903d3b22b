"""Versions that come and go while the stand-in runs, and what keeps it from starting."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from tensorflow_serving.config import model_server_config_pb2

from tests.serving.model_server import serve
from tests.serving.policies import aspired_versions, version_folders
from tests.serving.toys import warmup_log, write_toy

POLL = "--file_system_poll_wait_seconds=0.1"
ROW = {"instances": [[1]]}


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Client:
    """Asks one server about the model `toy`."""

    def __init__(self, server):
        self._url = f"http://127.0.0.1:{server.rest_port}/v1/models/toy"
        self._session = requests.Session()

    def factor(self, path=""):
        answer = self._session.post(f"{self._url}{path}:predict", json=ROW, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()["predictions"][0]["y"][0]

    def count(self, steps):
        """Have the server count up to `steps`."""
        document = {"signature_name": "slow", "inputs": [steps]}
        answer = self._session.post(f"{self._url}:predict", json=document, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["outputs"][0]

    def states(self):
        content = requests.get(self._url, timeout=10).json()
        return {int(entry["version"]): entry["state"] for entry in content["model_version_status"]}

    def errors(self):
        content = requests.get(self._url, timeout=10).json()
        return {int(entry["version"]): entry["status"]["error_message"] for entry in content["model_version_status"]}


def steps_of(seconds, client):
    """How far the server counts in a time, or further."""
    steps, taken = 1000, 0.0
    while taken < seconds / 2:
        steps *= 2
        start = time.monotonic()
        client.count(steps)
        taken = time.monotonic() - start
    return 2 * steps


def put(toy_versions, folder, version):
    """Copy a version; it appears under its name only when it is whole."""
    shutil.copytree(toy_versions / str(version), folder / "incoming")
    (folder / "incoming").rename(folder / str(version))


def test_policies():
    config = model_server_config_pb2.ModelConfig
    latest = {"model_version_policy": {"latest": {"num_versions": 2}}}
    specific = {"model_version_policy": {"specific": {"versions": [1, 3, 9]}}}
    assert aspired_versions(config(), [1, 10, 9]) == [10]
    assert aspired_versions(config(**latest), [1, 10, 9]) == [10, 9]
    assert aspired_versions(config(**specific), [1, 2, 3]) == [3, 1]
    assert aspired_versions(config(model_version_policy={"all": {}}), [1, 2]) == [2, 1]
    assert aspired_versions(config(), []) == []


def test_only_numbers_are_versions(toy_versions, tmp_path):
    assert sorted(version_folders(toy_versions)) == [1, 2, 3]
    (tmp_path / "00000123").mkdir()
    assert version_folders(tmp_path) == {123: tmp_path / "00000123"}


def test_a_new_version_takes_over_without_a_failed_request(toy_versions, some_versions, tmp_path):
    folder = some_versions(1)
    answers, done = [], threading.Event()

    def keep_asking(client):
        while not done.is_set():
            answers.append(client.factor())

    with serve(folder, model_name="toy", log=tmp_path / "log.txt", flags=[POLL]) as server:
        client = Client(server)
        assert client.factor() == 1
        threads = [threading.Thread(target=keep_asking, args=(Client(server),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for version in (2, 3):
            put(toy_versions, folder, version)
            wait_for(lambda version=version: client.factor() == version)
        wait_for(lambda: client.states() == {1: "END", 2: "END", 3: "AVAILABLE"})
        # Without its folder, the newest is gone, and the one before it is back.
        shutil.rmtree(folder / "3")
        wait_for(lambda: client.factor() == 2)
        done.set()
        for thread in threads:
            thread.join()
        assert client.errors() == {1: "", 2: "", 3: ""}
    # A thread that had met a failed request would have ended with it; each new version is seen once and for good.
    changes = [answer for previous, answer in zip([0, *answers], answers, strict=False) if answer != previous]
    assert set(answers) == {1, 2, 3}
    assert len(answers) > 50
    assert changes[0] == 1
    assert changes[-1] == 2


def test_a_version_is_not_let_go_under_a_request(toy_versions, some_versions, tmp_path):
    folder = some_versions(1)
    with serve(folder, model_name="toy", log=tmp_path / "log.txt", flags=[POLL]) as server, ThreadPoolExecutor(1) as pool:
        client = Client(server)
        steps = steps_of(1.0, client)
        under_way = pool.submit(Client(server).count, steps)
        put(toy_versions, folder, 2)
        wait_for(lambda: client.states() == {1: "UNLOADING", 2: "AVAILABLE"})
        assert not under_way.done()
        assert client.factor() == 2
        assert under_way.result() == steps
        wait_for(lambda: client.states() == {1: "END", 2: "AVAILABLE"})


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(some_versions, tmp_path):
    folder = some_versions(1)
    with serve(folder, model_name="toy", log=tmp_path / "log.txt", flags=[POLL]) as server:
        client = Client(server)
        bad = warmup_log("positive", x=np.array([-1], np.float32))
        write_toy(tmp_path / "other" / "4", 4.0, [bad]).rename(folder / "4")
        wait_for(lambda: client.states().get(4) == "END")
        assert client.states() == {1: "AVAILABLE", 4: "END"}
        assert "only positive numbers" in client.errors()[4]
        assert client.factor() == 1
        # Nor does its base path's going away.
        folder.rename(tmp_path / "elsewhere")
        time.sleep(0.3)
        assert client.factor() == 1
    assert "Could not find base path" in (tmp_path / "log.txt").read_text()


def write_models(path, base, policy, name="toy"):
    entry = f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" {policy} }}'
    path.with_suffix(".new").write_text(f"model_config_list {{ {entry} }}")
    path.with_suffix(".new").rename(path)


def test_the_file_of_models_is_read_again(toy_versions, tmp_path):
    models = tmp_path / "models.config"
    log = tmp_path / "log.txt"
    write_models(models, toy_versions, "")
    flags = [f"--model_config_file={models}", "--model_config_file_poll_wait_seconds=0.1", POLL]
    with serve(log=log, flags=flags) as server:
        client = Client(server)
        assert client.factor() == 3
        write_models(models, toy_versions, "model_version_policy { specific { versions: 1 versions: 2 } }")
        wait_for(lambda: client.factor() == 2)
        wait_for(lambda: client.states() == {1: "AVAILABLE", 2: "AVAILABLE", 3: "END"})
        # A label may name what is available, and nothing else.
        labels = 'version_labels {{ key: "stable" value: {} }}'
        policy = "model_version_policy { all {} }"
        write_models(models, toy_versions, policy + labels.format(3))
        wait_for(lambda: "assign label to version 3 of model toy" in log.read_text())
        assert client.states()[3] == "END"
        write_models(models, toy_versions, policy + labels.format(1))
        wait_for(lambda: client.factor() == 3)
        assert client.factor("/labels/stable") == 1
        models.write_text("nonsense")
        wait_for(lambda: "Invalid protobuf file" in log.read_text())
        assert client.factor() == 3
        write_models(models, toy_versions, "", name="other")
        wait_for(lambda: set(client.states().values()) == {"END"})


def test_warm_up_that_fails_keeps_the_server_from_starting(tmp_path):
    write_toy(tmp_path / "model" / "1", 1.0, [warmup_log("nothing")])
    expected = r"model\(s\) did not become available.*toy version: 1.*Serving signature key \"nothing\" not found"
    with pytest.raises(RuntimeError, match=expected), serve(tmp_path / "model", model_name="toy", log=tmp_path / "log.txt"):
        pass


def test_warm_up_that_is_no_record_file(some_versions, tmp_path):
    folder = some_versions(3)
    (folder / "3" / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"no records" * 10)
    with pytest.raises(RuntimeError, match="TFRecord format"), serve(folder, model_name="toy", log=tmp_path / "log.txt"):
        pass


def test_no_base_path(tmp_path):
    with pytest.raises(RuntimeError, match="Could not find base path"), serve(tmp_path / "no", log=tmp_path / "log.txt"):
        pass


def test_starts_when_the_first_version_comes(toy_versions, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    timer = threading.Timer(1.0, put, (toy_versions, folder, 1))
    timer.start()
    with serve(folder, model_name="toy", log=tmp_path / "log.txt", flags=[POLL]) as server:
        assert Client(server).factor() == 1
    timer.join()


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        ('version_labels { key: "a" value: 3 }', [], "assign label to version 3 of model toy, which is not currently available"),
        ('model_platform: "caffe"', [], "model_platform"),
        ("nothing: 1", [], 'no field named "nothing"'),
        ("", ["--batching_parameters_file=x"], "batching_parameters_file is set without setting enable_batching"),
        ("", ["--enable_batching", "--batching_parameters_file=x"], "No such file"),
    ],
)
def test_configurations_that_keep_it_from_starting(toy_versions, tmp_path, config, flags, message):
    platform = "" if "platform" in config else 'model_platform: "tensorflow"'
    content = f'model_config_list {{ config {{ name: "toy" base_path: "{toy_versions}" {platform} {config} }} }}'
    (tmp_path / "models.config").write_text(content)
    flags = [f"--model_config_file={tmp_path / 'models.config'}", *flags]
    with pytest.raises(RuntimeError, match=message), serve(log=tmp_path / "log.txt", flags=flags):
        pass
