"""Non-maximum suppression against the greedy definition in plain numpy."""

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops.nms import EXCLUDED_SCORE, nms_indices, nms_on, offset_boxes_by_group
from mrcnn_tf.ops.static_graph import static_graph

SIZE = 640.0


def random_boxes(rng, *shape):
    corners = rng.uniform(0, SIZE - 150, (*shape, 2))
    return np.concatenate([corners, corners + rng.uniform(20, 150, (*shape, 2))], axis=-1).astype(np.float32)


def iou(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    common = max(height, 0.0) * max(width, 0.0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return common / (areas - common) if areas > common else 0.0


def greedy(boxes, scores, iou_threshold, max_output_size=None):
    boxes = boxes.astype(np.float64)
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] > EXCLUDED_SCORE and all(iou(boxes[index], boxes[k]) <= iou_threshold for k in kept):
            kept.append(int(index))
    return kept[:max_output_size]


def run(boxes, scores, max_output_size=50, iou_threshold=0.5, jit_compile=None):
    @tf.function(jit_compile=jit_compile)
    def select(boxes, scores):
        with static_graph():
            return nms_indices(boxes, scores, max_output_size=max_output_size, iou_threshold=iou_threshold)

    indices, num_valid = select(tf.constant(boxes), tf.constant(scores))
    assert indices.dtype == num_valid.dtype == tf.int32
    assert indices.shape == (len(boxes), max_output_size)
    assert all(np.all(row[count:] == 0) for row, count in zip(indices.numpy(), num_valid.numpy(), strict=True))
    return [row[:count].tolist() for row, count in zip(indices.numpy(), num_valid.numpy(), strict=True)]


@pytest.mark.parametrize("jit_compile", [None, True])
@pytest.mark.parametrize(("iou_threshold", "max_output_size"), [(0.3, 100), (0.5, 10), (0.7, 300)])
def test_equals_greedy(iou_threshold, max_output_size, jit_compile):
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 2, 120)
    scores = rng.permutation(240).reshape(2, 120).astype(np.float32) - 100
    got = run(boxes, scores, max_output_size, iou_threshold, jit_compile)
    assert got == [greedy(b, s, iou_threshold, max_output_size) for b, s in zip(boxes, scores, strict=True)]


@pytest.mark.parametrize("jit_compile", [None, True])
def test_boxes_without_area_neither_suppress_nor_are_suppressed(jit_compile):
    boxes = np.array(
        [[[0, 0, 10, 10], [5, 5, 5, 20], [5, 5, 5, 20], [30, 30, 40, 40], [7, 7, 7, 7], [0, 0, 10, 10.1], [0, 0, 0, 0]]],
        np.float32,
    )
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]], np.float32)
    assert run(boxes, scores, 10, 0.5, jit_compile) == [[0, 1, 2, 3, 4, 6]]


def test_guarding_boxes_without_area_changes_nothing():
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, 1, 300)
    boxes[0, ::7, 2] = boxes[0, ::7, 0]
    scores = rng.permutation(300)[None].astype(np.float32)
    plain = tf.image.non_max_suppression(boxes[0], scores[0], 300, 0.4).numpy().tolist()
    assert run(boxes, scores, 300, 0.4) == [plain]


@pytest.mark.parametrize("jit_compile", [None, True])
def test_excluded_boxes(jit_compile):
    boxes = random_boxes(np.random.default_rng(1), 3, 6)
    scores = np.full((3, 6), EXCLUDED_SCORE, np.float32)
    scores[1, 4] = 0.2
    scores[2] = 2 * EXCLUDED_SCORE
    assert run(boxes, scores, 4, 0.5, jit_compile) == [[], [4], []]


@pytest.mark.parametrize("num_boxes", [0, 1, 3])
@pytest.mark.parametrize("jit_compile", [None, True])
def test_fewer_boxes_than_asked_for(num_boxes, jit_compile):
    boxes = np.arange(num_boxes, dtype=np.float32)[None, :, None] * 20 + np.array([0, 0, 10, 10], np.float32)
    scores = np.arange(num_boxes, dtype=np.float32)[None]
    assert run(boxes, scores, 8, 0.5, jit_compile) == [list(range(num_boxes))[::-1]]


@pytest.mark.parametrize("shape", [(2, 40), (1, 3), (3, 0)])
def test_dynamic_shapes(shape):
    rng = np.random.default_rng(2)
    boxes, scores = random_boxes(rng, *shape), rng.uniform(size=shape).astype(np.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 4]), tf.TensorSpec([None, None])])
    def select(boxes, scores):
        return nms_indices(boxes, scores, max_output_size=10, iou_threshold=0.5)

    indices, num_valid = (t.numpy() for t in select(boxes, scores))
    assert indices.shape == (shape[0], 10)
    got = [row[:count].tolist() for row, count in zip(indices, num_valid, strict=True)]
    assert got == [greedy(b, s, 0.5, 10) for b, s in zip(boxes, scores, strict=True)]


@pytest.mark.parametrize("extent", [None, SIZE])
@pytest.mark.parametrize("num_groups", [1, 5, 80])
def test_one_nms_of_shifted_boxes_is_one_per_group(num_groups, extent):
    rng = np.random.default_rng(4)
    boxes = random_boxes(rng, 1, 200)
    scores = rng.permutation(200)[None].astype(np.float32)
    groups = rng.integers(0, num_groups, (1, 200)).astype(np.int32)
    shifted = offset_boxes_by_group(boxes, groups, num_groups, extent=extent)
    expected = [
        np.flatnonzero(groups[0] == g)[k]
        for g in range(num_groups)
        for k in greedy(boxes[0][groups[0] == g], scores[0][groups[0] == g], 0.5)
    ]
    assert run(shifted.numpy(), scores, 200)[0] == sorted(expected, key=lambda k: -scores[0, k])


def test_tiles_are_apart_even_for_boxes_outside_of_the_image():
    boxes = np.array([[-50, -70, 700, 900]] * 7, np.float32)
    shifted = offset_boxes_by_group(boxes, np.arange(7, dtype=np.int32), 7).numpy()
    assert all(iou(a, b) == 0 for i, a in enumerate(shifted) for b in shifted[:i])
    np.testing.assert_array_equal(shifted[:, 2:] - shifted[:, :2], boxes[:, 2:] - boxes[:, :2])


def test_shift_under_xla():
    boxes = random_boxes(np.random.default_rng(5), 2, 9)
    groups = np.tile(np.arange(9, dtype=np.int32), (2, 1))
    shift = tf.function(lambda b, g: offset_boxes_by_group(b, g, 9, extent=SIZE), jit_compile=True)
    np.testing.assert_array_equal(shift(boxes, groups), offset_boxes_by_group(boxes, groups, 9, extent=SIZE))
    assert offset_boxes_by_group(boxes[:, :0], groups[:, :0], 9).shape == (2, 0, 4)


def test_suppression_is_pinned_where_it_is_asked_to_be():
    def devices():
        function = tf.function(lambda boxes, scores: nms_indices(boxes, scores, max_output_size=3, iou_threshold=0.5))
        graph = function.get_concrete_function(tf.TensorSpec([1, 4, 4]), tf.TensorSpec([1, 4])).graph
        return [operation.device for operation in graph.get_operations() if operation.type == "NonMaxSuppressionV4"]

    assert devices() == [""]
    with nms_on("/device:CPU:0"):
        assert devices() == ["/device:CPU:0"]
    assert devices() == [""]
