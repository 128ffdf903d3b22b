"""What happens to one training sample: resize, flip, pad. Image, boxes and masks move together.

A sample holds the keys of the batch (docs/contracts.md) without the leading axis, its image not padded yet. Mask crops are
in the frame of their box, so only the flip touches them.
"""

from __future__ import annotations

import tensorflow as tf

from mrcnn_tf.ops.images import Placement, SizeRounding, image_window, pad_image, resize_image, resized_size

Sample = dict[str, tf.Tensor]


def training_size(
    height: int,
    width: int,
    *,
    min_size: int,
    max_size: int,
    image_size: tuple[int, int],
    rounding: SizeRounding = "half_up",
    enlarge_only: bool = False,
) -> tuple[int, int]:
    """`resized_size`, shrunk further where the result would not fit the padded input.

    Args:
        height: of the original image, pixels.
        width: of the original image, pixels.
        min_size: wanted shortest edge, pixels.
        max_size: upper bound of the longest edge, pixels.
        image_size: (height, width) of the padded input.
        rounding: as in `resized_size`.
        enlarge_only: as in `resized_size`.

    Returns:
        (height, width) in pixels, at least 1.
    """
    new_height, new_width = resized_size(
        height, width, min_size=min_size, max_size=max_size, rounding=rounding, enlarge_only=enlarge_only
    )
    shrink = min(1.0, image_size[0] / new_height, image_size[1] / new_width)
    return max(1, int(new_height * shrink + 0.5)), max(1, int(new_width * shrink + 0.5))


def resize_sample(sample: Sample, size: tf.Tensor, *, antialias: bool, quantize: bool = True) -> Sample:
    """Resize the image to `size` [2] int32 (height, width), the boxes by the true ratio of each axis.

    The image stays uint8 where it is quantised, and becomes float32 where not.
    """
    old = tf.cast(sample["image_sizes"], tf.float32)
    new = tf.cast(size, tf.float32)
    # Multiplied before divided: a box that ends at the edge of the image then still does.
    boxes = sample["gt_boxes"] * tf.tile(new, [2]) / tf.tile(old, [2])
    image = resize_image(sample["images"], size, antialias=antialias, quantize=quantize)
    return sample | {"images": tf.cast(image, tf.uint8 if quantize else tf.float32), "image_sizes": size, "gt_boxes": boxes}


def flip_sample(sample: Sample) -> Sample:
    """Mirror left and right; empty rows stay 0."""
    width = tf.cast(sample["image_sizes"][1], tf.float32)
    top, left, bottom, right = tf.unstack(sample["gt_boxes"], axis=1)
    boxes = tf.stack([top, width - right, bottom, width - left], axis=1)
    filled = sample["gt_classes"][:, None] > 0
    # tf.reverse, not a slice of stride -1: on a CPU that takes fifteen times as long for an image.
    flipped = {"images": tf.reverse(sample["images"], [1]), "gt_boxes": tf.where(filled, boxes, 0.0)}
    if "gt_masks" in sample:
        flipped["gt_masks"] = tf.reverse(sample["gt_masks"], [2])
    return sample | flipped


def pad_sample(sample: Sample, image_size: tuple[int, int], placement: Placement = "top_left") -> Sample:
    """Pad the image with zeros to `image_size` (height, width), and move the boxes along; empty rows stay 0."""
    offset = image_window(sample["image_sizes"], image_size, placement)[:2]
    filled = sample["gt_classes"][:, None] > 0
    boxes = tf.where(filled, sample["gt_boxes"] + tf.tile(offset, [2]), 0.0)
    return sample | {"images": pad_image(sample["images"], image_size, placement), "gt_boxes": boxes}
