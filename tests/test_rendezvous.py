"""Processes, here threads, that meet before TensorFlow starts."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mrcnn_tf.cluster import Cluster, ClusterError
from mrcnn_tf.rendezvous import meet


@pytest.fixture
def workers():
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    addresses = tuple(f"127.0.0.1:{server.getsockname()[1]}" for server in sockets)
    for server in sockets:
        server.close()
    return addresses


def outcomes(workers, facts, timeout=10, delays=(0, 0, 0)):
    """What each of the workers that have facts gets: "fine" or a message."""

    def one(index):
        time.sleep(delays[index])
        try:
            meet(Cluster(workers, index), facts[index], timeout)
        except ClusterError as error:
            return str(error)
        return "fine"

    with ThreadPoolExecutor() as threads:
        return list(threads.map(one, sorted(facts)))


def test_all_meet_in_any_order(workers):
    facts = {"train.batch_size": 4, "sizes": (1, 2)}
    assert outcomes(workers, dict.fromkeys(range(3), facts), delays=(0.7, 0, 0.3)) == ["fine"] * 3
    # And again at once: the port is free.
    assert outcomes(workers, dict.fromkeys(range(3), facts)) == ["fine"] * 3


def test_one_that_differs_is_named_to_all(workers):
    facts = {0: {"a": 1, "b": 2}, 1: {"a": 1, "b": 2}, 2: {"a": 1, "b": 3}}
    chief, first, second = outcomes(workers, facts)
    assert chief == f"worker 2 ({workers[2]}) differs from the chief in b: it has {{'b': 3}}, the chief {{'b': 2}}"
    assert first == second == f"worker 0 ({workers[0]}), the chief, says: {chief}"


def test_one_that_does_not_come_is_named_to_all_in_time(workers):
    began = time.monotonic()
    chief, first = outcomes(workers, {0: {}, 1: {}}, timeout=1)
    assert time.monotonic() - began < 4
    assert chief == f"waited 1 s (train.cluster_timeout), and these have not come: worker 2 ({workers[2]})"
    assert chief in first


def test_a_chief_that_does_not_come_is_named(workers):
    (message,) = outcomes(workers, {1: {}}, timeout=0.5)
    assert message.startswith(f"worker 1 ({workers[1]}) waited 0.5 s")
    assert f"the chief, worker 0 ({workers[0]})" in message
    assert "refused" in message


def test_a_stranger_does_no_harm(workers):
    host, port = workers[0].split(":")

    def knock():
        time.sleep(0.3)
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b'{"worker": 7}\n[]\n')

    stranger = threading.Thread(target=knock)
    stranger.start()
    assert outcomes(workers, {index: {"a": 1} for index in range(3)}, delays=(0, 0.6, 0.6)) == ["fine"] * 3
    stranger.join()


def test_a_port_in_use_is_told(workers):
    host, port = workers[0].split(":")
    with socket.create_server((host, int(port))):
        (message,) = outcomes(workers, {0: {}}, timeout=0.1)
    assert "worker 0" in message
    assert "cannot listen on its port" in message
