"""Anchors against the numbers that detectron2 and torchvision publish."""

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops.anchors import cell_anchors, level_anchors

RATIOS = (0.5, 1.0, 2.0)


def test_cell_anchors_are_detectron2s():
    # detectron2's generate_cell_anchors for size 32, from its x1 y1 x2 y2 turned into y1 x1 y2 x2
    expected = [[-11.3137, -22.6274, 11.3137, 22.6274], [-16, -16, 16, 16], [-22.6274, -11.3137, 22.6274, 11.3137]]
    found = cell_anchors((32,), RATIOS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_rounded_cell_anchors_are_torchvisions():
    expected = [
        [-11, -23, 11, 23],
        [-16, -16, 16, 16],
        [-23, -11, 23, 11],
        [-181, -362, 181, 362],
        [-256, -256, 256, 256],
        [-362, -181, 362, 181],
    ]
    np.testing.assert_array_equal(cell_anchors((32, 512), RATIOS, rounded=True), expected)


def test_cell_anchors_keep_area_ratio_and_centre():
    sizes, ratios = (8.0, 20.0), (0.25, 1.0, 3.0)
    boxes = cell_anchors(sizes, ratios)
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    np.testing.assert_allclose(height * width, np.repeat(np.square(sizes), 3), rtol=1e-5)
    np.testing.assert_allclose(height / width, np.tile(ratios, 2), rtol=1e-5)
    np.testing.assert_array_equal(boxes[:, :2], -boxes[:, 2:])


def test_level_anchors_go_by_row_column_anchor():
    cell = cell_anchors((16,), RATIOS)
    found = level_anchors((2, 3), (8, 8), cell).numpy()
    expected = [[8 * row, 8 * column] * 2 + box for row in range(2) for column in range(3) for box in cell]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected)


def test_first_anchor_is_centred_on_the_image_corner():
    np.testing.assert_array_equal(level_anchors((4, 4), (16, 16), cell_anchors((32,), (1.0,)))[0], [-16, -16, 16, 16])


def test_offset_and_strides_of_each_axis():
    found = level_anchors((2, 2), (8, 10), cell_anchors((4,), (1.0,)), offset=0.5).numpy()
    np.testing.assert_array_equal((found[:, :2] + found[:, 2:]) / 2, [[4, 5], [4, 15], [12, 5], [12, 15]])


def test_size_may_be_known_at_run_time_only():
    cell = cell_anchors((16, 32), RATIOS)

    @tf.function(input_signature=[tf.TensorSpec([2], tf.int32)])
    def lay(size):
        return level_anchors((size[0], size[1]), (4, 4), cell)

    np.testing.assert_array_equal(lay(tf.constant([3, 5])), level_anchors((3, 5), (4, 4), cell))


@pytest.mark.parametrize("size", [(0, 3), (2, 0)])
def test_level_without_pixels_has_no_anchors(size):
    assert level_anchors(size, (4, 4), cell_anchors((16,), RATIOS)).shape == (0, 4)
