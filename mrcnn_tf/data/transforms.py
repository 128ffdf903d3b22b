"""How large an image is in training."""

from __future__ import annotations

from mrcnn_tf.ops.images import SizeRounding, resized_size


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
