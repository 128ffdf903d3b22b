"""Decoding inside a graph against Pillow, pixel by pixel, and what is said of broken pictures."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mrcnn_tf.data.images import load_image
from mrcnn_tf.ops.decode import MAX_PIXELS, decode_picture
from mrcnn_tf.ops.picture_headers import JPEG, PNG, read_header


@pytest.fixture(scope="module")
def decode():
    return tf.function(decode_picture, input_signature=[tf.TensorSpec([], tf.string)])


@pytest.fixture(scope="module")
def header_of():
    read = tf.function(read_header, input_signature=[tf.TensorSpec([], tf.string)])
    return lambda data: tuple(int(value) for value in read(data))


@pytest.fixture(scope="module")
def picture():
    """A smooth picture with some grain, 53 x 37, no axis of symmetry."""
    rows, columns = np.mgrid[0:53, 0:37]
    channels = [3 * rows, 5 * columns, rows + 2 * columns]
    grain = np.random.default_rng(0).integers(0, 20, (53, 37, 3))
    return Image.fromarray((np.stack(channels, axis=-1) + grain).clip(0, 255).astype(np.uint8))


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pillow(data, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(data)
    return load_image(path)


def assert_alike(decode, data, tmp_path):
    image, error = decode(data)
    assert error.numpy() == b""
    np.testing.assert_array_equal(image, by_pillow(data, tmp_path))


def with_orientation(value, *, order="II", kind=3, count=1, before=()):
    """The EXIF block with that entry, behind others."""
    entries = [(tag, 2, 4, b"abc\0") for tag in before]
    number = struct.pack({1: "<B", 3: "<H", 4: "<I"}[kind] if order == "II" else {1: ">B", 3: ">H", 4: ">I"}[kind], value)
    entries.append((0x0112, kind, count, number.ljust(4, b"\0")))
    mark = "<" if order == "II" else ">"
    directory = struct.pack(f"{mark}H", len(entries))
    directory += b"".join(struct.pack(f"{mark}HHI", *entry[:3]) + entry[3] for entry in entries)
    return order.encode() + struct.pack(f"{mark}HI", 42, 8) + directory + bytes(4)


@pytest.mark.parametrize("options", [{}, {"quality": 95, "subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(mode, options, decode, picture, tmp_path):
    assert_alike(decode, encoded(picture.convert(mode), "JPEG", **options), tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1"])
def test_png(mode, decode, picture, tmp_path):
    assert_alike(decode, encoded(picture.convert(mode), "PNG"), tmp_path)


def test_png_of_few_bits_or_with_a_transparent_palette(decode, picture, tmp_path):
    for bits in (1, 2, 4):
        assert_alike(decode, encoded(picture.quantize(2**bits), "PNG", bits=bits), tmp_path)
    assert_alike(decode, encoded(picture.convert("P"), "PNG", transparency=b"\x00\x80\xff" * 20), tmp_path)


def test_grey_levels_of_16_bits_are_scaled(decode, tmp_path):
    levels = np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16)
    levels[0, :4] = [0, 128, 129, 65535]
    assert_alike(decode, encoded(Image.fromarray(levels), "PNG"), tmp_path)


def test_one_pixel(decode, tmp_path):
    for kind in ("PNG", "JPEG"):
        assert_alike(decode, encoded(Image.new("RGB", (1, 1), (9, 200, 30)), kind), tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation(orientation, kind, decode, picture, tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", orientation
    assert_alike(decode, encoded(picture, kind, exif=exif), tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("how", [{"order": "MM"}, {"kind": 4}, {"order": "MM", "kind": 4}, {"before": range(0x10D, 0x111)}])
def test_orientation_however_it_is_written(how, kind, decode, picture, tmp_path):
    data = encoded(picture, kind, exif=b"Exif\0\0" + with_orientation(6, **how))
    assert decode(data)[0].shape == (37, 53, 3)
    assert_alike(decode, data, tmp_path)


def test_orientation_behind_other_segments(header_of, picture):
    data = encoded(picture, "JPEG", exif=b"Exif\0\0" + with_orientation(8), icc_profile=bytes(100_000), comment=b"no comment")
    # Two fill bytes before a marker, and APP1 with something else in front.
    other = b"\xff\xe1" + struct.pack(">H", 12) + b"http://ns\0"
    assert header_of(data[:2] + other + b"\xff\xff" + data[2:]) == (JPEG, 53, 37, 8, 0)


def test_exif_behind_the_pixels_of_a_png(header_of, picture):
    data = encoded(picture, "PNG")
    block = with_orientation(6)
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + bytes(4)
    assert header_of(data[:-12] + chunk + data[-12:]) == (PNG, 53, 37, 6, 0)


@pytest.mark.parametrize("cut", [0, 1, 4, 7, 9, 13, 20, 21])
def test_exif_that_breaks_off_says_nothing(cut, header_of, picture):
    block = b"Exif\0\0" + with_orientation(6)[:cut]
    data = encoded(picture, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block
    assert header_of(data[:2] + segment + data[2:]) == (JPEG, 53, 37, 1, 0)


@pytest.mark.parametrize("count", [0, 2])
def test_several_orientations_in_one_entry_are_none(count, header_of, picture):
    data = encoded(picture, "JPEG", exif=b"Exif\0\0" + with_orientation(6, count=count))
    assert header_of(data)[3] == 1


def test_every_length_of_a_file_has_a_header(header_of, picture):
    for kind in ("JPEG", "PNG"):
        data = encoded(picture, kind, exif=b"Exif\0\0" + with_orientation(6))
        for length in [*range(120), len(data)]:
            header = header_of(data[:length])
            assert header[3] in (1, 6)


def test_absurd_lengths_end_the_walk(header_of, picture):
    png = encoded(picture, "PNG")
    assert header_of(png[:33] + b"\xff\xff\xff\xffeXIg" + png[33:])[0] == PNG
    jpeg = encoded(picture, "JPEG")
    assert header_of(jpeg[:2] + b"\xff\xe1\xff\xff" + jpeg[2:])[:3] == (JPEG, 0, 0)
    assert header_of(jpeg[:2] + b"\xff\xe2\x00\x00" * 50)[:3] == (JPEG, 0, 0)


def broken():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3)).astype(np.uint8))
    jpeg, png = encoded(photo, "JPEG"), encoded(photo, "PNG")
    large = struct.pack(">II", 70_000, 60_000)
    return {
        "empty": (b"", "no bytes; expected a JPEG or PNG picture"),
        "text": (b"this is no picture", "neither a JPEG nor a PNG picture"),
        "gif": (encoded(photo, "GIF"), "neither a JPEG nor a PNG picture"),
        "jpeg cut": (jpeg[: len(jpeg) // 2], "broken or truncated JPEG"),
        "jpeg start": (jpeg[:3], "broken or truncated JPEG"),
        "jpeg noise": (jpeg[:3] + bytes(range(256)), "broken or truncated JPEG"),
        "png cut": (png[: len(png) // 2], "broken or truncated PNG"),
        "png start": (png[:8], "broken or truncated PNG"),
        "png without pixels": (png[:16] + bytes(8) + png[24:], "broken or truncated PNG"),
        "bomb": (png[:16] + large + png[24:], f"a picture of 70000 x 60000 pixels; at most {MAX_PIXELS} pixels are decoded"),
    }


@pytest.mark.parametrize("name", broken())
def test_broken_pictures_are_one_black_pixel_and_a_reason(name, decode):
    data, message = broken()[name]
    image, error = decode(data)
    assert error.numpy().decode() == message
    assert image.numpy().tolist() == [[[0, 0, 0]]]
