"""From the bytes of a JPEG or PNG to pixels, in TensorFlow operations, pixel by pixel what `data.load_image` gives."""

from __future__ import annotations

import tensorflow as tf

from mrcnn_tf.ops.picture_headers import JPEG, PictureHeader, read_header, upright

MAX_PIXELS = 178_956_970
"""A picture with more is not decoded. The number at which Pillow, too, speaks of a decompression bomb: half a gigabyte of RGB."""


def decode_picture(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode one picture; a broken one does not fail the graph.

    Grey is repeated, alpha is dropped, 16-bit grey is scaled to 8 bits, the EXIF orientation is applied, JPEG goes through the
    accurate integer transform (as in Pillow).

    Args:
        data: [] string.

    Returns:
        image: [h, w, 3] uint8 RGB; one black pixel where there is an error.
        error: [] string, "" or what is wrong.
    """
    header = read_header(data)
    num_pixels = tf.cast(header.height, tf.int64) * tf.cast(header.width, tf.int64)
    nothing = tf.zeros([1, 1, 3], tf.uint8)
    wrong = _wrong_in_header(data, header, num_pixels)

    def decoded() -> tuple[tf.Tensor, tf.Tensor]:
        # The one way in TensorFlow to go on after an operation has failed.
        image = tf.data.Dataset.from_tensors(data).map(lambda encoded: _decode(encoded, header)).ignore_errors()
        image = image.concatenate(tf.data.Dataset.from_tensors(tf.zeros([0, 0, 3], tf.uint8))).take(1).get_single_element()
        is_broken = tf.size(image) == 0
        kind = tf.where(header.kind == JPEG, "JPEG", "PNG")
        error = tf.where(is_broken, tf.strings.join(["broken or truncated ", kind]), "")
        return tf.cond(is_broken, lambda: nothing, lambda: upright(image, header.orientation)), error

    image, error = tf.cond(wrong == "", decoded, lambda: (nothing, wrong))
    return tf.ensure_shape(image, [None, None, 3]), error


def _decode(data: tf.Tensor, header: PictureHeader) -> tf.Tensor:
    def jpeg() -> tf.Tensor:
        return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")

    def png() -> tf.Tensor:
        return tf.cond(header.is_deep_grey > 0, deep_png, lambda: tf.io.decode_png(data, channels=3))

    def deep_png() -> tf.Tensor:
        # White is 65535 = 257 * 255; TensorFlow's own conversion would cut the lower byte off.
        levels = tf.cast(tf.io.decode_png(data, channels=1, dtype=tf.uint16), tf.int32)
        return tf.cast(tf.repeat((levels + 128) // 257, 3, axis=2), tf.uint8)

    return tf.ensure_shape(tf.cond(header.kind == JPEG, jpeg, png), [None, None, 3])


def _wrong_in_header(data: tf.Tensor, header: PictureHeader, num_pixels: tf.Tensor) -> tf.Tensor:
    """What needs no decoding to be known, or ""."""
    size = tf.strings.join([tf.strings.as_string(header.width), " x ", tf.strings.as_string(header.height)])
    too_large = tf.strings.join(["a picture of ", size, f" pixels; at most {MAX_PIXELS} pixels are decoded"])
    wrong = tf.where(num_pixels > MAX_PIXELS, too_large, "")
    wrong = tf.where(header.kind == 0, "neither a JPEG nor a PNG picture", wrong)
    return tf.where(tf.strings.length(data) == 0, "no bytes; expected a JPEG or PNG picture", wrong)
