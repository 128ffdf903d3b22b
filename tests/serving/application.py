"""The parts of the server put together."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tensorflow_serving.config import model_server_config_pb2

from tests.serving import grpc_service
from tests.serving.batch_queues import BatchThreads
from tests.serving.batching import BatchingSession
from tests.serving.batching_options import BatchingOptions, batching_options
from tests.serving.c_session import CSession
from tests.serving.configs import BatchingParameters, MonitoringConfig, read_text_proto
from tests.serving.metrics import Metrics
from tests.serving.records import RequestLog
from tests.serving.rest import RestServer
from tests.serving.servable import Servable
from tests.serving.status import Code, StatusError
from tests.serving.versions import Versions

PROMETHEUS_PATH = "/monitoring/prometheus/metrics"


@contextmanager
def run(flags: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """Serve what the flags say until the end of the block; the ports of gRPC and REST (0: none).

    Raises:
        StatusError: a configuration or a model cannot be loaded.
    """
    metrics = Metrics()
    options = _batching(flags)
    metrics_path = _metrics_path(flags.monitoring_config_file)
    with ExitStack() as stack:
        log = RequestLog(flags.request_log) if flags.request_log else None
        if log is not None:
            stack.callback(log.close)
        threads = None
        if options is not None:
            threads = BatchThreads(options.num_batch_threads, options.thread_pool_name)
            stack.callback(threads.close)

        def load(name: str, version: int, folder: Path) -> Servable:
            session = CSession(
                folder, intra_op=flags.tensorflow_intra_op_parallelism, inter_op=flags.tensorflow_inter_op_parallelism
            )
            batched = threads and options and BatchingSession(session, options, threads, metrics)
            servable = Servable(name, version, session, batched or session, metrics)
            try:
                servable.warm_up(folder)
            except BaseException:
                servable.close()
                raise
            return servable

        versions = Versions(_models(flags), load, any_labels=flags.allow_version_labels_for_unavailable_models)
        stack.callback(versions.close)
        versions.start(flags.file_system_poll_wait_seconds)
        if flags.model_config_file and flags.model_config_file_poll_wait_seconds > 0:
            stack.enter_context(_rereading(flags, versions))
        server, grpc_port = grpc_service.start(versions, metrics, log, flags.port)
        stack.callback(lambda: server.stop(grace=5).wait())
        rest_port = 0
        if flags.rest_api_port is not None:
            timeout = flags.rest_api_timeout_in_ms / 1000
            rest = RestServer(versions, metrics, log, flags.rest_api_port, metrics_path=metrics_path, timeout=timeout)
            stack.callback(rest.close)
            rest_port = rest.server_port
        yield grpc_port, rest_port


def _models(flags: argparse.Namespace) -> list[model_server_config_pb2.ModelConfig]:
    """The models to serve, from a file or from the flags for one."""
    if not flags.model_config_file:
        if not flags.model_base_path:
            raise StatusError(Code.INVALID_ARGUMENT, "Both model_base_path and model_config_file are empty!")
        return [model_server_config_pb2.ModelConfig(name=flags.model_name, base_path=flags.model_base_path)]
    content = read_text_proto(flags.model_config_file, model_server_config_pb2.ModelServerConfig)
    configs = list(content.model_config_list.config)
    names = [config.name for config in configs]
    for config in configs:
        if not config.name or not config.base_path or config.model_platform != "tensorflow":
            message = f'model {config.name!r} needs a name, a base_path and model_platform: "tensorflow"'
            raise StatusError(Code.INVALID_ARGUMENT, message)
        if names.count(config.name) > 1:
            raise StatusError(Code.INVALID_ARGUMENT, f"Illegal to list model {config.name} multiple times in config list")
    return configs


@contextmanager
def _rereading(flags: argparse.Namespace, versions: Versions) -> Iterator[None]:
    """Read the file of models again and again until the end of the block; what is wrong with it is told and changes nothing."""
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(flags.model_config_file_poll_wait_seconds):
            try:
                versions.reconfigure(_models(flags))
            except StatusError as error:
                print(f"reading {flags.model_config_file}: {error}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, name="models", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _batching(flags: argparse.Namespace) -> BatchingOptions | None:
    if not flags.enable_batching:
        if flags.batching_parameters_file:
            message = "batching_parameters_file is set without setting enable_batching to true."
            raise StatusError(Code.INVALID_ARGUMENT, message)
        return None
    if not flags.batching_parameters_file:
        return BatchingOptions(thread_pool_name="model_server_batch_threads")
    return batching_options(read_text_proto(flags.batching_parameters_file, BatchingParameters))


def _metrics_path(monitoring_file: str | None) -> str | None:
    if not monitoring_file:
        return None
    prometheus = read_text_proto(monitoring_file, MonitoringConfig).prometheus_config
    return (prometheus.path or PROMETHEUS_PATH) if prometheus.enable else None
