"""RoIPool against loops over the pixels of each bin."""

import math

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops.roi_pool import roi_pool
from mrcnn_tf.ops.static_graph import static_graph

STRIDES = (4, 8)
SHAPES = [(2, 24, 30, 3), (2, 12, 15, 3)]
BINS = 3
ROIS = np.array(
    [
        [10.0, 12.0, 50.0, 70.0],
        [0.0, 0.0, 1.0, 1.0],  # one pixel in every bin
        [30.0, 30.0, 30.0, 30.0],  # no area
        [2.0, 40.0, 90.0, 40.01],  # thin
        [96.0, 50.0, 96.0, 90.0],  # a line on the border
        [-60.0, -60.0, 60.0, 60.0],  # bins without pixels
        [0.0, 0.0, 96.0, 120.0],  # the whole image
        [5.9, 6.1, 17.9, 22.1],
        [200.0, 200.0, 240.0, 240.0],  # outside
        [0.0, 0.0, 120.0, 110.0],  # of the second level
    ],
    np.float32,
)
BATCH_INDICES = (np.arange(len(ROIS)) % 2).astype(np.int32)


def axis_bins(begin, end, limit):
    begin, end = math.floor(begin + 0.5), math.floor(end + 0.5)
    size = max(end - begin + 1, 1)
    cuts = [(begin + b * size // BINS, begin + math.ceil((b + 1) * size / BINS)) for b in range(BINS)]
    return [(min(max(a, 0), limit), min(max(z, 0), limit)) for a, z in cuts]


def reference(maps, upstream):
    out, gradients = np.zeros((len(ROIS), BINS, BINS, 3)), [np.zeros(m.shape) for m in maps]
    for n, (roi, image) in enumerate(zip(ROIS.astype(np.float64), BATCH_INDICES, strict=True)):
        level = int(math.sqrt((roi[2] - roi[0]) * (roi[3] - roi[1])) >= 112)
        pixels = maps[level][image]
        scaled = roi / STRIDES[level]
        for by, (y1, y2) in enumerate(axis_bins(scaled[0], scaled[2], pixels.shape[0])):
            for bx, (x1, x2) in enumerate(axis_bins(scaled[1], scaled[3], pixels.shape[1])):
                for c in range(3) if y2 > y1 and x2 > x1 else ():
                    window = pixels[y1:y2, x1:x2, c]
                    y, x = np.unravel_index(window.argmax(), window.shape)
                    out[n, by, bx, c] = window[y, x]
                    gradients[level][image, y1 + y, x1 + x, c] += upstream[n, by, bx, c]
    return out, gradients


def features(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, shape).astype(np.float32) for shape in SHAPES]


@tf.function(reduce_retracing=True)
def pool_and_gradient(maps, rois, batch_indices, upstream):
    with tf.GradientTape() as tape:
        tape.watch(maps)
        out = roi_pool(maps, rois, batch_indices, strides=STRIDES, output_size=BINS)
        total = tf.reduce_sum(out * upstream)
    return out, tape.gradient(total, maps)


@pytest.mark.parametrize("values", ["distinct", "ties"])
def test_equals_the_reference(values):
    maps = features() if values == "distinct" else [np.round(m) for m in features()]  # the gradient goes to the first maximum
    upstream = np.random.default_rng(1).uniform(-1, 1, (len(ROIS), BINS, BINS, 3)).astype(np.float32)
    out, gradients = pool_and_gradient([tf.constant(m) for m in maps], ROIS, BATCH_INDICES, tf.constant(upstream))
    expected, expected_gradients = reference(maps, upstream)
    np.testing.assert_array_equal(out, expected.astype(np.float32))
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_no_rois():
    maps = [tf.constant(m) for m in features()]
    out, gradients = pool_and_gradient(maps, ROIS[:0], BATCH_INDICES[:0], tf.zeros([0, BINS, BINS, 3]))
    assert out.shape == (0, BINS, BINS, 3)
    assert all(np.all(g == 0) for g in gradients)


def test_large_and_bfloat16_features():
    maps = [tf.cast(m * 1e30 - 2e30, tf.bfloat16) for m in features()]
    out = roi_pool(maps, ROIS, BATCH_INDICES, strides=STRIDES, output_size=BINS)
    assert out.dtype == tf.float32
    expected, _ = reference([tf.cast(m, tf.float32).numpy() for m in maps], np.zeros(out.shape))
    np.testing.assert_array_equal(out, expected.astype(np.float32))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="one stride for each feature map, got 2 maps"):
        roi_pool(features(), ROIS, BATCH_INDICES, strides=(4,), output_size=BINS)
    with static_graph(), pytest.raises(ValueError, match=r"RoIPool .* cannot run under XLA"):
        roi_pool(features(), ROIS, BATCH_INDICES, strides=STRIDES, output_size=BINS)
