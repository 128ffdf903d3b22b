"""ROIAlign against a reference in plain numpy that is written from the definition, sample by sample."""

import math

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops.roi_align import roi_align
from mrcnn_tf.ops.roi_geometry import assign_levels
from mrcnn_tf.ops.static_graph import static_graph

STRIDES = (4, 8, 16, 32)
HEIGHT, WIDTH = 160, 192  # of the input, pixels
IMAGES, CHANNELS = 2, 3
BINS = 3

ROIS = np.array(
    [
        [20.0, 30.0, 61.3, 90.7],  # interior
        [0.0, 0.0, 23.0, 17.0],  # upper left border
        [100.0, 120.0, HEIGHT, WIDTH],  # lower right border
        [50.0, 10.0, 50.01, 150.0],  # 0.01 px thin
        [3.0, 80.0, 158.0, 80.01],
        [40.0, 40.0, 40.0, 40.0],  # no area
        [0.0, 0.0, 0.0, 0.0],
        [HEIGHT, 20.0, HEIGHT, 60.0],  # a line on the border
        [0.0, 0.0, HEIGHT, WIDTH],  # the whole image
        [-40.0, -30.0, 100.0, 90.0],  # samples more than a pixel outside
        [60.0, 70.0, 300.0, 460.0],
        [10.3, 5.1, 150.2, 20.9],  # elongated
        [8.0, 8.0, 8.0 + 112.0, 8.0 + 112.0],  # exactly between two levels
        [16.5, 16.5, 40.5, 40.5],
    ],
    np.float32,
)
BATCH_INDICES = (np.arange(len(ROIS)) % IMAGES).astype(np.int32)


def features(seed=0, strides=STRIDES):
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, (IMAGES, HEIGHT // s, WIDTH // s, CHANNELS)).astype(np.float32) for s in strides]


def reference_level(roi):
    side = math.sqrt((roi[2] - roi[0]) * (roi[3] - roi[1]))
    return int(np.clip(math.floor(4 + math.log2(side / 224 + 1e-8)), 2, 5))


def axis_samples(begin, end, limit, bins, sampling_ratio, aligned, minimum_size):
    """For each bin a list of samples on one axis; a sample is a list of (pixel, weight)."""
    shift = 0.5 if aligned else 0.0
    begin, end = begin - shift, end - shift
    size = end - begin if aligned else max(end - begin, minimum_size)
    count = sampling_ratio or math.ceil(size / bins)
    return [[linear(begin + size / bins * (b + (i + 0.5) / count), limit) for i in range(count)] for b in range(bins)]


def linear(position, limit):
    if position < -1 or position > limit:
        return []
    position = min(max(position, 0.0), limit - 1.0)
    low = math.floor(position)
    fraction = position - low
    return [(low, 1 - fraction), (min(low + 1, limit - 1), fraction)]


def reference_weights(rois, batch_indices, shapes, strides, sampling_ratio, aligned, minimum_size=1.0, bins=BINS):
    """[(roi, bin y, bin x, level, image, pixel y, pixel x, weight)] of everything that a bin sums up."""
    entries = []
    for n, roi in enumerate(rois.astype(np.float64)):
        level = reference_level(roi) - 2 if len(strides) > 1 else 0
        height, width = shapes[level][1:3]
        scaled = roi / strides[level]
        how = (bins, sampling_ratio, aligned, minimum_size)
        rows = axis_samples(scaled[0], scaled[2], height, *how)
        columns = axis_samples(scaled[1], scaled[3], width, *how)
        for by in range(bins):
            for bx in range(bins):
                share = 1 / max(len(rows[by]) * len(columns[bx]), 1)
                entries += [
                    (n, by, bx, level, batch_indices[n], y, x, wy * wx * share)
                    for row in rows[by]
                    for column in columns[bx]
                    for y, wy in row
                    for x, wx in column
                ]
    return entries


def reference_forward(entries, maps, num_rois, bins=BINS):
    out = np.zeros((num_rois, bins, bins, maps[0].shape[-1]))
    for n, by, bx, level, image, y, x, weight in entries:
        out[n, by, bx] += weight * maps[level][image, y, x]
    return out


def reference_gradient(entries, maps, upstream):
    gradients = [np.zeros(m.shape) for m in maps]
    for n, by, bx, level, image, y, x, weight in entries:
        gradients[level][image, y, x] += weight * upstream[n, by, bx]
    return gradients


def crop(function):
    return tf.function(function)


def static(function, jit_compile=None):
    def traced(*arguments):
        with static_graph():
            return function(*arguments)

    return tf.function(traced, jit_compile=jit_compile)


def jit(function):
    return static(function, jit_compile=True)


def forward_and_gradient(body, maps, rois, batch_indices, upstream, **options):
    def step(*maps):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            out = roi_align(maps, tf.constant(rois), tf.constant(batch_indices), output_size=BINS, **options)
            total = tf.reduce_sum(out * upstream)
        return out, tape.gradient(total, maps)

    out, gradients = body(step)(*[tf.constant(m) for m in maps])
    return out.numpy(), [g.numpy() for g in gradients]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    ("body", "sampling_ratio", "tolerance"),
    [
        (crop, 0, 1e-5),
        (crop, 1, 1e-5),
        (crop, 2, 1e-5),
        (crop, 4, 1e-5),
        (static, 1, 1e-4),
        (static, 2, 1e-4),
        (static, 4, 1e-4),
        (jit, 2, 1e-4),
    ],
)
def test_equals_the_reference(body, sampling_ratio, tolerance, aligned):
    maps = features()
    upstream = np.random.default_rng(1).uniform(-1, 1, (len(ROIS), BINS, BINS, CHANNELS)).astype(np.float32)
    options = {"strides": STRIDES, "sampling_ratio": sampling_ratio, "aligned": aligned}
    out, gradients = forward_and_gradient(body, maps, ROIS, BATCH_INDICES, upstream, **options)

    entries = reference_weights(ROIS, BATCH_INDICES, [m.shape for m in maps], **options)
    assert {e[3] for e in entries} == {0, 1, 2}  # no roi here is large enough for the fourth map
    np.testing.assert_allclose(out, reference_forward(entries, maps, len(ROIS)), atol=tolerance)
    for got, expected in zip(gradients, reference_gradient(entries, maps, upstream), strict=True):
        np.testing.assert_allclose(got, expected, atol=10 * tolerance)  # sums over many rois


@pytest.mark.parametrize("minimum_size", [0.0, 3.0])
@pytest.mark.parametrize(("body", "sampling_ratio"), [(crop, 0), (crop, 1), (static, 1), (jit, 2)])
def test_smallest_size_of_what_is_not_aligned(body, sampling_ratio, minimum_size):
    maps = features()
    upstream = np.random.default_rng(1).uniform(-1, 1, (len(ROIS), BINS, BINS, CHANNELS)).astype(np.float32)
    options = {"strides": STRIDES, "sampling_ratio": sampling_ratio, "aligned": False, "minimum_size": minimum_size}
    out, gradients = forward_and_gradient(body, maps, ROIS, BATCH_INDICES, upstream, **options)
    entries = reference_weights(ROIS, BATCH_INDICES, [m.shape for m in maps], **options)
    np.testing.assert_allclose(out, reference_forward(entries, maps, len(ROIS)), atol=1e-4)
    for got, expected in zip(gradients, reference_gradient(entries, maps, upstream), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-3)
    of_one_pixel = reference_weights(ROIS, BATCH_INDICES, [m.shape for m in maps], **{**options, "minimum_size": 1.0})
    assert np.abs(out - reference_forward(of_one_pixel, maps, len(ROIS))).max() > 0.1


@pytest.mark.parametrize("body", [crop, static])
@pytest.mark.parametrize("aligned", [True, False])
def test_one_level(body, aligned):
    maps = features(strides=(16,))
    upstream = np.ones((len(ROIS), BINS, BINS, CHANNELS), np.float32)
    options = {"strides": (16,), "sampling_ratio": 2, "aligned": aligned}
    out, gradients = forward_and_gradient(body, maps, ROIS, BATCH_INDICES, upstream, **options)
    entries = reference_weights(ROIS, BATCH_INDICES, [maps[0].shape], **options)
    np.testing.assert_allclose(out, reference_forward(entries, maps, len(ROIS)), atol=1e-5)
    np.testing.assert_allclose(gradients[0], reference_gradient(entries, maps, upstream)[0], atol=1e-4)


@pytest.mark.parametrize(("body", "sampling_ratio"), [(crop, 2), (crop, 0), (static, 2)])
def test_ramp_gives_the_ramp(body, sampling_ratio):
    y, x = np.meshgrid(np.arange(HEIGHT // 4) + 0.5, np.arange(WIDTH // 4) + 0.5, indexing="ij")
    ramp = (0.02 * y - 0.03 * x)[None, :, :, None].astype(np.float32)  # value at the continuous feature position
    rois = np.array([[20, 30, 60, 90], [40.5, 12.25, 44.0, 101.0]], np.float32)
    out = body(
        lambda m: roi_align([m], rois, tf.zeros([2], tf.int32), strides=(4,), output_size=5, sampling_ratio=sampling_ratio)
    )(ramp)
    for roi, bins in zip(rois / 4, out.numpy(), strict=True):
        centres = (np.arange(5) + 0.5) / 5
        cy, cx = roi[0] + centres * (roi[2] - roi[0]), roi[1] + centres * (roi[3] - roi[1])
        np.testing.assert_allclose(bins[..., 0], 0.02 * cy[:, None] - 0.03 * cx[None], atol=1e-5)


@pytest.mark.parametrize(("body", "sampling_ratio"), [(crop, 2), (crop, 0), (static, 2)])
def test_no_rois(body, sampling_ratio):
    upstream = np.zeros((0, BINS, BINS, CHANNELS), np.float32)
    options = {"strides": STRIDES, "sampling_ratio": sampling_ratio}
    out, gradients = forward_and_gradient(body, features(), ROIS[:0], BATCH_INDICES[:0], upstream, **options)
    assert out.shape == (0, BINS, BINS, CHANNELS)
    assert all(np.all(g == 0) for g in gradients)


@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_dynamic_shapes_in_one_trace(sampling_ratio):
    maps = features()
    traces = []

    @tf.function(
        input_signature=[
            [tf.TensorSpec([None, None, None, CHANNELS])] * 4,
            tf.TensorSpec([None, 4]),
            tf.TensorSpec([None], tf.int32),
        ]
    )
    def step(maps, rois, batch_indices):
        traces.append(1)
        with tf.GradientTape() as tape:
            tape.watch(maps)
            out = roi_align(maps, rois, batch_indices, strides=STRIDES, output_size=BINS, sampling_ratio=sampling_ratio)
            total = tf.reduce_sum(out)
        return out, tape.gradient(total, maps)

    whole, gradients = step(maps, ROIS, BATCH_INDICES)
    parts = [step(maps, ROIS[s], BATCH_INDICES[s]) for s in (slice(0, 5), slice(5, None))]
    np.testing.assert_allclose(whole, np.concatenate([p[0] for p in parts]), atol=1e-6)
    for level, gradient in enumerate(gradients):
        np.testing.assert_allclose(gradient, parts[0][1][level] + parts[1][1][level], atol=1e-5)
    assert len(traces) == 1


def test_gradient_is_the_same_each_time():
    """Many rois on the same pixels: threads that add without a lock, or in any order, would give another sum."""
    rng = np.random.default_rng(2)
    corner = rng.uniform(0, 20, (300, 2))
    rois = np.concatenate([corner, corner + 40], axis=1).astype(np.float32)
    maps = [tf.constant(rng.uniform(size=(1, 32, 32, 64)), tf.float32)]

    @tf.function
    def gradient(weights=1.0):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            pooled = roi_align(maps, rois, tf.zeros([300], tf.int32), strides=(4,), output_size=7)
        return tape.gradient(pooled, maps, output_gradients=weights * tf.ones_like(pooled))[0]

    first = gradient().numpy()
    assert first.sum() == pytest.approx(300 * 49 * 64, rel=1e-5)  # no sample is outside: every bin's weights sum to 1
    weights = tf.constant(rng.normal(size=(300, 7, 7, 64)), tf.float32)
    first = gradient(weights).numpy()
    assert all(np.array_equal(first, gradient(weights)) for _ in range(20))


@pytest.mark.parametrize("body", [crop, static])
def test_bfloat16_features_are_computed_with_in_float32(body):
    half = [tf.cast(m, tf.bfloat16) for m in features()]

    def align(*maps):
        return roi_align(maps, ROIS, BATCH_INDICES, strides=STRIDES, output_size=BINS)

    out = body(align)(*half)
    assert out.dtype == tf.float32
    np.testing.assert_array_equal(out, body(align)(*[tf.cast(m, tf.float32) for m in half]))


@pytest.mark.parametrize(("body", "sampling_ratio"), [(crop, 2), (crop, 0), (static, 2)])
def test_no_gradient_to_the_rois(body, sampling_ratio):
    def step(rois, *maps):
        with tf.GradientTape() as tape:
            tape.watch(rois)
            out = roi_align(maps, rois, BATCH_INDICES, strides=STRIDES, output_size=BINS, sampling_ratio=sampling_ratio)
        return tape.gradient(out, rois) is None

    assert body(step)(tf.constant(ROIS), *features())


@pytest.mark.parametrize(("body", "sampling_ratio"), [(crop, 0), (static, 2), (jit, 2)])  # crop_and_resize raises
def test_nan_rois_do_not_disturb_others(body, sampling_ratio):
    rois = ROIS.copy()
    rois[4] = np.nan
    upstream = np.ones((len(ROIS), BINS, BINS, CHANNELS), np.float32)
    options = {"strides": STRIDES, "sampling_ratio": sampling_ratio}
    out, gradients = forward_and_gradient(body, features(), rois, BATCH_INDICES, upstream, **options)
    others = np.arange(len(ROIS)) != 4
    expected = forward_and_gradient(body, features(), ROIS[others], BATCH_INDICES[others], upstream[others], **options)
    np.testing.assert_allclose(out[others], expected[0], atol=1e-6)
    for got, wanted in zip(gradients, expected[1], strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_elongated_rois_are_cheap():
    """Adaptive sampling takes as many samples as the roi has pixels, on each axis by itself."""
    rois = np.tile(np.array([[0.0, 0.0, 1.0, 1300.0]], np.float32), (200, 1))
    maps = [np.ones((1, 1, 1400 // 4, 32), np.float32)]
    out = roi_align(maps, rois, np.zeros(200, np.int32), strides=(4,), output_size=7, sampling_ratio=0)
    np.testing.assert_allclose(out, 1.0, atol=1e-5)


def test_levels():
    sides = np.array([0.0, 1.0, 111.99, 112.0, 223.9, 224.0, 447.9, 448.0, 5000.0], np.float32)
    rois = np.stack([np.zeros_like(sides), np.ones_like(sides), sides, sides + 1], axis=1)
    levels = assign_levels(rois, min_level=2, max_level=5)
    np.testing.assert_array_equal(levels, [2, 2, 2, 3, 3, 4, 4, 5, 5])
    np.testing.assert_array_equal(assign_levels(rois, min_level=4, max_level=4), [4] * 9)
    large = np.array([[0.0, 0.0, 895.9, 895.9], [0.0, 0.0, 896.0, 896.0]], np.float32)
    np.testing.assert_array_equal(assign_levels(large, min_level=2, max_level=6, epsilon=0.0), [5, 6])
    assert assign_levels(rois[:0], min_level=2, max_level=5).shape == (0,)
    just_below = np.array([[0.0, 0.0, 223.9999, 223.9999]], np.float32)
    assert assign_levels(just_below, min_level=2, max_level=5).numpy() == [3]
    assert assign_levels(just_below, min_level=2, max_level=5, epsilon=1e-5).numpy() == [4]


def test_levels_of_the_nearest_power_of_two():
    """Borders at half an octave: round(4 + log2(size / 224)), as matterport has it."""
    sides = np.array([0.0, 40.0, 79.1, 79.3, 158.3, 158.5, 224.0, 316.7, 316.9, 9000.0], np.float32)
    rois = np.stack([np.zeros_like(sides), np.ones_like(sides), sides, sides + 1], axis=1)
    levels = assign_levels(rois, min_level=2, max_level=5, epsilon=0.0, rounding="nearest")
    expected = np.clip(np.round(4 + np.log2(np.maximum(sides, 1e-6) / 224)), 2, 5)
    np.testing.assert_array_equal(levels, expected)
    np.testing.assert_array_equal(levels, [2, 2, 2, 3, 3, 4, 4, 4, 5, 5])


def test_the_rounding_of_levels_reaches_the_pooled_features():
    rois = np.array([[0.0, 0.0, 90.0, 90.0]], np.float32)  # P2 by the floor, P3 by the nearest
    maps = [np.full_like(m, level) for level, m in enumerate(features())]
    for body in (crop, static):
        for rounding, value in (("floor", 0.0), ("nearest", 1.0)):

            def align(*maps, rounding=rounding):
                return roi_align(maps, rois, np.zeros(1, np.int32), strides=STRIDES, output_size=BINS, level_rounding=rounding)

            np.testing.assert_allclose(body(align)(*maps), value, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": (4, 8)}, "one stride for each feature map, got 4 maps"),
        ({"strides": (4, 8, 16, 48)}, "consecutive powers of two"),
        ({"strides": (32, 16, 8, 4)}, "consecutive powers of two"),
        ({"strides": STRIDES, "output_size": 0}, "output_size must be at least 1, got 0"),
        ({"strides": STRIDES, "sampling_ratio": -1}, "sampling_ratio must be 0"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        roi_align(features(), ROIS, BATCH_INDICES, **{"output_size": BINS, **options})


def test_adaptive_sampling_is_refused_in_a_static_graph():
    with static_graph(), pytest.raises(ValueError, match="sampling_ratio=0"):
        roi_align(features(), ROIS, BATCH_INDICES, strides=STRIDES, output_size=BINS, sampling_ratio=0)


def test_xla_compiles_maps_whose_size_it_learns_later():
    """As batches of several padded sizes have it: one trace, compiled for each size, with the numbers of static shapes."""
    random = np.random.default_rng(0)
    rois = tf.constant([[1.0, 2.0, 20.0, 30.0], [0.0, 0.0, 60.0, 40.0]])

    def pooled(fine, coarse):
        return roi_align([fine, coarse], rois, tf.constant([0, 0]), strides=(4, 8), output_size=3)

    any_size = tf.TensorSpec([1, None, None, 2], tf.float32)
    traced = jit(pooled).get_concrete_function(any_size, any_size)
    for height, width in ((16, 24), (24, 16)):
        sizes = ((height, width), (height // 2, width // 2))
        maps = [tf.constant(random.normal(size=(1, *size, 2)), tf.float32) for size in sizes]
        np.testing.assert_allclose(traced(*maps), jit(pooled)(*maps), atol=1e-6)
