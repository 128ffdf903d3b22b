"""What a process knows of the others without them: shares of a list, and whom TensorFlow's errors are about."""

import pytest

from mrcnn_tf.cluster import Cluster
from mrcnn_tf.several_workers import what_ended
from mrcnn_tf.workers import ALONE, Workers

CLUSTER = Cluster(("a:1", "b:2", "c:3"), 0)
SILENT = """Graph execution error:

Detected at node CollectiveReduceV2 defined at (most recent call last):
Aborted by: Error reported from /job:worker/task:1: The following tasks are unhealthy (stopped sending heartbeats):
/job:worker/replica:0/task:1
/job:worker/replica:0/task:2
The tasks have crashed. Check the task logs for an earlier error.
"""
RESET = """Collective ops is aborted by: recvmsg:Connection reset by peer
Additional GRPC error information from remote target /job:worker/replica:0/task:2 while calling /tensorflow.WorkerService/RecvBuf:
"""
REPORTED = (
    "Collective ops is aborted by: Error reported from /job:worker/task:1: DataError: picture.png is broken\nThe error could"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SILENT, "worker 1 (b:2), worker 2 (c:3) gives no sign of life"),
        (RESET, "the connection to worker 2 (c:3) is lost"),
        (REPORTED, "worker 1 (b:2) has ended: DataError: picture.png is broken"),
        ("Collective ops is aborted by: something\nelse", "another worker, or the network between, has failed: else"),
    ],
)
def test_an_error_about_another_process_names_it(text, message):
    assert what_ended(text, CLUSTER).startswith(message)


def test_an_error_of_this_process_is_left_alone():
    assert what_ended("OOM when allocating tensor with shape[1,2]", CLUSTER) is None


@pytest.mark.parametrize(("count", "length"), [(1, 5), (2, 5), (3, 7), (4, 2), (3, 0)])
def test_shares_make_up_the_list(count, length):
    items, shares = list(range(length)), []
    for index in range(count):
        worker = Workers()
        worker.index, worker.count = index, count
        shares.append(worker.share(items))
    assert [item for share in shares for item in share] == items
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) == length // count


def test_one_process_alone():
    assert ALONE.is_chief
    assert ALONE.any(True, False) == (True, False)
    assert ALONE.gather({"a": 1}) == [{"a": 1}]
    assert ALONE.from_chief("x") == "x"
    with ALONE.ending_together(), ALONE.naming_the_lost():
        ALONE.require_same({"a": 1})
