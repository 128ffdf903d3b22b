"""Masks of 28 x 28 probabilities to COCO's compressed run lengths of the whole picture, inside a graph.

The same pixels as `mrcnn_tf.paste`, which says what the rules mean; here in TensorFlow operations, so that a server can answer
with masks that need no pasting. Only the pixels in the frame of a mask are ever computed, one mask at a time.

Shape legend: N masks, M cells per side, E ends of runs.
"""

from __future__ import annotations

import tensorflow as tf

_CODE_BITS, _MORE_BIT, _FIRST_CHARACTER = 5, 32, 48
_MOST_CHARACTERS = 7
"""Of one number: 35 bits, for runs of up to 2**34 pixels."""


def encode_masks(
    mask_probs: tf.Tensor, boxes: tf.Tensor, image_sizes: tf.Tensor, *, threshold: float = 0.5, rule: str = "centred"
) -> tf.Tensor:
    """Run lengths of pasted masks.

    Args:
        mask_probs: [N, M, M] float32, probabilities in the frames of the boxes.
        boxes: [N, 4] float32, yxyx in pixels of the picture; may reach beyond it.
        image_sizes: [N, 2] int32 (height, width) of the picture of each mask.
        threshold: a pixel is set where its probability is at least this, or above it, as the rule says.
        rule: "centred", "expanded" or "stretched", see `mrcnn_tf.paste.PasteRule`.

    Returns:
        [N] string, what `pycocotools.mask.encode` has as `counts` (its `size` being the picture's).
    """
    frames = _frames(tf.cast(boxes, tf.float32), mask_probs.shape[1], rule)

    def encode(inputs: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        probabilities, frame, image_size = inputs
        ends = _ends_of_runs(probabilities, frame, image_size, threshold, rule)
        return _compress(ends, tf.cast(image_size, tf.int64))

    # One after the other: each may need a picture of floats, and its products use all cores already.
    return tf.map_fn(
        encode, (mask_probs, frames, image_sizes), fn_output_signature=tf.TensorSpec([], tf.string), parallel_iterations=1
    )


def _frames(boxes: tf.Tensor, cells: int, rule: str) -> tf.Tensor:
    """[N, 4] float64 yxyx that the masks fill; zeros for a box without area."""
    first, last = boxes[:, :2], boxes[:, 2:]
    if rule == "centred":
        frames = tf.cast(boxes, tf.float64)
    elif rule == "stretched":
        frames = tf.round(tf.cast(boxes, tf.float64))
    elif rule == "expanded":
        # In float32, as torchvision computes: a corner close to a whole number could be cut to the one below.
        half = (last - first) * 0.5 * ((cells + 2) / cells)
        centre = (last + first) * 0.5
        start, end = (tf.cast(_truncate(corner), tf.float64) for corner in (centre - half, centre + half))
        size = tf.maximum(end - start + 1.0, 1.0)
        border = size / (cells + 2)
        frames = tf.concat([start + border, start + size - border], axis=1)
    else:
        raise ValueError(f"rule must be centred, expanded or stretched, got {rule!r}")
    has_area = tf.reduce_all(last > first, axis=1, keepdims=True)
    return tf.where(has_area, frames, tf.zeros_like(frames))


def _truncate(values: tf.Tensor) -> tf.Tensor:
    return tf.sign(values) * tf.floor(tf.abs(values))


def _ends_of_runs(mask: tf.Tensor, frame: tf.Tensor, image_size: tf.Tensor, threshold: float, rule: str) -> tf.Tensor:
    """[E] int64: where runs begin and end, alternately, as column-major numbers of the picture's pixels."""
    size = tf.cast(image_size, tf.float64)
    low, high = frame[:2], frame[2:]
    first = tf.clip_by_value(tf.math.ceil(low - 0.5), 0.0, size)
    past = tf.minimum(size, tf.floor(high - 0.5) + 1.0)
    lengths = tf.where(tf.reduce_all(high > low), tf.maximum(past - first, 0.0), tf.zeros_like(first))
    rows, columns = (_weights(first[axis], lengths[axis], low[axis], high[axis], mask.shape[0]) for axis in (0, 1))
    across = tf.matmul(columns, tf.matmul(rows, mask), transpose_b=True)  # [w, h]: COCO counts down the columns
    is_set = across > threshold if rule == "expanded" else across >= threshold
    # One empty pixel after each column keeps the runs of neighbouring columns apart.
    flat = tf.reshape(tf.pad(is_set, [[0, 0], [0, 1]]), [-1])
    changes = tf.where(flat ^ tf.concat([[False], flat[:-1]], axis=0))[:, 0]
    start, height, image_height = tf.cast(first, tf.int64), tf.cast(lengths[0], tf.int64), tf.cast(image_size[0], tf.int64)
    column = changes // (height + 1)
    return (start[1] + column) * image_height + start[0] + changes - column * (height + 1)


def _weights(start: tf.Tensor, count: tf.Tensor, low: tf.Tensor, high: tf.Tensor, cells: int) -> tf.Tensor:
    """[count, cells] float32: the weight of each mask cell at each pixel centre."""
    centres = tf.range(count, dtype=tf.float64) + start + 0.5
    positions = (centres - low) / (high - low) * cells - 0.5
    distance = tf.abs(positions[:, None] - tf.range(cells, dtype=tf.float64))
    return tf.cast(tf.maximum(1.0 - distance, 0.0), tf.float32)


def _compress(ends: tf.Tensor, image_size: tf.Tensor) -> tf.Tensor:
    """COCO's string: lengths of runs, from the fourth on as differences from the last but one, in characters of 5 bits."""
    starts, stops = ends[0::2], ends[1::2]
    # A run that ends at the foot of a column where the next begins at its head is one run to COCO.
    joined = starts[1:] == stops[:-1]
    starts = tf.boolean_mask(starts, tf.concat([tf.ones_like(starts[:1], tf.bool), ~joined], axis=0))
    stops = tf.boolean_mask(stops, tf.concat([~joined, tf.ones_like(stops[:1], tf.bool)], axis=0))
    ends = tf.reshape(tf.stack([starts, stops], axis=1), [-1])
    num_pixels = tf.reduce_prod(image_size)[None]
    counts = tf.concat([ends, num_pixels], axis=0) - tf.concat([[0], ends], axis=0)
    is_full = (tf.size(ends) > 0) & (counts[-1] == 0)
    counts = counts[: tf.size(counts) - tf.cast(is_full, tf.int32)]
    numbers = counts - tf.concat([tf.zeros_like(counts[:3]), counts[1:-2]], axis=0)[: tf.size(counts)]
    return tf.strings.unicode_encode(_characters(numbers), "UTF-8")


def _characters(numbers: tf.Tensor) -> tf.Tensor:
    """Signed numbers [N] int64 -> code points int32 of all of them in a row, low bits first."""
    codes, is_used, used = [], [], tf.ones_like(numbers, tf.bool)
    for _ in range(_MOST_CHARACTERS):
        low_bits = numbers % 2**_CODE_BITS
        numbers = numbers // 2**_CODE_BITS
        # The last character's highest bit is the sign.
        is_negative = low_bits >= 2 ** (_CODE_BITS - 1)
        more = tf.where(is_negative, numbers != -1, numbers != 0)
        codes.append(low_bits + tf.where(more, tf.constant(_MORE_BIT, tf.int64), 0) + _FIRST_CHARACTER)
        is_used.append(used)
        used = used & more
    return tf.cast(tf.boolean_mask(tf.stack(codes, axis=1), tf.stack(is_used, axis=1)), tf.int32)
