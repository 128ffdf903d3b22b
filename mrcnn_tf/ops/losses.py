"""Loss terms as (sum, normaliser) pairs.

A loss is `sum / normaliser`. The two are kept apart until the normalisers of all replicas have been added up, so that
several devices compute exactly the loss and the gradient of one device with the whole batch.
"""

from __future__ import annotations

import tensorflow as tf


def term(total: tf.Tensor, normaliser: tf.Tensor | float) -> tf.Tensor:
    """Pack a loss term.

    Args:
        total: scalar, the sum over what was sampled.
        normaliser: scalar that the sum of all replicas' totals is divided by.

    Returns:
        [2] float32.
    """
    return tf.stack([tf.cast(total, tf.float32), tf.stop_gradient(tf.cast(normaliser, tf.float32))])


def l1(residual: tf.Tensor) -> tf.Tensor:
    """Elementwise absolute value."""
    return tf.abs(residual)


def smooth_l1(residual: tf.Tensor, beta: float) -> tf.Tensor:
    """Elementwise smooth L1 (Fast R-CNN): `0.5 r^2 / beta` below `beta`, `|r| - beta / 2` above."""
    size = tf.abs(residual)
    return tf.where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)


def box_regression(residual: tf.Tensor, kind: str, beta: float) -> tf.Tensor:
    """Elementwise box loss.

    Args:
        residual: predicted minus target deltas, any shape.
        kind: "l1" or "smooth_l1".
        beta: of the smooth L1.

    Returns:
        The same shape, float32.
    """
    return l1(residual) if kind == "l1" else smooth_l1(residual, beta)


def sigmoid_cross_entropy(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Elementwise binary cross-entropy from logits, stable for large ones."""
    return tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
