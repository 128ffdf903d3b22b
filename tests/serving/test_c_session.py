"""A SavedModel by the C API."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.serving.c_session import CSession
from tests.serving.status import Code, StatusError
from tests.serving.toys import TYPES_INPUTS, TYPES_OUTPUTS, assert_same

STATM = Path("/proc/self/statm")


@pytest.fixture(scope="module")
def session(toy_versions):
    with CSession(toy_versions / "2", intra_op=1, inter_op=2) as session:
        yield session


def test_runs_signatures_with_every_type(session):
    assert_same(session.run_signature("types", TYPES_INPUTS), TYPES_OUTPUTS)


def test_no_rows(session):
    nothing = session.run_signature("types", {name: value[:0] for name, value in TYPES_INPUTS.items()})
    assert_same(nothing, {name: value[:0] for name, value in TYPES_OUTPUTS.items()})


def test_chosen_outputs_and_noncontiguous_input(session):
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    outputs = session.run_signature("serving_default", {"x": values}, ["y"])
    assert list(outputs) == ["y"]
    np.testing.assert_array_equal(outputs["y"], values * 2)


def test_scalar_output(session):
    total = session.run_signature("uneven", {"x": np.ones(3, np.float32)}, ["total"])["total"]
    assert total.shape == ()
    assert total == 3


def test_failed_op(session):
    with pytest.raises(StatusError, match="only positive numbers, please") as caught:
        session.run_signature("positive", {"x": np.array([1, -1], np.float32)})
    assert caught.value.code == Code.INVALID_ARGUMENT
    # The session is as good as before.
    assert session.run_signature("positive", {"x": np.ones(1, np.float32)})["y"] == 1


def test_wrong_type_and_unknown_tensor(session):
    with pytest.raises(StatusError, match="float but int64 is provided") as caught:
        session.run_signature("positive", {"x": np.array([1, 2])})
    assert caught.value.code == Code.INVALID_ARGUMENT
    with pytest.raises(StatusError, match="no TensorFlow type for numpy's complex128"):
        session.run_signature("positive", {"x": np.array([1j])})
    for name in ("nowhere:0", "serving_default_x:5"):
        with pytest.raises(StatusError, match=f"Tensor {name} is not in the graph"):
            session.run({}, [name])


def test_timeout(session):
    with pytest.raises(StatusError) as caught:
        session.run_signature("slow", {"steps": np.array([2**31 - 1], np.int32)}, timeout=0.1)
    assert caught.value.code == Code.DEADLINE_EXCEEDED
    assert session.run_signature("slow", {"steps": np.array([100], np.int32)}, timeout=30)["counted"] == 100


def test_elements_that_are_no_bytes(session):
    with pytest.raises(TypeError):
        session.run_signature("sizes", {"image_bytes": np.array([b"ok", 5], object)})


def test_not_a_saved_model(tmp_path):
    with pytest.raises(StatusError, match="Could not find SavedModel") as caught:
        CSession(tmp_path)
    assert caught.value.code == Code.NOT_FOUND


def test_tags_that_are_not_there(toy_versions):
    with pytest.raises(StatusError, match="tags"):
        CSession(toy_versions / "1", tags=("gpu",))


def test_closed(toy_versions):
    session = CSession(toy_versions / "1")
    session.close()
    session.close()
    with pytest.raises(StatusError, match="closed"):
        session.run_signature("positive", {"x": np.ones(1, np.float32)})


def test_threads_do_not_mix_up(session):
    def ask(number):
        values = np.full((2, 3), number, np.float32)
        text = np.array([b"%d" % number * 30] * 2, object)
        scaled = session.run_signature("serving_default", {"x": values})["y"]
        joined = session.run_signature("types", {**TYPES_INPUTS, "text": text})["text"]
        return (scaled == 2 * number).all() and (joined == text + text).all()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(300)))


@pytest.mark.skipif(not STATM.exists(), reason="memory is read from /proc")
def test_memory_does_not_grow(session):
    text = np.array([b"x" * 100_000] * 10, object)
    inputs = {**{name: np.resize(value, (10, *value.shape[1:])) for name, value in TYPES_INPUTS.items()}, "text": text}

    def failing():
        with pytest.raises(StatusError):
            session.run_signature("types", {**inputs, "f32": inputs["i32"]})

    def megabytes():
        for _ in range(50):
            session.run_signature("types", inputs)
            failing()
        return int(STATM.read_text().split()[1]) * 4096 / 1e6

    before = megabytes()
    # One forgotten copy of the strings of each run would be 200 MB.
    assert max(megabytes() for _ in range(4)) < before + 30
