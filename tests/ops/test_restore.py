"""From the network's input back to pictures, several at a time; one at a time it is tested with the predictor."""

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops.restore import restore_detections, scale_back, scale_into


def test_each_picture_has_its_own_window_and_size_and_keeps_its_rows_in_order():
    detections = {
        "detection_boxes": tf.constant(
            [[[0, 0, 10, 10], [5, 5, 5, 9], [10, 20, 20, 40]], [[2, 2, 12, 22], [0, 0, 9, 9], [1, 1, 2, 2.0]]]
        ),
        "detection_classes": tf.constant([[3, 2, 1], [1, 4, 4]]),
        "detection_scores": tf.constant([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]]),
        "detection_masks": tf.reshape(tf.range(6.0), [2, 3, 1, 1]) + 1,
        "num_detections": tf.constant([3, 1]),
    }
    windows = tf.constant([[0, 0, 20, 40], [2, 2, 12, 22.0]])
    found = restore_detections(detections, windows, tf.constant([[40, 40], [5, 60]]), inclusive=False, clip=True)
    assert found["num_detections"].numpy().tolist() == [2, 1]
    assert found["detection_classes"].numpy().tolist() == [[3, 1, 0], [1, 0, 0]]
    np.testing.assert_allclose(found["detection_scores"], [[0.9, 0.7, 0], [0.6, 0, 0]])
    assert found["detection_masks"].numpy().ravel().tolist() == [1, 3, 0, 4, 0, 0]
    assert found["detection_boxes"].numpy().tolist() == [
        [[0, 0, 20, 10], [20, 20, 40, 40], [0, 0, 0, 0]],
        [[0, 0, 5, 60], [0, 0, 0, 0], [0, 0, 0, 0]],
    ]


def test_no_picture_and_no_rows():
    for count, rows in ((0, 3), (2, 0)):
        detections = {
            "detection_boxes": tf.zeros([count, rows, 4]),
            "detection_scores": tf.zeros([count, rows]),
            "num_detections": tf.zeros([count], tf.int32),
        }
        sizes = tf.ones([count, 2], tf.int32)
        found = restore_detections(detections, tf.ones([count, 4]), sizes, inclusive=True, clip=True)
        assert found["detection_boxes"].shape == (count, rows, 4)
        assert found["num_detections"].numpy().tolist() == [0] * count


@pytest.mark.parametrize("last", [0, 1])
def test_scaling_into_the_input_undoes_scaling_back(last):
    boxes = tf.constant([[[5.0, 7, 50, 90], [0, 0, 60, 100]]])
    windows, sizes = tf.constant([[10.0, 20, 109, 219]]), tf.constant([[60, 100]])
    there = scale_into(boxes, windows, sizes, last=last)
    np.testing.assert_allclose(scale_back(there, windows, sizes, last=last), boxes, atol=1e-4)
    np.testing.assert_allclose(there[0, 1], [10, 20, 109, 219], atol=1e-4)
