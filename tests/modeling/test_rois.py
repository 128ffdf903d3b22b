"""The way of the rows to a head and back, and the pooling layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.rois import FlattenRows, GatherRows, RoiAlign, RoiPool, RoiResize, ScatterRows
from mrcnn_tf.ops.roi_align import roi_align
from mrcnn_tf.ops.roi_pool import roi_pool
from mrcnn_tf.ops.roi_resize import roi_resize
from mrcnn_tf.ops.static_graph import static_graph

VALID = [[True, False, True], [False, False, True]]
NO_ROWS = [[False, False, False], [False, False, False]]
STRIDES = (4, 8)
LEVEL_EPSILON = 1e-8


def there_and_back(is_valid, values):
    """Values through `GatherRows` and `ScatterRows`."""
    is_valid = tf.constant(is_valid)
    rows = FlattenRows()(is_valid)
    return rows, ScatterRows()(GatherRows()(values, rows), rows, is_valid)


def in_xla(function, *arguments):
    @tf.function(jit_compile=True)
    def compiled(*arguments):
        with static_graph():
            return function(*arguments)

    return compiled(*arguments)


@pytest.mark.parametrize(
    ("is_valid", "expected"),
    [(VALID, [0, 2, 5]), (NO_ROWS, [0]), ([[False, True], [True, True]], [1, 2, 3]), ([[True]], [0]), ([[False]], [0])],
)
def test_valid_rows_go_to_the_head_and_never_none(is_valid, expected):
    rows = FlattenRows()(tf.constant(is_valid))
    assert rows.dtype == tf.int32
    np.testing.assert_array_equal(rows, expected)


def test_all_rows_go_in_a_static_graph():
    with static_graph():
        np.testing.assert_array_equal(FlattenRows()(tf.constant(VALID)), range(6))


@pytest.mark.parametrize("is_valid", [VALID, NO_ROWS], ids=["some", "none"])
@pytest.mark.parametrize("tail", [(), (2,), (2, 3)])
def test_scatter_undoes_gather_and_empties_the_other_rows(is_valid, tail):
    values = np.random.default_rng(0).uniform(1, 2, (2, 3, *tail)).astype(np.float32)
    expected = values * np.reshape(is_valid, (2, 3, *[1] * len(tail)))
    np.testing.assert_array_equal(there_and_back(is_valid, tf.constant(values))[1], expected)
    np.testing.assert_array_equal(in_xla(lambda v: there_and_back(is_valid, v)[1], tf.constant(values)), expected)


def test_gather_takes_integers_too():
    classes = tf.constant([[3, 0, 1], [0, 0, 2]])
    found = GatherRows()(classes, FlattenRows()(classes > 0))
    assert found.dtype == tf.int32
    np.testing.assert_array_equal(found, [3, 1, 2])


def test_rows_work_in_a_functional_graph_of_unknown_batch():
    mask, table = keras.Input((3,), dtype="bool"), keras.Input((3, 2))
    rows = FlattenRows()(mask)
    model = keras.Model([mask, table], ScatterRows()(GatherRows()(table, rows), rows, mask))
    values = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    found = model([tf.constant(VALID), tf.constant(values)])
    np.testing.assert_array_equal(found, values * np.array(VALID)[..., None])


def pyramid(channels=3):
    random = np.random.default_rng(1)
    return [tf.constant(random.normal(size=(2, 64 // s, 64 // s, channels)).astype(np.float32)) for s in STRIDES]


def rois():
    boxes = [[[4, 4, 30, 20], [0, 0, 0, 0], [10, 2, 60, 62]], [[0, 0, 64, 64], [9, 9, 11, 12], [20, 30, 40, 50]]]
    return tf.constant(boxes, tf.float32)


def layer(kind):
    if kind == "pool":
        return RoiPool(3, strides=STRIDES, level_epsilon=LEVEL_EPSILON)
    if kind == "crop":
        return RoiResize(3, strides=STRIDES, inclusive=True, level_epsilon=LEVEL_EPSILON)
    return RoiAlign(3, strides=STRIDES, sampling_ratio=2, aligned=True, level_epsilon=LEVEL_EPSILON)


@pytest.mark.parametrize("kind", ["align", "pool", "crop"])
def test_pooling_takes_each_row_from_its_own_image(kind):
    rows = tf.constant([0, 2, 3])
    found = layer(kind)(pyramid(), rois(), rows)
    assert found.shape == (3, 3, 3, 3)
    arguments = (pyramid(), tf.gather(tf.reshape(rois(), [6, 4]), rows), tf.constant([0, 0, 1]))
    options = {"strides": STRIDES, "output_size": 3, "level_epsilon": LEVEL_EPSILON}
    if kind == "align":
        expected = roi_align(*arguments, **options, sampling_ratio=2, aligned=True)
    else:
        expected = roi_pool(*arguments, **options) if kind == "pool" else roi_resize(*arguments, **options, inclusive=True)
    np.testing.assert_array_equal(found, expected)
    # the images are not alike: a row taken from the other one would show
    assert np.abs(found - layer(kind)(pyramid(), tf.reverse(rois(), [0]), rows)).max() > 0.1


def test_the_smallest_size_is_handed_on():
    tiny = tf.constant([[[9, 9, 9.4, 9.2]]], tf.float32)
    options = {"strides": STRIDES, "sampling_ratio": 1, "aligned": False, "level_epsilon": 0.0}
    found = [RoiAlign(3, minimum_size=size, **options)(pyramid(), tiny, tf.constant([0])) for size in (0.0, 1.0)]
    spread = [np.ptp(bins, axis=(1, 2)).max() for bins in found]
    assert 0 < spread[0] < spread[1] / 2


def test_align_is_the_same_in_a_static_graph_under_xla():
    def pool():
        rows = FlattenRows()(tf.constant(VALID))
        return ScatterRows()(layer("align")(pyramid(), rois(), rows), rows, tf.constant(VALID))

    np.testing.assert_allclose(in_xla(pool), pool(), atol=1e-4)


@pytest.mark.parametrize(
    ("make", "options"),
    [(RoiPool, {}), (RoiResize, {"inclusive": False}), (RoiAlign, {"sampling_ratio": 2, "aligned": True})],
    ids=["pool", "crop", "align"],
)
def test_the_rounding_of_levels_reaches_the_layer(make, options):
    maps = [tf.fill(level.shape, float(index)) for index, level in enumerate(pyramid())]
    square = tf.constant([[[0, 0, 90, 90.0]]])  # P2 by the floor, P3 by the nearest

    def pool(rounding):
        pooling = make(1, strides=STRIDES, level_epsilon=0.0, level_rounding=rounding, **options)
        return float(pooling(maps, square, tf.constant([0]))[0, 0, 0, 0])

    assert (pool("floor"), pool("nearest")) == (0.0, 1.0)


@pytest.mark.parametrize("kind", ["align", "pool", "crop"])
def test_pooling_is_float32_under_mixed_precision(kind):
    features = [tf.cast(level, tf.bfloat16) for level in pyramid()]
    assert layer(kind)(features, rois(), tf.constant([0])).dtype == tf.float32
