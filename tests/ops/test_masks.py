"""Mask targets against polygons drawn directly into the grid of the roi."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageDraw

from mrcnn_tf.ops.masks import crop_mask_targets

M = 56


def star(rng):
    """Corners (y, x) of a random star around the origin, outer radius 1."""
    spikes = int(rng.integers(5, 12))
    angles = np.arange(2 * spikes) * np.pi / spikes + rng.uniform(0, 6)
    radii = np.where(np.arange(2 * spikes) % 2, rng.uniform(0.35, 0.7), 1.0) * rng.uniform(0.85, 1, 2 * spikes)
    return np.stack([radii * np.sin(angles), radii * np.cos(angles) * rng.uniform(0.5, 1)], axis=1)


def coverage(polygon, box, cells, supersampling=16):
    """[cells, cells] in 0..1, from a supersampled picture."""
    side = cells * supersampling
    points = (polygon - box[:2]) / (box[2:] - box[:2]) * side - 0.5  # Pillow's integers are pixel centres
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).polygon([(x, y) for y, x in points], fill=1)
    return np.asarray(image, float).reshape(cells, supersampling, cells, supersampling).mean((1, 3))


def crop(masks, boxes, rois, matched=None, size=28, jit_compile=None):
    """One image."""
    matched = np.arange(len(rois)) if matched is None else matched
    call = tf.function(crop_mask_targets, jit_compile=jit_compile)
    arrays = masks.astype(np.uint8), boxes.astype(np.float32), rois.astype(np.float32), np.asarray(matched, np.int32)
    return call(*[tf.constant(a)[None] for a in arrays], size=size)[0].numpy()


@pytest.mark.parametrize("object_size", [12, 48, 400])
def test_targets_have_iou_099_with_the_polygon(object_size):
    rng = np.random.default_rng(object_size)
    masks, boxes, rois, exact = [], [], [], []
    for _ in range(60):
        polygon = star(rng) * object_size / 2 + 500
        box = np.concatenate([polygon.min(0), polygon.max(0)])
        roi = box + np.tile(box[2:] - box[:2], 2) * rng.uniform(-0.15, 0.15, 4)
        masks.append(np.round(255 * coverage(polygon, box, M, 8)))
        boxes.append(box)
        rois.append(roi)
        exact.append(coverage(polygon, roi, 28))
    got = crop(np.array(masks), np.array(boxes), np.array(rois))
    filled, expected = got >= 0.5, np.array(exact) >= 0.5
    iou = (filled & expected).sum((1, 2)) / (filled | expected).sum((1, 2))
    assert iou.mean() >= 0.99
    assert np.abs(got - exact).mean() < 0.012


def test_roi_equal_to_the_box_averages_two_by_two():
    masks = np.random.default_rng(0).integers(0, 256, (1, M, M))
    box = np.array([[10.0, 20.0, 66.0, 90.0]])
    expected = masks.reshape(28, 2, 28, 2).mean((1, 3)) / 255
    np.testing.assert_allclose(crop(masks, box, box)[0], expected, atol=1e-5)
    np.testing.assert_allclose(crop(masks, box, box, size=M), masks / 255, atol=1e-4)


def test_nothing_outside_of_the_box_and_each_roi_its_own_object():
    masks = np.stack([np.full((M, M), 255), np.full((M, M), 51)])
    boxes = np.array([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]])
    rois = np.array([[20.0, 20.0, 40.0, 40.0], [0.0, 0.0, 14.0, 28.0], [50.0, 50.0, 60.0, 60.0], [30.0, 20.0, 58.0, 48.0]])
    got = crop(masks, boxes, rois, matched=[1, 0, 1, 1], size=14)
    np.testing.assert_allclose(got[0], 0.2, atol=1e-5)
    expected = np.zeros((14, 14))
    expected[:10, :5] = 1
    np.testing.assert_allclose(got[1], expected, atol=1e-5)
    assert np.all(got[2] == 0)
    expected = np.zeros((14, 14))
    expected[:5, :10] = 0.2
    np.testing.assert_allclose(got[3], expected, atol=1e-5)


def test_area_is_kept():
    """Coverage times cell area sums to the object's area inside of the roi."""
    masks = np.random.default_rng(1).integers(0, 256, (1, M, M))
    box = np.array([[100.0, 200.0, 130.0, 290.0]])
    roi = np.array([[90.0, 180.0, 141.0, 300.0]])
    area = crop(masks, box, roi).sum() * (51 / 28) * (120 / 28)
    assert area == pytest.approx(masks.mean() / 255 * 30 * 90, rel=1e-4)


@pytest.mark.parametrize("jit_compile", [None, True])
def test_empty_boxes_and_rois_give_finite_values(jit_compile):
    masks = np.full((3, M, M), 255)
    boxes = np.array([[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 5.0, 1333.0], [0.0, 0.0, 100.0, 100.0]])
    rois = np.array([[0.0, 0.0, 1333.0, 1333.0], [0.0, 0.0, 0.0, 0.0], [3.0, 3.0, 3.0, 60.0], [20.0, 20.0, 20.001, 20.001]])
    matched = np.repeat(np.arange(3), 4)
    got = crop(masks, boxes, np.tile(rois, (3, 1)), matched, jit_compile=jit_compile)
    assert np.all((got >= 0) & (got <= 1 + 1e-5))  # false for NaN as well
    assert np.all(got[[9, 10]] == 0)  # rois without area


def test_no_rois_and_several_images():
    rng = np.random.default_rng(2)
    masks = rng.integers(0, 256, (2, 3, M, M)).astype(np.uint8)
    boxes = np.tile(np.array([0.0, 0.0, 50.0, 50.0], np.float32), (2, 3, 1))
    rois = rng.uniform(0, 20, (2, 5, 4)).astype(np.float32) + np.array([0, 0, 30, 30], np.float32)
    matched = rng.integers(0, 3, (2, 5)).astype(np.int32)
    both = crop_mask_targets(masks, boxes, rois, matched).numpy()
    for image in range(2):
        np.testing.assert_allclose(both[image], crop(masks[image], boxes[image], rois[image], matched[image]), atol=1e-6)
    assert crop_mask_targets(masks, boxes, rois[:, :0], matched[:, :0]).shape == (2, 0, 28, 28)
