"""The switch holds inside the block only, in this thread only."""

import threading

import pytest

from mrcnn_tf.ops.static_graph import in_static_graph, in_xla_on_cpu, static_graph, xla_on_cpu


def test_on_inside_and_off_outside():
    assert not in_static_graph()
    with static_graph():
        assert in_static_graph()
        with static_graph():
            assert in_static_graph()
        assert in_static_graph()
    assert not in_static_graph()


def test_a_graph_for_xla_on_cpus_is_a_static_one_but_not_the_reverse():
    with static_graph():
        assert not in_xla_on_cpu()
        with xla_on_cpu():
            assert in_xla_on_cpu()
            assert in_static_graph()
        assert not in_xla_on_cpu()
        assert in_static_graph()


def test_off_again_after_an_error():
    with pytest.raises(KeyError), xla_on_cpu():
        raise KeyError
    assert not in_static_graph()
    assert not in_xla_on_cpu()


def test_other_threads_do_not_see_it():
    seen = []
    with static_graph():
        thread = threading.Thread(target=lambda: seen.append(in_static_graph()))
        thread.start()
        thread.join()
    assert seen == [False]
