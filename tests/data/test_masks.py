import math

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from pycocotools import mask as coco_mask

from mrcnn_tf.data.masks import bitmap_to_rle, decode_rle, mask_crop, polygon_coverage, rle_counts, segmentation_to_rle


def _star(random, centre, radius, points=12):
    angles = np.sort(random.uniform(0, 2 * math.pi, points))
    reach = radius * random.uniform(0.4, 1, points)
    return np.stack([centre[0] + reach * np.cos(angles), centre[1] + reach * np.sin(angles)], axis=1)


def _box(polygon):
    (left, top), (right, bottom) = polygon.min(axis=0), polygon.max(axis=0)
    return top, left, bottom, right


def _sampled(polygon, box, cells, samples):
    """Coverage by points: matplotlib tells which of samples x samples points of every cell are inside."""
    at = (np.arange(cells * samples) + 0.5) / (cells * samples)
    rows, columns = np.meshgrid(box[0] + at * (box[2] - box[0]), box[1] + at * (box[3] - box[1]), indexing="ij")
    inside = Outline(polygon).contains_points(np.stack([columns.ravel(), rows.ravel()], axis=1))
    return inside.reshape(cells, samples, cells, samples).mean(axis=(1, 3))


@pytest.mark.parametrize("radius", [6, 30, 150])
def test_crops_agree_with_the_polygon(radius):
    random = np.random.default_rng(radius)
    overlaps, bias = [], []
    for _ in range(8):
        polygon = _star(random, (200, 200), radius)
        crop = mask_crop([polygon.ravel()], _box(polygon), (400, 400)) / 255
        exact = _sampled(polygon, _box(polygon), 56, 10)
        bias.append(crop.mean() - exact.mean())
        # The 28 x 28 targets of the whole box, against every point of the exact polygon.
        target = crop.reshape(28, 2, 28, 2).mean(axis=(1, 3))
        exact = exact.reshape(28, 2, 28, 2).mean(axis=(1, 3))
        overlaps.append(np.minimum(target, exact).sum() / np.maximum(target, exact).sum())
    assert np.mean(overlaps) >= 0.99
    assert abs(np.mean(bias)) < 1e-3


def test_mean_coverage_is_the_area_of_the_polygon():
    random = np.random.default_rng(5)
    polygon = _star(random, (50, 60), 30)
    box = _box(polygon)
    x, y = polygon.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    coverage = polygon_coverage([polygon.ravel()], box, (56, 56))
    assert coverage.mean() * (box[2] - box[0]) * (box[3] - box[1]) == pytest.approx(area, rel=2e-3)


def test_a_rectangle_fills_its_box_and_half_of_one_twice_as_wide():
    rectangle = [10.25, 20.5, 30.75, 20.5, 30.75, 44.5, 10.25, 44.5]
    assert mask_crop([rectangle], (20.5, 10.25, 44.5, 30.75), (100, 100)).min() == 255
    wide = mask_crop([rectangle], (20.5, 10.25, 44.5, 51.25), (100, 100))
    assert (wide[:, :28] == 255).all()
    assert (wide[:, 28:] == 0).all()


def test_polygons_are_united_and_fold_by_the_even_odd_rule():
    left, right = [0, 0, 6, 0, 6, 10, 0, 10], [4, 0, 10, 0, 10, 10, 4, 10]
    assert mask_crop([left, right], (0, 0, 10, 10), (10, 10)).min() == 255
    # One polygon that runs around an inner square as well leaves a hole, as in pycocotools.
    twice = [0, 0, 8, 0, 8, 8, 0, 8, 0, 0, 2, 2, 6, 2, 6, 6, 2, 6, 2, 2]
    crop = mask_crop([twice], (0, 0, 8, 8), (8, 8))
    assert crop[28, 28] == 0
    assert crop[4, 28] == 255


def test_the_direction_of_a_polygon_does_not_matter():
    polygon = _star(np.random.default_rng(1), (20, 20), 15)
    one = mask_crop([polygon.ravel()], _box(polygon), (40, 40))
    np.testing.assert_array_equal(one, mask_crop([polygon[::-1].ravel()], _box(polygon), (40, 40)))


def test_an_object_outside_its_box_covers_nothing():
    assert mask_crop([[0, 0, 5, 0, 5, 5]], (20, 20, 30, 30), (40, 40)).max() == 0


def test_rle_crops_are_the_exact_average_of_the_pixels():
    random = np.random.default_rng(2)
    bitmap = random.random((20, 30)) < 0.5
    box = (2.5, 3.25, 17.0, 28.75)
    crop = mask_crop(bitmap_to_rle(bitmap), box, (20, 30)) / 255
    # Reference: point samples so dense that every cell holds 16 x 16 of them.
    at = (np.arange(56 * 16) + 0.5) / (56 * 16)
    rows, columns = (box[0] + at * (box[2] - box[0])).astype(int), (box[1] + at * (box[3] - box[1])).astype(int)
    dense = bitmap[np.ix_(rows, columns)].reshape(56, 16, 56, 16).mean(axis=(1, 3))
    np.testing.assert_allclose(crop, dense, atol=0.07)
    assert abs((crop - dense).mean()) < 2e-3


def test_rle_of_one_pixel_and_of_the_whole_image():
    bitmap = np.zeros((5, 4), bool)
    bitmap[4, 3] = True
    assert mask_crop(bitmap_to_rle(bitmap), (4, 3, 5, 4), (5, 4)).min() == 255
    assert mask_crop(bitmap_to_rle(np.ones((1, 1))), (0, 0, 1, 1), (1, 1)).min() == 255


@pytest.mark.parametrize("seed", range(5))
def test_rles_decode_as_pycocotools_does(seed):
    random = np.random.default_rng(seed)
    bitmap = (np.cumsum(random.random((37, 53)) < 0.02 * (seed + 1), axis=0) % 2).astype(np.uint8)
    rle = bitmap_to_rle(bitmap)
    np.testing.assert_array_equal(decode_rle(rle, (37, 53)), bitmap)
    np.testing.assert_array_equal(coco_mask.decode({**rle, "counts": rle["counts"].encode()}), bitmap)
    uncompressed = {"size": [37, 53], "counts": rle_counts(rle, (37, 53)).tolist()}
    np.testing.assert_array_equal(decode_rle(uncompressed, (37, 53)), bitmap)
    assert segmentation_to_rle(uncompressed, (37, 53)) == rle
    assert segmentation_to_rle({**rle, "counts": rle["counts"].encode()}, (37, 53)) == rle


def test_polygons_become_the_rle_of_pycocotools():
    polygons = [[2, 2, 12, 2, 12, 9, 2, 9], [10, 5, 18, 5, 18, 14]]
    expected = coco_mask.merge(coco_mask.frPyObjects(polygons, 20, 20))
    got = segmentation_to_rle([np.array(polygon, float) for polygon in polygons], (20, 20))
    assert got == {"size": [20, 20], "counts": expected["counts"].decode()}


@pytest.mark.parametrize(
    ("rle", "fault"),
    [
        ({"size": [4, 4], "counts": [3, 5]}, "add up to 8"),
        ({"size": [4, 4], "counts": [20, -4]}, "negative"),
        ({"size": [4, 4], "counts": [8.0, 8.0]}, "whole"),
        ({"size": [4, 5], "counts": [20]}, "size"),
        ({"size": [4, 4], "counts": ""}, "complete"),
        ({"size": [4, 4], "counts": "zz z"}, "complete"),
        ({"size": [4, 4], "counts": "5"}, "add up to 5"),
        ({"size": [4, 4], "counts": "P"}, "complete"),
        ({"size": [4, 4], "counts": "o" * 30 + "0"}, "32 bits"),
        ({"counts": [16]}, "needs size"),
    ],
)
def test_malformed_rles_are_refused(rle, fault):
    with pytest.raises(ValueError, match=fault):
        decode_rle(rle, (4, 4))
