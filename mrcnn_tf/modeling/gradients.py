"""Gradients added up over the replicas before anything is decided by their size."""

from __future__ import annotations

import keras
import tensorflow as tf

from mrcnn_tf.modeling.loss_scale import unwrapped


def leave_the_sum_to_us(optimizer: keras.optimizers.Optimizer) -> None:
    """Have an optimizer take its gradients as added up over the replicas by `sum_and_clip`.

    Keras 3.15.1 has no switch for it, and would send them through the network a second time.
    """
    unwrapped(optimizer)._all_reduce_sum_gradients = list


def sum_and_clip(gradients: list[tf.Tensor], optimizer: keras.optimizers.Optimizer) -> list[tf.Tensor]:
    """Add up over replicas before clipping and looking for overflow; what the optimizer does then changes nothing more.

    Keras 3.15.1 clips each replica's gradients before it adds them up, and asks the first replica alone whether they are finite.

    Args:
        gradients: of this replica's share of the loss, scaled as the optimizer scales losses.
        optimizer: with its clipping and its loss scaling.

    Returns:
        The sum, the same on each replica; on one device they are unchanged, and the optimizer clips.
    """
    context = tf.distribute.get_replica_context()
    replicas, inner = context.num_replicas_in_sync, unwrapped(optimizer)
    if replicas == 1:
        return gradients
    gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
    unit = optimizer.scale_loss(tf.constant(1.0))
    if inner.global_clipnorm:
        gradients, _ = tf.clip_by_global_norm(gradients, inner.global_clipnorm * unit)
    if inner.clipnorm:
        gradients = [tf.clip_by_norm(gradient, inner.clipnorm * unit) for gradient in gradients]
    if inner.clipvalue:
        bound = inner.clipvalue * unit
        # Infinite ones stay so: they tell of an overflow.
        gradients = [tf.where(tf.math.is_inf(g), g, tf.clip_by_value(g, -bound, bound)) for g in gradients]
    return gradients
