"""The configurations beside the versions, read back with the published protos where there are any."""

import subprocess

import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from mrcnn_tf.export.operator_files import FILES, write_operator_files
from tests.serving import configs
from tests.serving.batching_options import batching_options


def write(folder, **changes):
    values = {"name": "cells", "max_batch_size": 4, "fixed_sizes": False, **changes}
    return list(write_operator_files(folder, **values))


def test_models_config_names_the_folder_as_the_server_sees_it(tmp_path):
    write(tmp_path)
    content = text_format.Parse((tmp_path / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (model,) = content.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("cells", "/models/cells", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 1


def test_batching_config_cuts_large_requests_up(tmp_path):
    write(tmp_path, max_batch_size=6)
    content = configs.read_text_proto(tmp_path / "batching.config", configs.BatchingParameters)
    assert (content.max_execution_batch_size.value, content.max_batch_size.value) == (6, 64)
    assert content.enable_large_batch_splitting.value
    assert not content.allowed_batch_sizes
    assert not content.pad_variable_length_inputs


def test_batching_config_of_fixed_sizes(tmp_path):
    """TensorFlow Serving wants the last allowed size to be max_batch_size, so there is no splitting."""
    write(tmp_path, max_batch_size=6, fixed_sizes=True)
    content = configs.read_text_proto(tmp_path / "batching.config", configs.BatchingParameters)
    assert list(content.allowed_batch_sizes) == [1, 2, 4, 6]
    assert content.max_batch_size.value == 6
    assert not content.HasField("enable_large_batch_splitting")


@pytest.mark.parametrize("fixed_sizes", [False, True])
def test_batching_configs_are_accepted(fixed_sizes, tmp_path):
    write(tmp_path, fixed_sizes=fixed_sizes)
    batching_options(configs.read_text_proto(tmp_path / "batching.config", configs.BatchingParameters))


def test_monitoring_config(tmp_path):
    write(tmp_path)
    content = configs.read_text_proto(tmp_path / "monitoring.config", configs.MonitoringConfig)
    assert content.prometheus_config.enable
    assert content.prometheus_config.path == "/monitoring/prometheus/metrics"


def test_compose_file(tmp_path):
    write(tmp_path)
    content = yaml.safe_load((tmp_path / "compose.yaml").read_text())
    service = content["services"]["cells"]
    flags = dict(flag.removeprefix("--").split("=") for flag in service["command"])
    for key in ("model_config_file", "batching_parameters_file", "monitoring_config_file"):
        folder, file = flags[key].rsplit("/", 1)
        assert folder == "/models/cells"
        assert (tmp_path / file).is_file()
    assert service["volumes"] == [".:/models/cells:ro"]
    kind, shell, option, script = service["healthcheck"]["test"]
    assert (kind, shell, option) == ("CMD", "bash", "-c")
    # Correct bash, with the line ends of HTTP left to printf.
    assert subprocess.run([shell, "-n", option, script], check=False).returncode == 0
    assert r"HTTP/1.0\r\n" in script


def test_what_is_there_stays(tmp_path):
    assert write(tmp_path) == [(tmp_path / file, True) for file in FILES]
    (tmp_path / "batching.config").write_text("changed")
    (tmp_path / "compose.yaml").unlink()
    assert write(tmp_path, name="other") == [(tmp_path / file, file == "compose.yaml") for file in FILES]
    assert (tmp_path / "batching.config").read_text() == "changed"
    assert "/models/other" in (tmp_path / "compose.yaml").read_text()
