"""Boundaries against the definition, pixel by pixel."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_tf.evaluate import coco_metrics
from mrcnn_tf.metrics.boundary import boundary, boundary_ious
from tests.metrics.scenes import ellipse, found, random_scene, rle, truth_of


def plain_boundary(mask, ratio):
    """All pixels of the mask that have one outside of it, or outside of the image, within the distance in both directions."""
    height, width = mask.shape
    distance = max(1, round(ratio * float(np.hypot(height, width))))
    result = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            inside = y >= distance and x >= distance and y + distance < height and x + distance < width
            window = mask[max(0, y - distance) : y + distance + 1, max(0, x - distance) : x + distance + 1]
            result[y, x] = mask[y, x] and not (inside and window.all())
    return result


def random_masks():
    rng = np.random.default_rng(0)
    blobs = [ellipse([x, y, w, h]) for x, y, w, h in rng.uniform([0, 0, 4, 4], [120, 90, 80, 80], (4, 4))]
    holed = ellipse([20, 20, 100, 80]) & ~ellipse([50, 50, 30, 20])
    return [*blobs, holed, rng.random((40, 30)) < 0.9, np.ones((25, 60), bool), np.zeros((20, 20), bool), np.ones((1, 1), bool)]


@pytest.mark.parametrize("ratio", [0.02, 0.05, 0.001])
def test_equals_the_definition(ratio):
    for mask in random_masks():
        got = coco_mask.decode(boundary(rle(mask), ratio)).astype(bool)
        np.testing.assert_array_equal(got, plain_boundary(mask, ratio))


def test_a_square_by_hand():
    """On 120 x 160 the diagonal is 200, and the boundary 4 pixels wide."""
    mask = np.zeros((120, 160), bool)
    mask[30:60, 40:80] = True
    edge = coco_mask.decode(boundary(rle(mask))).astype(bool)
    assert edge.sum() == 30 * 40 - 22 * 32
    assert not edge[34:56, 44:76].any()


def test_the_smaller_of_both_ious():
    for seed in range(2):
        masks = random_masks()[:5]
        others = [np.roll(mask, 3 + seed, axis=1) for mask in masks]
        got = boundary_ious([rle(mask) for mask in masks], [rle(mask) for mask in others], [0, 0, 0, 0, 1])
        for row, mask in enumerate(masks):
            for column, other in enumerate(others):
                edges = plain_boundary(mask, 0.02), plain_boundary(other, 0.02)
                whole, edge = (np.sum(a & b) / np.sum(a | b) for a, b in ((mask, other), edges))
                covered = np.sum(mask & other) / np.sum(mask)
                assert got[row, column] == pytest.approx(covered if column == 4 else min(whole, edge))


def test_nothing_to_compare():
    assert boundary_ious([], [], []).shape == (0, 0)
    assert boundary_ious([rle(np.ones((4, 4)))], [], []).shape == (1, 0)
    assert coco_metrics(truth_of(), [], "boundary")["AP"] is None
    assert coco_metrics(truth_of((1, [10, 10, 30, 30])), [], "boundary")["AP"] == 0


def test_the_ap_is_that_of_masks_where_the_boundary_is_the_mask():
    """Masks of at most 8 pixels across are all boundary."""
    truth = truth_of((1, [10, 10, 8, 30]), (1, [60, 60, 40, 7]))
    results = found((1, 0.9, [11, 10, 8, 30]), (1, 0.8, [60, 61, 40, 7]), (1, 0.7, [100, 10, 8, 8]))
    ours, theirs = coco_metrics(truth, results, "boundary"), coco_metrics(truth, results, "segm")
    assert 0 < ours["AP"] < 1
    assert ours == theirs


def test_a_coarse_outline_costs_more_than_by_masks():
    truth, results = random_scene(1)
    ours, theirs = (coco_metrics(truth, results, kind)["AP"] for kind in ("boundary", "segm"))
    assert 0 < ours < theirs
