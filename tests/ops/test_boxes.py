"""Laws of the box geometry, and a plain loop to compare with."""

import math

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops import boxes as box_ops

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


def random_boxes(*shape, seed=0, extent=500.0):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, extent, (*shape, 2))
    return np.concatenate([corner, corner + random.uniform(1, extent / 2, (*shape, 2))], axis=-1).astype(np.float32)


def overlap(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    return max(height, 0.0) * max(width, 0.0)


def area(a):
    return (a[2] - a[0]) * (a[3] - a[1])


def pairwise(function, boxes, others):
    return np.array([[[function(a, b) for b in of_image] for a in image] for image, of_image in zip(boxes, others, strict=True)])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (box_ops.intersections, overlap),
        (box_ops.iou_matrix, lambda a, b: overlap(a, b) / (area(a) + area(b) - overlap(a, b))),
        (box_ops.overlap_fractions, lambda a, b: overlap(a, b) / area(a)),
    ],
    ids=["intersections", "iou", "fractions"],
)
def test_pairs_equal_a_loop(found, expected):
    boxes, others = random_boxes(2, 7, seed=1), random_boxes(2, 5, seed=2)
    result = found(tf.constant(boxes), tf.constant(others))
    assert result.dtype == tf.float32
    np.testing.assert_allclose(result, pairwise(expected, boxes, others), rtol=1e-4, atol=1e-5)


def test_iou_is_symmetric_and_one_with_itself():
    boxes, others = tf.constant(random_boxes(8, seed=3)), tf.constant(random_boxes(6, seed=4))
    np.testing.assert_allclose(box_ops.iou_matrix(boxes, others), tf.transpose(box_ops.iou_matrix(others, boxes)), atol=1e-6)
    np.testing.assert_allclose(tf.linalg.diag_part(box_ops.iou_matrix(boxes, boxes)), 1.0, atol=1e-6)


def test_boxes_that_touch_or_are_empty_share_nothing():
    boxes = tf.constant([[0.0, 0, 10, 10], [0, 0, 0, 0], [5, 5, 5, 9], [8, 8, 2, 2]])
    others = tf.constant([[10.0, 0, 20, 10], [0, 0, 0, 0], [8, 8, 2, 2]])
    for function in (box_ops.intersections, box_ops.iou_matrix, box_ops.overlap_fractions):
        assert not np.any(function(boxes, others))
    np.testing.assert_array_equal(box_ops.areas(boxes), [100, 0, 0, 0])


@pytest.mark.parametrize("count", [0, 3])
def test_pairs_with_no_boxes_are_empty(count):
    assert box_ops.iou_matrix(tf.zeros([2, 0, 4]), tf.zeros([2, count, 4])).shape == (2, 0, count)
    assert box_ops.encode(tf.zeros([0, 4]), tf.zeros([0, 4])).shape == (0, 4)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decode_undoes_encode(weights):
    boxes, anchors = random_boxes(3, 9, seed=5), random_boxes(3, 9, seed=6)
    deltas = box_ops.encode(tf.constant(boxes), tf.constant(anchors), weights)
    np.testing.assert_allclose(box_ops.decode(deltas, tf.constant(anchors), weights), boxes, atol=1e-2)


def test_encode_by_hand():
    deltas = box_ops.encode(tf.constant([[5.0, 10, 25, 20]]), tf.constant([[0.0, 0, 10, 20]]), (10.0, 10.0, 5.0, 5.0))
    # centres (15, 15) and (5, 10); sizes (20, 10) and (10, 20)
    np.testing.assert_allclose(deltas, [[10.0, 10 * 5 / 20, 5 * math.log(2), 5 * math.log(0.5)]], rtol=1e-5)


def test_encode_is_finite_for_empty_rows():
    empty = tf.zeros([1, 4])
    some = tf.constant([[3.0, 3, 9, 9]])
    for boxes, anchors in ((empty, some), (some, empty), (empty, empty)):
        assert np.isfinite(box_ops.encode(boxes, anchors)).all()


def test_decode_cuts_the_logarithm_of_the_scale():
    anchor = tf.constant([[0.0, 0, 16, 16]])
    box = box_ops.decode(tf.constant([[0.0, 0, 100, 100]]), anchor).numpy()[0]
    # 1000 / 16 times the anchor: 1000 pixels around its centre
    np.testing.assert_allclose(box, [-492, -492, 508, 508], rtol=1e-5)


def test_zero_deltas_give_the_anchors_of_every_class():
    anchors = random_boxes(2, 4, 1, seed=7)
    decoded = box_ops.decode(tf.zeros([2, 4, 3, 4]), tf.constant(anchors))
    np.testing.assert_allclose(decoded, np.repeat(anchors, 3, axis=2), atol=1e-4)


@pytest.mark.parametrize("shape", [(5,), (5, 3)], ids=["boxes", "boxes of classes"])
def test_clip_takes_each_window(shape):
    boxes = random_boxes(2, *shape, seed=8) - 100
    windows = np.array([[0, 0, 100, 300], [20, 30, 250, 80]], np.float32)
    clipped = box_ops.clip(tf.constant(boxes), tf.constant(windows)).numpy()
    for image, window in enumerate(windows):
        np.testing.assert_array_equal(clipped[image], np.clip(boxes[image], [*window[:2]] * 2, [*window[2:]] * 2))
    np.testing.assert_array_equal(box_ops.clip(tf.constant(clipped), tf.constant(windows)), clipped)


def test_boxes_outside_of_the_window_are_left_without_area():
    boxes = tf.constant([[[0.0, 0, 5, 9], [30, 30, 40, 50], [2, 90, 25, 99]]])
    clipped = box_ops.clip(boxes, tf.constant([[10.0, 10, 20, 60]]))
    np.testing.assert_array_equal(clipped[0], [[10, 10, 10, 10], [20, 30, 20, 50], [10, 60, 20, 60]])
    assert box_ops.clip(tf.zeros([1, 0, 4]), tf.constant([[10.0, 10, 20, 60]])).shape == (1, 0, 4)


@pytest.mark.parametrize(
    ("centred", "expected"),
    [(False, [[0, 0, 64, 80], [0, 0, 33, 80], [0, 0, 1, 1]]), (True, [[0, 0, 64, 80], [15, 0, 48, 80], [31, 39, 32, 40]])],
)
def test_image_windows(centred, expected):
    sizes = tf.constant([[64, 80], [33, 80], [1, 1]])
    windows = box_ops.image_windows(sizes, tf.constant([64, 80]), centred)
    assert windows.dtype == tf.float32
    np.testing.assert_array_equal(windows, expected)
    # centred: at most one pixel more below and to the right
    if centred:
        beyond = np.array([64, 80]) - windows.numpy()[:, 2:] - windows.numpy()[:, :2]
        assert set(beyond.reshape(-1)) <= {0.0, 1.0}


def test_ends_move_and_empty_rows_stay():
    boxes = tf.constant([[[1.0, 2, 9, 8], [0, 0, 0, 0], [0, 0, 1, 1]]])
    inside = box_ops.move_ends(boxes, -1.0)
    np.testing.assert_array_equal(inside, [[[1, 2, 8, 7], [0, 0, 0, 0], [0, 0, 0, 0]]])
    np.testing.assert_array_equal(box_ops.move_ends(inside, 1.0)[0, :2], boxes[0, :2])
    assert box_ops.move_ends(tf.zeros([2, 0, 4]), 1.0).shape == (2, 0, 4)


@pytest.mark.parametrize(("bound", "growth"), [(box_ops.MAX_LOG_SCALE, 62.5), (math.log(2), 2.0), (None, math.exp(5))])
def test_the_growth_of_a_box_is_bounded(bound, growth):
    boxes = box_ops.decode(tf.constant([[0.0, 0, 5, -5]]), tf.constant([[0.0, 0, 10, 10]]), max_log_scale=bound).numpy()
    np.testing.assert_allclose(boxes[0, 2] - boxes[0, 0], 10 * growth, rtol=1e-5)
    np.testing.assert_allclose(boxes[0, 3] - boxes[0, 1], 10 * math.exp(-5), rtol=1e-4)


def test_clip_leaves_boxes_inside_alone():
    boxes = random_boxes(1, 6, seed=9, extent=40)
    np.testing.assert_array_equal(box_ops.clip(tf.constant(boxes), tf.constant([[0.0, 0, 100, 100]])), boxes)


def test_are_larger_is_strict_and_refuses_what_is_not_finite():
    boxes = [[0, 0, 2, 2], [0, 0, 2.1, 2], [0, 0, 2.1, 2.1], [5, 5, 1, 1], [0, 0, np.inf, 9], [0, np.nan, 9, 9]]
    found = box_ops.are_larger(tf.constant(boxes, tf.float32), 2.0)
    np.testing.assert_array_equal(found, [False, False, True, False, False, False])
    assert not box_ops.are_larger(tf.zeros([1, 4]), 0.0).numpy().any()
