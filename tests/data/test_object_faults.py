"""The box that a mask fills; the faults themselves are tested with `check_data`."""

import numpy as np

from mrcnn_tf.data.object_faults import mask_box

SQUARE = [10.0, 20.0, 40.0, 20.0, 40.0, 60.0, 10.0, 60.0]


def test_the_box_of_a_mask():
    assert mask_box([np.array(SQUARE), np.array([50.0, 70, 120, 70, 120, 75])], (80, 100)) == (20, 10, 75, 100)
    assert mask_box([np.array([10.0, 10, 20, 10, 30, 10])], (80, 100)) is None
