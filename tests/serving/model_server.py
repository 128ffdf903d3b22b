"""`python -m tests.serving.model_server`: the stand-in for `tensorflow_model_server`, with the names of its flags."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from tests.serving import libtensorflow

ROOT = Path(__file__).resolve().parents[2]


class Server(NamedTuple):
    """A running server: its ports on this machine (`rest_port` 0: it has no REST API) and its process."""

    grpc_port: int
    rest_port: int
    pid: int


@contextmanager
def serve(
    base_path: str | Path | None = None,
    *,
    model_name: str = "mask_rcnn",
    log: str | Path,
    flags: Sequence[str] = (),
    timeout: float = 120.0,
) -> Iterator[Server]:
    """Run the stand-in as a process of its own, on free ports, until the end of the block.

    Args:
        base_path: the folder with the versions of a model; None if `flags` has `--model_config_file=...`.
        model_name: the model's name, if `base_path` is given.
        log: where the server's messages go.
        flags: more flags, such as `--enable_batching` and `--batching_parameters_file=...`.
        timeout: seconds for loading and warming up.

    Raises:
        RuntimeError: it ended, or was not ready in time; with the end of its messages.
    """
    single = [] if base_path is None else [f"--model_name={model_name}", f"--model_base_path={base_path}"]
    command = [sys.executable, "-m", "tests.serving.model_server", *single, "--port=0", "--rest_api_port=0", *flags]
    with open(log, "w", encoding="utf-8") as messages:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=messages, text=True)
        assert process.stdout is not None
        try:
            timer = threading.Timer(timeout, process.kill)
            timer.start()
            try:
                line = process.stdout.readline()
            finally:
                timer.cancel()
            if not line:
                code = process.wait()
                reason = f"ended with status {code}" if code >= 0 else f"was not ready in {timeout} s (signal {-code})"
                raise RuntimeError(f"{' '.join(command)} {reason}:\n{Path(log).read_text(encoding='utf-8')[-4000:]}")
            ready = json.loads(line)
            yield Server(ready["grpc_port"], ready["rest_port"], process.pid)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()


def main(arguments: Sequence[str] | None = None, out: IO[str] = sys.stdout) -> int:
    """Serve until a SIGTERM or SIGINT; when ready, one line of JSON on `out` tells the ports."""
    flags = _parser().parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # After the flags are read and only in this process: see `use_protos_only`.
    libtensorflow.use_protos_only()
    from tests.serving.application import run
    from tests.serving.status import StatusError

    try:
        with run(flags) as (grpc_port, rest_port):
            print(json.dumps({"grpc_port": grpc_port, "rest_port": rest_port, "pid": os.getpid()}), file=out, flush=True)
            while not stop.is_set():
                stop.wait(60)
    except StatusError as error:
        print(f"Failed to start server. Error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.serving.model_server", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    boolean: dict[str, Any] = {"nargs": "?", "const": True, "default": False, "type": lambda text: text != "false"}
    add("--port", type=int, default=8500, help="of gRPC; 0: any that is free")
    add("--rest_api_port", type=int, help="of REST; 0: any that is free; not given: no REST")
    add("--rest_api_timeout_in_ms", type=int, default=30_000, help="for running the graph")
    add("--model_name", default="default")
    add("--model_base_path", help="folder with the versions of one model")
    add("--model_config_file", help="ModelServerConfig as a text proto, instead of name and path")
    add("--model_config_file_poll_wait_seconds", type=float, default=0.0, help="0: the file is read once")
    add("--allow_version_labels_for_unavailable_models", **boolean)
    add("--file_system_poll_wait_seconds", type=float, default=1.0, help="0: look for versions once")
    add("--enable_batching", **boolean)
    add("--batching_parameters_file", help="BatchingParameters as a text proto")
    add("--monitoring_config_file", help="MonitoringConfig as a text proto")
    add("--tensorflow_intra_op_parallelism", type=int, default=0)
    add("--tensorflow_inter_op_parallelism", type=int, default=0)
    add("--request_log", help="TFRecord of PredictionLog that every answered Predict request is appended to")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
