"""Matching and sampling against loops that follow the rules as written down in detectron2."""

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops.boxes import iou_matrix
from mrcnn_tf.ops.matching import BACKGROUND, FOREGROUND, IGNORED, ignore_crowd, match, random_keys, sample


def squares(*starts, side=10.0):
    """Boxes on the line y = 0: their overlaps are easily told."""
    return np.array([[0, start, side, start + side] for start in starts], np.float32)


def random_boxes(count, seed):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 60, (count, 2))
    return np.concatenate([corner, corner + random.uniform(8, 40, (count, 2))], axis=1).astype(np.float32)


def run_match(boxes, gt_boxes, gt_valid, low=0.3, high=0.7, allow_low_quality=True):
    labels, matched = match(
        tf.constant(boxes),
        tf.constant(gt_boxes),
        tf.constant(gt_valid),
        foreground_iou_threshold=high,
        background_iou_threshold=low,
        allow_low_quality=allow_low_quality,
    )
    assert labels.dtype == matched.dtype == tf.int32
    return labels.numpy(), matched.numpy()


def loop_match(boxes, gt_boxes, gt_valid, low, high, allow_low_quality):
    """The rules one box at a time, for one image."""
    overlaps = iou_matrix(tf.constant(boxes), tf.constant(gt_boxes)).numpy()
    candidates = np.flatnonzero(gt_valid)
    labels = []
    for row in overlaps:
        best = max((row[g] for g in candidates), default=0.0)
        label = FOREGROUND if best >= high else BACKGROUND if best < low else IGNORED
        if allow_low_quality and any(row[g] > 0 and row[g] == overlaps[:, g].max() for g in candidates):
            label = FOREGROUND
        labels.append(label)
    return labels, [max(candidates, key=lambda g: (row[g], -g), default=None) for row in overlaps]


@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["own boxes", "shared anchors"])
def test_match_equals_a_loop(allow_low_quality, shared):
    boxes = np.stack([random_boxes(40, 1), random_boxes(40, 1 if shared else 2)])
    gt_boxes = np.stack([random_boxes(6, 3), random_boxes(6, 4)])
    gt_valid = np.array([[True, True, False, True, True, False], [False] * 6])
    labels, matched = run_match(boxes[:1] if shared else boxes, gt_boxes, gt_valid, 0.2, 0.4, allow_low_quality)
    for image in range(2):
        expected, expected_match = loop_match(boxes[image], gt_boxes[image], gt_valid[image], 0.2, 0.4, allow_low_quality)
        np.testing.assert_array_equal(labels[image], expected)
        if gt_valid[image].any():
            np.testing.assert_array_equal(matched[image], expected_match)
    assert set(labels[0]) == {FOREGROUND, BACKGROUND, IGNORED}  # else the loop above shows little


def test_thresholds_belong_to_the_upper_side():
    # overlaps of squares shifted by s: (10 - s) / (10 + s), exactly 1 / 4 for 6 and 2 / 3 for 2
    labels, _ = run_match(squares(6, 2)[None], squares(0)[None], [[True]], 0.25, np.float32(2 / 3), allow_low_quality=False)
    np.testing.assert_array_equal(labels, [[IGNORED, FOREGROUND]])
    labels, _ = run_match(squares(6, 2)[None], squares(0)[None], [[True]], 0.26, 0.67, allow_low_quality=False)
    np.testing.assert_array_equal(labels, [[BACKGROUND, IGNORED]])


def test_ties_for_the_best_box_are_all_foreground():
    labels, _ = run_match(squares(94, 106, 107, 300)[None], squares(100)[None], [[True]])
    np.testing.assert_array_equal(labels, [[FOREGROUND, FOREGROUND, BACKGROUND, BACKGROUND]])


def test_low_quality_match_keeps_the_box_with_its_own_best_truth():
    # the first truth's best box overlaps the second more: it stays matched with the second, as in detectron2
    boxes, gt_boxes = squares(3)[None], squares(10, 4)[None]
    labels, matched = run_match(boxes, gt_boxes, [[True, True]])
    assert labels == FOREGROUND
    assert matched == 1


def test_truth_that_no_box_touches_makes_nothing_foreground():
    labels, _ = run_match(squares(0, 20, 40)[None], squares(500)[None], [[True]])
    assert (labels == BACKGROUND).all()


def test_speck_of_truth_makes_only_its_own_boxes_foreground():
    # IoU 1e-8: below any absolute tolerance for ties, where each box that touches nothing would tie with it
    speck = np.array([[[2, 2, 2.001, 2.001]]], np.float32)
    labels, _ = run_match(squares(0, 20, 40)[None], speck, [[True]])
    np.testing.assert_array_equal(labels, [[FOREGROUND, BACKGROUND, BACKGROUND]])


def test_rows_that_are_not_valid_are_never_matched():
    labels, matched = run_match(squares(0, 50)[None], squares(0, 49)[None], [[False, True]])
    np.testing.assert_array_equal(labels, [[BACKGROUND, FOREGROUND]])
    assert matched[0, 1] == 1


def test_no_ground_truth_is_all_background():
    labels, matched = run_match(random_boxes(9, 5)[None], np.zeros([2, 3, 4], np.float32), np.zeros([2, 3], bool))
    assert labels.shape == matched.shape == (2, 9)
    assert (labels == BACKGROUND).all()
    assert ((matched >= 0) & (matched < 3)).all()


def test_no_boxes_give_no_labels():
    labels, matched = run_match(np.zeros([1, 0, 4], np.float32), squares(0)[None], [[True]])
    assert labels.shape == matched.shape == (1, 0)


def test_background_inside_a_crowd_is_ignored():
    boxes = squares(0, 4, 30, 100)[None]
    gt_boxes = np.array([[[0, 0, 10, 40], [0, 95, 10, 125]]], np.float32)
    labels = np.array([[FOREGROUND, BACKGROUND, BACKGROUND, BACKGROUND]], np.int32)
    found = ignore_crowd(
        tf.constant(labels), tf.constant(boxes), tf.constant(gt_boxes), tf.constant([[True, False]]), threshold=0.7
    )
    # foreground stays; what lies in the crowd is out; the last one lies in an ordinary object
    np.testing.assert_array_equal(found, [[FOREGROUND, IGNORED, IGNORED, BACKGROUND]])


@pytest.mark.parametrize(("start", "expected"), [(33.0, IGNORED), (34.0, BACKGROUND)])
def test_crowd_counts_above_the_threshold(start, expected):
    # the box reaches out of the crowd's end at 40: 70% and 60% of it are covered
    crowd = np.array([[[0, 0, 10, 40]]], np.float32)
    found = ignore_crowd(
        tf.constant([[BACKGROUND]]), tf.constant(squares(start)[None]), tf.constant(crowd), tf.constant([[True]]), threshold=0.65
    )
    assert found.numpy() == expected


def draw(labels, seeds=None, *, num_samples=8, positive_fraction=0.5, keys=None):
    labels = np.asarray(labels, np.int32)
    if keys is None:
        seeds = tf.constant(seeds if seeds is not None else [[0, i] for i in range(len(labels))])
        keys = random_keys(seeds, labels.shape[1])
    indices, is_foreground, is_valid = sample(
        tf.constant(labels), tf.constant(keys), num_samples=num_samples, positive_fraction=positive_fraction
    )
    assert indices.shape == is_foreground.shape == is_valid.shape == (len(labels), num_samples)
    assert indices.dtype == tf.int32
    return indices.numpy(), is_foreground.numpy(), is_valid.numpy()


def labels_of(foreground, background, ignored=5, seed=0):
    labels = np.repeat([FOREGROUND, BACKGROUND, IGNORED], [foreground, background, ignored])
    return np.random.default_rng(seed).permutation(labels)


@pytest.mark.parametrize(
    ("foreground", "background", "drawn"),
    [(20, 20, (4, 4)), (2, 20, (2, 6)), (20, 1, (4, 1)), (0, 20, (0, 8)), (0, 3, (0, 3)), (3, 0, (3, 0)), (0, 0, (0, 0))],
)
def test_sample_counts(foreground, background, drawn):
    labels = labels_of(foreground, background)
    indices, is_foreground, is_valid = (row[0] for row in draw([labels]))
    positives, negatives = drawn
    np.testing.assert_array_equal(is_foreground, np.arange(8) < positives)
    np.testing.assert_array_equal(is_valid, np.arange(8) < positives + negatives)
    assert (labels[indices[is_foreground]] == FOREGROUND).all()
    assert (labels[indices[is_valid & ~is_foreground]] == BACKGROUND).all()
    assert len(set(indices[is_valid])) == positives + negatives  # no box twice
    assert (indices[~is_valid] == 0).all()


def test_sample_takes_the_largest_keys():
    labels = [[FOREGROUND, FOREGROUND, FOREGROUND, BACKGROUND, BACKGROUND, IGNORED]]
    keys = np.array([[0.1, 0.9, 0.5, 0.0, 0.3, 1.0]], np.float32)
    indices, _, is_valid = draw(labels, keys=keys, num_samples=4)
    np.testing.assert_array_equal(indices, [[1, 2, 4, 3]])
    assert is_valid.all()


@pytest.mark.parametrize(
    ("num_samples", "positive_fraction", "positives"), [(1, 0.5, 0), (3, 0.5, 1), (4, 1.0, 4), (512, 0.25, 20)]
)
def test_positive_fraction_is_an_upper_bound(num_samples, positive_fraction, positives):
    _, is_foreground, _ = draw([labels_of(20, 20)], num_samples=num_samples, positive_fraction=positive_fraction)
    assert is_foreground.sum() == positives


def test_sample_of_no_boxes_is_not_valid():
    indices, is_foreground, is_valid = draw(np.zeros([2, 0]), keys=np.zeros([2, 0], np.float32))
    assert not indices.any()
    assert not is_foreground.any()
    assert not is_valid.any()


def test_draw_depends_on_the_images_own_seed_only():
    labels = [labels_of(12, 30, seed=s) for s in range(3)]
    seeds = [[4, 0], [4, 1], [4, 2]]
    together = draw(labels, seeds)
    for image in range(3):
        alone = draw(labels[image : image + 1], seeds[image : image + 1])
        for first, second in zip(together, alone, strict=True):
            np.testing.assert_array_equal(first[image : image + 1], second)
    # the same boxes under other seeds are drawn otherwise
    assert not np.array_equal(*(draw(labels[:1], [[seed, 0]])[0] for seed in (4, 5)))


def test_keys_are_the_same_for_static_and_dynamic_batches_and_under_xla():
    seeds = tf.constant([[1, 2], [3, 4]])
    expected = random_keys(seeds, 50)

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.int32), tf.TensorSpec([], tf.int32)])
    def dynamic(seeds, count):
        return random_keys(seeds, count)

    np.testing.assert_array_equal(dynamic(seeds, tf.constant(50)), expected)
    np.testing.assert_array_equal(tf.function(lambda s: random_keys(s, 50), jit_compile=True)(seeds), expected)
    assert (expected.numpy() >= 0).all()
    assert (expected.numpy() < 1).all()


def test_keys_of_neighbouring_seeds_are_uniform_and_unrelated():
    # as they come in training: the seeds of a run and its images are consecutive numbers
    seeds = [[first, second] for first in (0, 1, 2) for second in (0, 1, 2, 3)]
    keys = random_keys(tf.constant(seeds), 20_000).numpy()
    counts = np.array([np.histogram(row, bins=20, range=(0, 1))[0] for row in keys])
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)
    related = np.corrcoef(keys) - np.eye(len(seeds))
    assert np.abs(related).max() < 5 / np.sqrt(20_000)
    assert abs(np.corrcoef(keys[0, 1:], keys[0, :-1])[0, 1]) < 5 / np.sqrt(20_000)


def test_keys_take_seeds_of_any_sign():
    keys = random_keys(tf.constant([[-1, 2**31 - 1], [-(2**31), 0]]), 1000).numpy()
    assert ((keys >= 0) & (keys < 1)).all()
    assert len(np.unique(keys)) > 1990


def test_draw_is_roughly_uniform():
    labels = np.array([[FOREGROUND] * 10 + [BACKGROUND] * 20] * 400)
    indices, is_foreground, is_valid = draw(labels, [[7, i] for i in range(400)], num_samples=10)
    counts = np.bincount(indices[is_valid], minlength=30)
    # 5 of 10 and 5 of 20 each time: 200 and 100 draws a box, standard deviations 10 and 8.7
    assert np.abs(counts[:10] - 200).max() < 50
    assert np.abs(counts[10:] - 100).max() < 45
    assert is_foreground.sum() == 2000


def test_matching_and_sampling_are_the_same_under_xla():
    boxes = tf.constant(np.stack([random_boxes(50, 11), random_boxes(50, 12)]))
    gt_boxes = tf.constant(np.stack([random_boxes(4, 13), np.zeros([4, 4])]).astype(np.float32))
    gt_valid = tf.constant([[True, True, True, False], [False] * 4])

    def assign():
        labels, matched = match(
            boxes, gt_boxes, gt_valid, foreground_iou_threshold=0.4, background_iou_threshold=0.3, allow_low_quality=True
        )
        labels = ignore_crowd(labels, boxes, gt_boxes, ~gt_valid, 0.7)
        keys = random_keys(tf.constant([[0, 0], [0, 1]]), 50)
        return labels, matched, *sample(labels, keys, num_samples=16, positive_fraction=0.25)

    for plain, compiled in zip(assign(), tf.function(assign, jit_compile=True)(), strict=True):
        np.testing.assert_array_equal(plain, compiled)
