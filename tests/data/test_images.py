import numpy as np
import pytest
from PIL import Image

from mrcnn_tf.data.images import ImageError, encoded_image, image_paths, load_image


@pytest.fixture
def rgb():
    rows, columns = np.mgrid[0:6, 0:8]
    return np.stack([rows * 40, columns * 30, rows * 10 + columns * 10], axis=2).astype(np.uint8)


def test_png_and_bmp_are_exact(tmp_path, rgb):
    for name in ("a.png", "a.bmp", "a.tif"):
        Image.fromarray(rgb).save(tmp_path / name)
        loaded = load_image(tmp_path / name)
        assert loaded.dtype == np.uint8
        np.testing.assert_array_equal(loaded, rgb)


def test_jpeg_and_cmyk_are_near(tmp_path):
    colour = np.full((16, 16, 3), (200, 80, 40), np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    for name in ("a.jpg", "cmyk.jpg"):
        np.testing.assert_allclose(load_image(tmp_path / name), colour, atol=4)


def test_grey_is_repeated_and_alpha_dropped(tmp_path, rgb):
    grey, alpha = rgb[:, :, 0], rgb[:, :, 1]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([grey, alpha]), "LA").save(tmp_path / "la.png")
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png"), np.dstack([grey] * 3))
    np.testing.assert_array_equal(load_image(tmp_path / "la.png"), np.dstack([grey] * 3))
    np.testing.assert_array_equal(load_image(tmp_path / "rgba.png"), rgb)


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "p.png", transparency=bytes([0, 128]))
    np.testing.assert_array_equal(load_image(tmp_path / "p.png"), [[[255, 0, 0], [0, 0, 255]]])


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    deep = np.array([[0, 257, 128 * 257, 65535, 128, 129]], np.uint16)
    Image.fromarray(deep).save(tmp_path / name)
    np.testing.assert_array_equal(load_image(tmp_path / name)[0, :, 0], [0, 1, 128, 255, 0, 1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, rgb, orientation):
    # How a viewer turns the stored pixels, by the EXIF standard.
    turned = [
        rgb,
        rgb[:, ::-1],
        rgb[::-1, ::-1],
        rgb[::-1],
        rgb.transpose(1, 0, 2),
        np.rot90(rgb, -1),
        rgb[::-1, ::-1].transpose(1, 0, 2),
        np.rot90(rgb, 1),
    ]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), turned[orientation - 1])


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


def test_faults_name_the_file(tmp_path, rgb):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for suffix in ("png", "jpg"):
        Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.png", "cut.jpg", "text.png", "empty.png", "missing.png"):
        with pytest.raises(ImageError, match=name):
            load_image(tmp_path / name)


def test_values_without_a_known_white_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(ImageError, match=r"float\.tif.*floating"):
        load_image(tmp_path / "float.tif")
    with pytest.raises(ImageError, match=r"deep\.tif.*70000"):
        load_image(tmp_path / "deep.tif")


def test_image_paths_expand_files_folders_and_patterns(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", "c[1].png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.png").write_bytes(b"")
    assert [p.name for p in image_paths([tmp_path])] == ["a.JPG", "b.png", "c[1].png"]
    assert [p.name for p in image_paths([str(tmp_path / "*.png"), tmp_path / "b.png"])] == ["b.png", "c[1].png"]
    assert [p.name for p in image_paths([tmp_path / "c[1].png"])] == ["c[1].png"]
    assert image_paths([tmp_path / "missing.png"]) == [tmp_path / "missing.png"]


def test_image_paths_say_when_nothing_matches(tmp_path):
    for arguments in ([], [tmp_path], [tmp_path / "*.png"]):
        with pytest.raises(ImageError, match="image"):
            image_paths(arguments)


def test_a_picture_as_a_server_takes_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
        assert encoded_image(tmp_path / name) == (tmp_path / name).read_bytes()
    Image.fromarray(pixels).save(tmp_path / "a.tiff")
    (tmp_path / "b.png").write_bytes(encoded_image(tmp_path / "a.tiff"))
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    np.testing.assert_array_equal(load_image(tmp_path / "b.png"), pixels)
    (tmp_path / "c.gif").write_bytes(b"nothing")
    for name in ("c.gif", "missing.jpg"):
        with pytest.raises(ImageError, match=name.replace(".", r"\.")):
            encoded_image(tmp_path / name)
