from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mrcnn_tf.ops.images import image_window, pad_image, resize_image, resize_window, resized_size, resized_size_tensor
from tests.parity.seeded import image as seeded_image

PHOTOS = sorted((Path(__file__).parent.parent / "data_files" / "photos").glob("*.jpg"))
PARITY = Path(__file__).parent.parent / "parity"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # detectron2's usual COCO image
        ((640, 480), (1067, 800)),
        ((300, 1000), (400, 1333)),  # the longest edge decides
        ((800, 1333), (800, 1333)),
        ((1, 1), (800, 800)),
        ((1, 4000), (1, 1333)),
    ],
)
def test_resized_size_follows_the_rule(size, expected):
    assert resized_size(*size, min_size=800, max_size=1333) == expected


@pytest.mark.parametrize(
    ("rounding", "size", "expected"),
    [
        ("floor", (480, 640), (800, 1066)),  # 1066.67
        ("half_up", (480, 640), (800, 1067)),
        ("half_even", (480, 640), (800, 1067)),
        ("floor", (300, 1000), (399, 1333)),  # 399.9
        ("half_even", (1024, 1280), (800, 1000)),
        ("half_up", (64, 65), (800, 813)),  # 812.5
        ("half_even", (64, 65), (800, 812)),
        ("floor", (64, 65), (800, 812)),
        ("half_even", (1000, 3000), (444, 1333)),
        ("half_even", (600, 999), (800, 1332)),
        ("half_even", (600, 1000), (800, 1333)),  # 1333.33 becomes 1333, which is not above the bound
    ],
)
def test_each_rounding_has_its_own_sizes(rounding, size, expected):
    assert resized_size(*size, min_size=800, max_size=1333, rounding=rounding) == expected
    assert resized_size(*size[::-1], min_size=800, max_size=1333, rounding=rounding) == expected[::-1]


def test_the_sizes_of_torchvision_are_those_of_its_fixture():
    fixture = np.load(PARITY / "torchvision_v1_resized.npz")
    size = resized_size(250, 333, min_size=320, max_size=480, rounding="floor")
    assert size == tuple(fixture["resized_hw"])
    assert tuple(-(-side // 32) * 32 for side in size) == tuple(fixture["padded_shape"][2:])


def test_the_longest_edge_fills_model_gardens_square():
    """min_size and max_size alike: the scale is that of the longest edge, and the other is rounded half to even."""
    random = np.random.default_rng(3)
    for height, width in random.integers(1, 3000, (200, 2)).tolist():
        scale = 1024 / max(height, width)
        expected = tuple(max(1, round(side * scale)) for side in (height, width))
        assert resized_size(height, width, min_size=1024, max_size=1024, rounding="half_even") == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (768, 1024)),  # enlarged to 800 x 1067, then cut down
        ((900, 1000), (900, 1000)),  # left alone
        ((900, 1600), (576, 1024)),  # shrunk to the bound
        ((400, 400), (800, 800)),
    ],
)
def test_matterport_shrinks_to_the_longest_edge_only(size, expected):
    given = {"min_size": 800, "max_size": 1024, "rounding": "half_even", "enlarge_only": True}
    assert resized_size(*size, **given) == expected


@pytest.mark.parametrize("enlarge_only", [False, True])
@pytest.mark.parametrize("rounding", ["half_up", "floor", "half_even"])
def test_python_and_tensor_sizes_agree(rounding, enlarge_only):
    random = np.random.default_rng(0)
    sizes = random.integers(1, 3000, (100, 2))
    bounds = random.integers(1, 1500, (100, 2))
    rule = {"rounding": rounding, "enlarge_only": enlarge_only}
    for (height, width), (low, more) in zip(sizes.tolist(), bounds.tolist(), strict=True):
        expected = resized_size(height, width, min_size=low, max_size=low + more, **rule)
        got = resized_size_tensor(tf.constant(height), tf.constant(width), min_size=low, max_size=low + more, **rule)
        assert got.dtype == tf.int32
        assert tuple(got.numpy()) == expected
        assert max(expected) <= low + more
        assert min(expected) >= 1


def test_tensor_sizes_work_in_a_graph():
    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)] * 2)
    def size(height, width):
        return resized_size_tensor(height, width, min_size=800, max_size=1024, rounding="half_even", enlarge_only=True)

    assert size(tf.constant(480), tf.constant(640)).numpy().tolist() == [768, 1024]


def test_resized_size_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"\(0, 5\)"):
        resized_size(0, 5, min_size=8, max_size=9)


@pytest.mark.parametrize("quantize", [True, False])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_to_the_same_size_changes_nothing_but_the_type(antialias, dtype, quantize):
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(dtype)
    resized = resize_image(tf.constant(image), (7, 5), antialias=antialias, quantize=quantize)
    assert resized.dtype == tf.float32
    np.testing.assert_array_equal(resized, image)


def test_resize_keeps_a_ramp_at_half_pixel_centres():
    ramp = np.tile((np.arange(8, dtype=np.float32) + 0.5)[None, :, None], (8, 1, 3))
    resized = resize_image(tf.constant(ramp), (8, 16), antialias=False).numpy()
    np.testing.assert_allclose(resized[0, 1:-1, 0], (np.arange(16)[1:-1] + 0.5) / 2, atol=1e-5)


def test_antialias_averages_where_plain_bilinear_skips():
    stripes = np.zeros((16, 16, 3), np.float32)
    stripes[:, ::4] = 255
    smooth = resize_image(tf.constant(stripes), (4, 4), antialias=True).numpy()
    plain = resize_image(tf.constant(stripes), (4, 4), antialias=False).numpy()
    assert abs(smooth[:, 1:-1].mean() - 255 / 4) < 12
    assert abs(plain[:, 1:-1].mean() - 255 / 4) > 30


@pytest.mark.parametrize("quantize", [True, False])
@pytest.mark.parametrize("antialias", [True, False])
def test_one_pixel_can_grow_and_images_can_shrink_to_one_pixel(antialias, quantize):
    how = {"antialias": antialias, "quantize": quantize}
    pixel = tf.constant([[[10, 20, 30]]], tf.uint8)
    np.testing.assert_allclose(resize_image(pixel, (4, 6), **how), np.tile([[[10.0, 20, 30]]], (4, 6, 1)))
    assert resize_image(tf.zeros([9, 5, 3]), (1, 1), **how).shape == (1, 1, 3)


def pictures():
    """Real, smooth and noisy ones, with odd sides, a single row and a single pixel."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:211, :157]
    smooth = np.stack([127 + 120 * np.sin(x / 20), 127 + 120 * np.cos(y / 31), (x + y) / 2], axis=-1).astype(np.uint8)
    for path in PHOTOS:
        yield pytest.param(np.asarray(Image.open(path).convert("RGB")), id=path.stem)
    yield pytest.param(smooth, id="smooth")
    for size in [(123, 201), (1, 57), (57, 1), (1, 1)]:
        yield pytest.param(random.integers(0, 256, (*size, 3)).astype(np.uint8), id=f"noise {size}")


def by_pillow(image, size):
    """Pillow's resize, across and then down: in one call Pillow 13 may take the other order."""
    across = Image.fromarray(image).resize((size[1], image.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(across.resize((size[1], size[0]), Image.Resampling.BILINEAR)).astype(int)


@pytest.mark.parametrize("image", pictures())
def test_quantized_resizing_is_pillows(image):
    height, width = image.shape[:2]
    halves, doubles = (-(-height // 2), -(-width // 2)), (2 * height, 2 * width)
    different = total = 0
    for size in [(800, 1067), (97, 131), (1, 1), (3, 500), halves, doubles, (height, -(-width // 3)), (3 * height, width)]:
        resized = resize_image(tf.constant(image), size, antialias=True, quantize=True).numpy()
        assert np.array_equal(resized, np.round(resized))
        at_once = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(resized - at_once).max() <= 1
        difference = np.abs(resized - by_pillow(image, size))
        assert difference.max() <= 1
        different, total = different + np.count_nonzero(difference), total + difference.size
    # Pillow's weights have 22 bits: now and then a sum close to a half goes the other way.
    assert different <= 2e-3 * total


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(30, 41), (97, 61), (64, 20), (19, 131), (1, 1)])
def test_quantized_resizing_gives_the_numbers_of_tensorflows_own(antialias, size):
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (64, 61, 3)).astype(np.float32))
    how = {"method": "bilinear", "antialias": antialias}
    across = tf.floor(tf.image.resize(image, (64, size[1]), **how) + 0.5)
    expected = tf.floor(tf.image.resize(across, size, **how) + 0.5)
    np.testing.assert_array_equal(resize_image(image, size, antialias=antialias, quantize=True), expected)


def test_quantized_resizing_rounds_half_up_and_twice():
    pair = tf.constant([[[0] * 3, [2] * 3, [2] * 3, [1] * 3]], tf.uint8)
    assert resize_image(pair, (1, 2), antialias=False, quantize=True).numpy()[0, :, 0].tolist() == [1, 2]
    # 0.5 becomes 1 across, and again down; once rounded, 0.25 would have been 0.
    corner = tf.constant([[[0] * 3, [1] * 3], [[0] * 3, [0] * 3]], tf.uint8)
    assert resize_image(corner, (1, 1), antialias=True, quantize=True).numpy().ravel().tolist() == [1, 1, 1]


def test_resizing_floats_and_normalising_after_is_torchvisions_input():
    expected = np.load(PARITY / "torchvision_v1_resized.npz")["input"]
    resized = resize_image(tf.constant(seeded_image(14, 250, 333)), (320, 426), antialias=False)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    padded = pad_image((resized / 255.0 - mean) / deviation, (320, 448)).numpy()
    strided = np.moveaxis(padded[::8, ::8], -1, 0)[None]
    assert np.abs(strided - expected).max() < 1e-5


@pytest.mark.parametrize(("placement", "top", "left"), [("top_left", 0, 0), ("centre", 1, 0)])
def test_pad_puts_zeros_around_the_image(placement, top, left):
    image = tf.fill([2, 4, 3], tf.constant(7, tf.uint8))
    padded = pad_image(image, (5, 5), placement).numpy()
    assert padded.dtype == np.uint8
    assert padded.shape == (5, 5, 3)
    assert padded[top : top + 2, left : left + 4].min() == 7
    assert padded.sum() == image.numpy().sum()
    np.testing.assert_array_equal(pad_image(image, tf.constant([5, 5]), placement), padded)
    window = image_window(tf.constant([2, 4]), (5, 5), placement)
    assert window.numpy().tolist() == [top, left, top + 2, left + 4]


@pytest.mark.parametrize("placement", ["top_left", "centre"])
def test_an_image_that_fills_its_padding_is_left_alone(placement):
    image = tf.random.stateless_uniform([4, 3, 3], [0, 1])
    np.testing.assert_array_equal(pad_image(image, (4, 3), placement), image)


@pytest.mark.parametrize("placement", ["top_left", "centre"])
def test_padded_shape_is_static_in_a_graph(placement):
    @tf.function(input_signature=[tf.TensorSpec([None, None, 3])])
    def pad(image):
        padded = pad_image(image, (64, 32), placement)
        assert padded.shape == (64, 32, 3)
        return padded

    assert pad(tf.ones([5, 6, 3])).numpy().sum() == 90


@pytest.mark.parametrize("quantize", [True, False])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(80, 91), (17, 100), (37, 53), (1, 1)])
def test_a_window_is_that_part_of_the_resized_image(size, antialias, quantize):
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (37, 53, 3)), tf.uint8)
    how = {"antialias": antialias, "quantize": quantize}
    whole = resize_image(image, size, **how).numpy()
    found = resize_window(image, tf.constant(size), tf.constant([0, 0, *size]), **how).numpy()
    if quantize or not antialias:
        np.testing.assert_array_equal(found, whole)
    np.testing.assert_allclose(found, whole, atol=1e-3)
    top, left, bottom, right = (int(side * part) for side, part in zip(size * 2, (0.3, 0.2, 0.9, 0.7), strict=True))
    bottom, right = max(bottom, top + 1), max(right, left + 1)
    part = resize_window(image, tf.constant(size), tf.constant([top, left, bottom, right]), **how).numpy()
    difference = np.abs(part - whole[top:bottom, left:right])
    assert difference.max() <= (1 if quantize else 0.02)
    assert (difference > 0.02).mean() < 0.01
