"""Pooling by crop_and_resize, against a loop over the samples."""

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops.roi_resize import roi_resize
from mrcnn_tf.ops.static_graph import static_graph

STRIDES = (4, 8, 16)
SIDE, CHANNELS, SAMPLES = 96, 3, 4
ROIS = np.array(
    [[0, 0, 95, 95], [0, 0, 96, 96], [3, 5, 20, 50], [40, 30, 41, 90], [-8, 60, 30, 120], [50, 50, 50, 50], [10, 10, 80, 80]],
    np.float32,
)
BATCH_INDICES = np.array([0, 1, 0, 1, 1, 0, 1], np.int32)


def features():
    random = np.random.default_rng(2)
    return [random.normal(size=(2, SIDE // s, SIDE // s, CHANNELS)).astype(np.float32) for s in STRIDES]


def bilinear(feature, y, x):
    height, width, channels = feature.shape
    if not (0 <= y <= height - 1 and 0 <= x <= width - 1):
        return np.zeros(channels)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = feature[top, left] * (1 - (x - left)) + feature[top, right] * (x - left)
    lower = feature[bottom, left] * (1 - (x - left)) + feature[bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def reference(maps, extent, rounding):
    out = np.zeros((len(ROIS), SAMPLES, SAMPLES, CHANNELS))
    for index, (roi, image) in enumerate(zip(ROIS.astype(float), BATCH_INDICES, strict=True)):
        y1, x1, y2, x2 = roi / extent
        relative_size = np.sqrt((y2 - y1) * (x2 - x1)) * SIDE / 224
        level = int(rounding(4 + np.log2(max(relative_size, 1e-9)))) - 2
        feature = maps[min(max(level, 0), len(maps) - 1)][image]
        last = feature.shape[0] - 1
        for row, y in enumerate(np.linspace(y1 * last, y2 * last, SAMPLES)):
            for column, x in enumerate(np.linspace(x1 * last, x2 * last, SAMPLES)):
                out[index, row, column] = bilinear(feature, y, x)
    return out


@pytest.mark.parametrize(("level_rounding", "rounding"), [("floor", np.floor), ("nearest", np.round)])
@pytest.mark.parametrize(("inclusive", "extent"), [(True, SIDE - 1), (False, SIDE)])
def test_samples_equal_a_loop(level_rounding, rounding, inclusive, extent):
    options = {"strides": STRIDES, "output_size": SAMPLES, "inclusive": inclusive, "level_rounding": level_rounding}
    found = roi_resize(features(), ROIS, BATCH_INDICES, **options)
    assert found.dtype == tf.float32
    expected = reference(features(), extent, rounding)
    whole = 0 if inclusive else 1
    found, expected = found.numpy(), expected
    np.testing.assert_allclose(found, expected, atol=2e-4)
    # the whole input: its corners are the centres of the corner pixels
    level = 1 if level_rounding == "nearest" else 0
    np.testing.assert_allclose(found[whole, -1, -1], features()[level][BATCH_INDICES[whole], -1, -1], atol=1e-4)


def test_samples_on_the_last_pixel_are_not_lost_to_rounding():
    """The kernel alone answers a part of them with 0."""
    random = np.random.default_rng(4)
    starts = random.uniform(0, SIDE - 20, (500, 2)).astype(np.float32)
    rois = np.concatenate([starts, np.full((500, 2), SIDE - 1, np.float32)], axis=1)
    ones = [np.ones_like(m) for m in features()]
    found = roi_resize(ones, rois, np.zeros(500, np.int32), strides=STRIDES, output_size=7, inclusive=True)
    np.testing.assert_allclose(found, 1.0, atol=1e-5)
    alone = tf.image.crop_and_resize(ones[0], rois / np.float32(SIDE - 1), np.zeros(500, np.int32), [7, 7]).numpy()
    assert (alone == 0).any()


def test_the_gradient_spreads_a_sample_over_its_pixels():
    maps = [tf.constant(m) for m in features()]
    upstream = tf.constant(np.random.default_rng(3).normal(size=(len(ROIS), SAMPLES, SAMPLES, CHANNELS)).astype(np.float32))
    rois = tf.constant(ROIS)
    with tf.GradientTape() as tape:
        tape.watch([*maps, rois])
        pooled = roi_resize(maps, rois, BATCH_INDICES, strides=STRIDES, output_size=SAMPLES, inclusive=True)
        total = tf.reduce_sum(pooled * upstream)
    *gradients, of_rois = tape.gradient(total, [*maps, rois])
    assert of_rois is None
    # pooling is linear in the features: <gradient, features> is the pooled value itself
    found = sum(float(tf.reduce_sum(g * m)) for g, m in zip(gradients, maps, strict=True) if g is not None)
    np.testing.assert_allclose(found, float(total), rtol=1e-4)
    assert np.abs(gradients[0]).max() > 0


def test_no_rois_and_other_types():
    half = [tf.cast(m, tf.bfloat16) for m in features()]
    options = {"strides": STRIDES, "output_size": SAMPLES}
    assert roi_resize(half, ROIS[:0], BATCH_INDICES[:0], **options).shape == (0, SAMPLES, SAMPLES, CHANNELS)
    assert roi_resize(half, ROIS, BATCH_INDICES, **options).dtype == tf.float32


def test_wrong_strides_are_refused():
    with pytest.raises(ValueError, match="one stride for each feature map"):
        roi_resize(features(), ROIS, BATCH_INDICES, strides=STRIDES[:2], output_size=SAMPLES)


@pytest.mark.parametrize("inclusive", [True, False])
def test_gathers_give_the_same_under_xla_forward_and_gradient(inclusive):
    options = {"strides": STRIDES, "output_size": SAMPLES, "inclusive": inclusive}
    maps = [tf.constant(m) for m in features()]
    upstream = tf.constant(np.random.default_rng(5).normal(size=(len(ROIS), SAMPLES, SAMPLES, CHANNELS)).astype(np.float32))

    def pool(maps):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            pooled = roi_resize(maps, tf.constant(ROIS), tf.constant(BATCH_INDICES), **options)
        return pooled, tape.gradient(pooled, maps, upstream)

    @tf.function(jit_compile=True)
    def compiled(maps):
        with static_graph():
            return pool(maps)

    (expected, gradients), (found, found_gradients) = pool(maps), compiled(maps)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    for gradient, found_gradient in zip(gradients, found_gradients, strict=True):
        np.testing.assert_allclose(found_gradient, gradient, atol=1e-4)
