"""Assigning ground truth to anchors and proposals, and drawing the sample the losses see (Ren et al., 2015)."""

from __future__ import annotations

import tensorflow as tf

from mrcnn_tf.ops.boxes import iou_matrix, overlap_fractions
from mrcnn_tf.ops.static_graph import in_static_graph

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1
_STATIC_TIE = 1e-6
"""In a static graph overlaps that differ by less than this part are equal: XLA may round the same overlap differently in two
fusions. Elsewhere they must be equal to the last bit, as in detectron2 and torchvision."""
_BITS = 0xFFFFFFFF


def match(
    boxes: tf.Tensor,
    gt_boxes: tf.Tensor,
    gt_valid: tf.Tensor,
    *,
    foreground_iou_threshold: float,
    background_iou_threshold: float,
    allow_low_quality: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Match every box with the ground truth it overlaps most (detectron2's Matcher).

    Args:
        boxes: [B or 1, N, 4] anchors or proposals.
        gt_boxes: [B, G, 4].
        gt_valid: [B, G] bool, which rows may be matched.
        foreground_iou_threshold: at or above it a box is foreground.
        background_iou_threshold: below it a box is background; between the two it is ignored.
        allow_low_quality: also make foreground of the boxes that overlap some ground truth most of all (RPN).

    Returns:
        labels [B, N] int32 (`FOREGROUND`, `BACKGROUND`, `IGNORED`) and matched_indices [B, N] int32 into G.
    """
    overlaps = tf.where(gt_valid[:, None, :], iou_matrix(boxes, gt_boxes), -1.0)
    best = tf.reduce_max(overlaps, axis=-1)
    foreground = best >= foreground_iou_threshold
    if allow_low_quality:
        best_of_gt = tf.reduce_max(overlaps, axis=1, keepdims=True)
        least = best_of_gt * (1 - _STATIC_TIE) if in_static_graph() else best_of_gt
        foreground |= tf.reduce_any((overlaps >= least) & (best_of_gt > 0), axis=-1)
    unmatched = tf.where(best < background_iou_threshold, BACKGROUND, IGNORED)
    labels = tf.where(foreground, FOREGROUND, unmatched)
    return labels, tf.argmax(overlaps, axis=-1, output_type=tf.int32)


def ignore_crowd(labels: tf.Tensor, boxes: tf.Tensor, gt_boxes: tf.Tensor, crowd: tf.Tensor, threshold: float) -> tf.Tensor:
    """Take background boxes that lie in crowd regions out of the sample (Detectron, section on crowd filtering).

    Args:
        labels: [B, N] int32.
        boxes: [B or 1, N, 4].
        gt_boxes: [B, G, 4].
        crowd: [B, G] bool, which rows are crowd regions.
        threshold: covered part of a box from which on it is ignored.

    Returns:
        labels [B, N] int32.
    """
    covered = tf.where(crowd[:, None, :], overlap_fractions(boxes, gt_boxes), 0.0)
    inside = tf.reduce_max(covered, axis=-1) > threshold
    return tf.where(inside & (labels == BACKGROUND), IGNORED, labels)


def random_keys(seeds: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """Uniform numbers that depend on each image's own seed only: not on the batch it is in, the device, or XLA.

    TensorFlow's stateless generators give other numbers under XLA than outside of it, and a run would draw other samples.

    Args:
        seeds: [B, 2] int32.
        count: numbers per image.

    Returns:
        [B, count] float32 in 0..1, multiples of 2**-24.
    """
    seeds = tf.cast(seeds, tf.int64)
    state = _hash(_hash(seeds[:, :1]) + seeds[:, 1:])
    bits = _hash(tf.bitwise.bitwise_xor(state, _hash(tf.range(count, dtype=tf.int64))[None, :]))
    return tf.cast(tf.bitwise.right_shift(bits, 8), tf.float32) * 2.0**-24


def sample(
    labels: tf.Tensor, keys: tf.Tensor, *, num_samples: int, positive_fraction: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Draw a random sample of foreground and background boxes; too few foreground ones are made up for by background.

    Args:
        labels: [B, N] int32 (`FOREGROUND`, `BACKGROUND`, `IGNORED`).
        keys: [B, N] float32 in 0..1; the largest ones are drawn.
        num_samples: rows S drawn per image.
        positive_fraction: upper bound of the foreground part.

    Returns:
        indices [B, S] int32 into N, foreground rows first; is_foreground [B, S] bool; is_valid [B, S] bool (False where
        there was nothing left to draw).
    """
    max_positives = int(num_samples * positive_fraction)
    positives, num_positives = _draw(labels == FOREGROUND, keys, max_positives)
    negatives, num_negatives = _draw(labels == BACKGROUND, keys, num_samples)
    row = tf.range(num_samples)[None, :]
    is_foreground = row < num_positives
    from_negatives = tf.maximum(row - num_positives, 0)
    is_valid = is_foreground | (from_negatives < num_negatives)
    positives = tf.pad(positives, [[0, 0], [0, num_samples - max_positives]])
    indices = tf.where(is_foreground, positives, tf.gather(negatives, from_negatives, batch_dims=1))
    return tf.where(is_valid, indices, 0), is_foreground, is_valid


def _draw(candidates: tf.Tensor, keys: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Indices [B, count] of the candidates with the largest keys, and how many [B, 1] of them are candidates at all."""
    keys = tf.pad(tf.where(candidates, keys, -1.0), [[0, 0], [0, count]], constant_values=-1.0)
    values, indices = tf.math.top_k(keys, k=count)
    return indices, tf.reduce_sum(tf.cast(values >= 0, tf.int32), axis=1, keepdims=True)


def _hash(values: tf.Tensor) -> tf.Tensor:
    """MurmurHash3's 32-bit finaliser, whose every output bit depends on every input bit, of `values + 2**32 / golden ratio`.

    In int64, because TensorFlow computes int32 on the host when the rest runs on a GPU.
    """
    bits = tf.bitwise.bitwise_and(values + 0x9E3779B9, _BITS)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, shift))
        bits = tf.bitwise.bitwise_and(bits * factor, _BITS)
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, 16))
