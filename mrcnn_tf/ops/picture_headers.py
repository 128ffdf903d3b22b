"""What the bytes of a JPEG or PNG say about the picture before it is decoded: kind, size, depth, EXIF orientation.

All of it in TensorFlow operations, so that a served graph can do it. No input makes these functions fail; what is not there is 0.
Orientation is read from EXIF only (JPEG: APP1; PNG: the eXIf chunk), not from XMP.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

JPEG, PNG = 1, 2
_JPEG_MAGIC, _PNG_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_APP1, _START_OF_SCAN, _FILL = 0xE1, 0xDA, 0xFF
# SOF0..SOF15, of which three numbers mean something else: Huffman tables, a reserved one, arithmetic conditioning.
_FIRST_FRAME, _LAST_FRAME, _NO_FRAMES = 0xC0, 0xCF, (0xC4, 0xC8, 0xCC)
_EXIF_MAGIC = b"Exif\0\0"
_ORIENTATION_TAG, _BYTE, _SHORT, _LONG = 0x0112, 1, 3, 4
_TIFF_VERSION = 42
_ENTRY_BYTES = 12
_END_BYTES = 8
"""As many as are ever read at once."""


class PictureHeader(NamedTuple):
    """All [] int32.

    Attributes:
        kind: `JPEG`, `PNG`, or 0 for anything else.
        height: as stored, before the orientation is applied, pixels.
        width: as stored, pixels.
        orientation: the EXIF value, 1..8; 1 where there is none.
        is_deep_grey: 1 for grey levels of 16 bits (PNG).
    """

    kind: tf.Tensor
    height: tf.Tensor
    width: tf.Tensor
    orientation: tf.Tensor
    is_deep_grey: tf.Tensor


def read_header(data: tf.Tensor) -> PictureHeader:
    """Read the header of an encoded picture.

    Args:
        data: [] string, the bytes of the file.

    Returns:
        The header; of a file that ends early, what there is of it.
    """
    values = _with_end(tf.io.decode_raw(data, tf.uint8))

    def other() -> PictureHeader:
        return tf.cond(_stands_at(values, 0, _JPEG_MAGIC), lambda: _jpeg_header(values), _no_header)

    return PictureHeader(*tf.cond(_stands_at(values, 0, _PNG_MAGIC), lambda: _png_header(values), other))


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn a picture as its EXIF orientation says (EXIF 2.3, tag 0x0112).

    Args:
        image: [h, w, c], any dtype.
        orientation: [] int32, 1..8.

    Returns:
        [h, w, c], or [w, h, c] for 5..8.
    """
    swapped = tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2])
    turned = tf.transpose(image, swapped)
    flips = tf.stack([_is_one_of(orientation, (3, 4, 7, 8)), _is_one_of(orientation, (2, 3, 6, 7))])
    turned = tf.reverse(turned, tf.cast(tf.where(flips)[:, 0], tf.int32))
    return tf.ensure_shape(turned, [None, None, image.shape[2]])


def _no_header() -> PictureHeader:
    nothing = tf.constant(0)
    return PictureHeader(nothing, nothing, nothing, tf.constant(1), nothing)


def _jpeg_header(values: tf.Tensor) -> PictureHeader:
    """Walk over the segments up to the first scan."""
    size, nowhere = _size(values), tf.constant(-1, tf.int64)

    def goes_on(position: tf.Tensor, frame: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
        del frame, exif
        first, marker = tf.unstack(_bytes(values, position, 2))
        return (position < size) & (first == _FILL) & (marker != _START_OF_SCAN)

    def step(position: tf.Tensor, frame: tf.Tensor, exif: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        marker = _bytes(values, position + 1, 1)[0]
        is_frame = (marker >= _FIRST_FRAME) & (marker <= _LAST_FRAME) & ~_is_one_of(marker, _NO_FRAMES)
        is_exif = (marker == _APP1) & _stands_at(values, position + 4, _EXIF_MAGIC)
        length = tf.maximum(_number(_bytes(values, position + 2, 2)), 2)
        return (
            # Before a marker any number of fill bytes may stand.
            position + tf.where(marker == _FILL, tf.constant(1, tf.int64), 2 + length),
            tf.where(is_frame & (frame < 0), position, frame),
            tf.where(is_exif & (exif < 0), position, exif),
        )

    _, frame, exif = tf.while_loop(goes_on, step, (tf.constant(2, tf.int64), nowhere, nowhere))
    height, width = (_number(_bytes(values, frame + offset, 2)) for offset in (5, 7))
    tiff = values[exif + 4 + len(_EXIF_MAGIC) : exif + 2 + _number(_bytes(values, exif + 2, 2))]
    return PictureHeader(
        tf.constant(JPEG),
        tf.cast(tf.where(frame < 0, tf.constant(0, tf.int64), height), tf.int32),
        tf.cast(tf.where(frame < 0, tf.constant(0, tf.int64), width), tf.int32),
        tf.cond(exif < 0, lambda: tf.constant(1), lambda: _orientation(_with_end(tiff))),
        tf.constant(0),
    )


def _png_header(values: tf.Tensor) -> PictureHeader:
    """IHDR comes first; eXIf may stand anywhere."""
    size = _size(values)

    def goes_on(position: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
        return (position < size) & (exif < 0)

    def step(position: tf.Tensor, exif: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        start = _bytes(values, position, 8)
        is_exif = tf.reduce_all(start[4:] == tf.constant(list(b"eXIf"), tf.int64))
        return position + 12 + _number(start[:4]), tf.where(is_exif, position, exif)

    _, exif = tf.while_loop(goes_on, step, (tf.constant(len(_PNG_MAGIC), tf.int64), tf.constant(-1, tf.int64)))
    tiff = values[exif + 8 : exif + 8 + _number(_bytes(values, exif, 4))]
    width, height = (tf.minimum(_number(_bytes(values, offset, 4)), tf.int32.max) for offset in (16, 20))
    depth, colour = tf.unstack(_bytes(values, 24, 2))
    return PictureHeader(
        tf.constant(PNG),
        tf.cast(height, tf.int32),
        tf.cast(width, tf.int32),
        tf.cond(exif < 0, lambda: tf.constant(1), lambda: _orientation(_with_end(tiff))),
        tf.cast((depth == 16) & (colour == 0), tf.int32),
    )


def _orientation(tiff: tf.Tensor) -> tf.Tensor:
    """The orientation in a TIFF header: one number in its first directory."""
    little = _stands_at(tiff, 0, b"II")
    known = (little | _stands_at(tiff, 0, b"MM")) & (_number(_bytes(tiff, 2, 2), little) == _TIFF_VERSION)
    directory = tf.minimum(_number(_bytes(tiff, 4, 4), little), _size(tiff))
    there = (_size(tiff) - directory - 2) // _ENTRY_BYTES
    count = tf.maximum(tf.minimum(_number(_bytes(tiff, directory, 2), little), there), 0)
    entries = tf.reshape(tiff[directory + 2 : directory + 2 + _ENTRY_BYTES * count], [-1, _ENTRY_BYTES])
    tags, kinds, counts = (_number(entries[:, start:end], little) for start, end in ((0, 2), (2, 4), (4, 8)))
    value = tf.zeros_like(tags)
    for kind, width in ((_BYTE, 1), (_SHORT, 2), (_LONG, 4)):
        value = tf.where(kinds == kind, _number(entries[:, 8 : 8 + width], little), value)
    found = tf.boolean_mask(value, (tags == _ORIENTATION_TAG) & (counts == 1))
    orientation = tf.reduce_sum(found[:1])
    return tf.cast(tf.where(known & (orientation >= 1) & (orientation <= 8), orientation, 1), tf.int32)


def _with_end(values: tf.Tensor) -> tf.Tensor:
    """Zeros behind the bytes [N] uint8, so that `_bytes` may read beyond the last one."""
    return tf.pad(values, [[0, _END_BYTES]])


def _size(values: tf.Tensor) -> tf.Tensor:
    return tf.size(values, tf.int64) - _END_BYTES


def _bytes(values: tf.Tensor, position: tf.Tensor | int, count: int) -> tf.Tensor:
    """[count] int64 from a position on; zeros beyond the end, nothing of use before the start."""
    start = tf.clip_by_value(tf.cast(position, tf.int64), 0, _size(values))
    return tf.cast(tf.slice(values, start[None], [count]), tf.int64)


def _number(parts: tf.Tensor, little: tf.Tensor | bool = False) -> tf.Tensor:
    """Unsigned numbers [...] int64 from their bytes [..., W], the big end first unless `little`."""
    rising = [256**i for i in range(parts.shape[-1])]
    places = tf.where(little, tf.constant(rising, tf.int64), tf.constant(rising[::-1], tf.int64))
    return tf.reduce_sum(tf.cast(parts, tf.int64) * places, axis=-1)


def _stands_at(values: tf.Tensor, position: tf.Tensor | int, magic: bytes) -> tf.Tensor:
    return tf.reduce_all(_bytes(values, position, len(magic)) == tf.constant(list(magic), tf.int64))


def _is_one_of(value: tf.Tensor, choices: tuple[int, ...]) -> tf.Tensor:
    return tf.reduce_any(value == tf.constant(choices, value.dtype))
