"""The switch holds inside the block only, in this thread only."""

import threading

import pytest

from mrcnn_tf.ops.static_graph import in_static_graph, static_graph


def test_on_inside_and_off_outside():
    assert not in_static_graph()
    with static_graph():
        assert in_static_graph()
        with static_graph():
            assert in_static_graph()
        assert in_static_graph()
    assert not in_static_graph()


def test_off_again_after_an_error():
    with pytest.raises(KeyError), static_graph():
        raise KeyError
    assert not in_static_graph()


def test_other_threads_do_not_see_it():
    seen = []
    with static_graph():
        thread = threading.Thread(target=lambda: seen.append(in_static_graph()))
        thread.start()
        thread.join()
    assert seen == [False]
