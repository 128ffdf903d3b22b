"""The processes of a run meet before TensorFlow starts: are all there, and do all mean the same run?

TensorFlow waits without end for a worker that does not come, deaf to signals. So the workers greet the chief first, in plain JSON
lines on the port that TensorFlow will listen on afterwards.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from mrcnn_tf.cluster import Cluster, ClusterError

_POLL_SECONDS = 0.5
_READ_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
"""That a worker waits longer than the chief, so that it hears what the chief has waited for in vain."""
_LONGEST_LINE = 2**20


def meet(cluster: Cluster, facts: Mapping[str, Any], timeout: float) -> None:
    """Wait until all workers are there, and see that they agree.

    Args:
        cluster: of this process.
        facts: that must be the same for all workers: JSON values by names.
        timeout: seconds.

    Raises:
        ClusterError: a worker has not come in time, or its facts are others; names the worker, or the facts.
    """
    # As they come out of JSON, where a tuple is a list.
    common: dict[str, Any] = json.loads(json.dumps(facts))
    deadline = time.monotonic() + timeout
    (_receive if cluster.index == 0 else _greet)(cluster, common, timeout, deadline)


def difference(cluster: Cluster, facts: Mapping[str, Any], index: int, found: Mapping[str, Any]) -> str:
    """What a worker has that the chief has not, in words; empty where nothing.

    Args:
        cluster: of both.
        facts: of the chief, JSON values by names.
        index: of the worker.
        found: its own.
    """
    names = [name for name in facts if facts[name] != found.get(name)]
    if not names:
        return ""
    ours, theirs = ({name: values.get(name) for name in names[:5]} for values in (facts, found))
    return f"{cluster.name(index)} differs from the chief in {', '.join(names)}: it has {theirs}, the chief {ours}"


def _receive(cluster: Cluster, facts: dict[str, Any], timeout: float, deadline: float) -> None:
    """The chief: collect all greetings, then give each worker the same answer."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(cluster, deadline))
        came: dict[int, tuple[socket.socket, dict[str, Any]]] = {}
        while len(came) < len(cluster.workers) - 1:
            try:
                connection = stack.enter_context(_accept(server, deadline))
            except TimeoutError:
                missing = [cluster.name(index) for index in range(1, len(cluster.workers)) if index not in came]
                problem = f"waited {timeout:g} s (train.cluster_timeout), and these have not come: {', '.join(missing)}"
                break
            greeting = _read(connection, _READ_SECONDS) or {}
            index, found = greeting.get("worker"), greeting.get("facts")
            if isinstance(index, int) and 0 < index < len(cluster.workers) and isinstance(found, dict):
                # One that was started again takes the place of the one before.
                came[index] = (connection, found)
        else:
            problem = next(filter(None, (difference(cluster, facts, i, found) for i, (_, found) in sorted(came.items()))), "")
        for connection, _ in came.values():
            with contextlib.suppress(OSError):
                _write(connection, {"problem": problem})
    if problem:
        raise ClusterError(problem)


def _greet(cluster: Cluster, facts: dict[str, Any], timeout: float, deadline: float) -> None:
    host, _, port = cluster.workers[0].rpartition(":")
    reason: Any = "it does not answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=left) as connection:
                _write(connection, {"worker": cluster.index, "facts": facts})
                answer = _read(connection, left + _ANSWER_SECONDS)
        except OSError as error:
            answer, reason = None, error
        if answer is not None and "problem" in answer:
            if answer["problem"]:
                raise ClusterError(f"{cluster.name(0)}, the chief, says: {answer['problem']}")
            return
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
    raise ClusterError(
        f"{cluster.name(cluster.index)} waited {timeout:g} s (train.cluster_timeout) for the chief, {cluster.name(0)}: {reason}; "
        "is the same command running there, and may this machine reach its port?"
    )


def _listen(cluster: Cluster, deadline: float) -> socket.socket:
    """On the chief's port, which the process of before may hold for a moment."""
    port = int(cluster.workers[0].rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()
    while True:
        try:
            return socket.create_server(
                ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=len(cluster.workers)
            )
        except OSError as error:
            if time.monotonic() > deadline:
                raise ClusterError(f"{cluster.name(0)} cannot listen on its port: {error}") from error
            time.sleep(_POLL_SECONDS)


def _accept(server: socket.socket, deadline: float) -> socket.socket:
    server.settimeout(max(0.001, deadline - time.monotonic()))
    return server.accept()[0]


def _read(connection: socket.socket, seconds: float) -> dict[str, Any] | None:
    """A line; None for anything else, as from a stranger."""
    connection.settimeout(seconds)
    try:
        with connection.makefile("rb") as lines:
            found = json.loads(lines.readline(_LONGEST_LINE))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")
