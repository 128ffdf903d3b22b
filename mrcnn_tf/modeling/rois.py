"""Between the proposals and the heads: which boxes are pooled, pooling, and the way back to one row per box.

A head sees a flat list of M regions of all images. Outside `static_graph()` only the valid rows go there, so that padding costs
nothing; inside it all rows do, because shapes must be static.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.ops.roi_align import roi_align
from mrcnn_tf.ops.roi_pool import roi_pool
from mrcnn_tf.ops.roi_resize import roi_resize
from mrcnn_tf.ops.static_graph import in_static_graph


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class FlattenRows(keras.layers.Layer):
    """Indices of the rows that go to a head: is_valid [B, R] bool -> [M] int32 into B * R, rising.

    M is at least 1: TensorFlow's CPU convolutions (oneDNN) give a wrong shape for an empty batch.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)

    def call(self, is_valid: tf.Tensor) -> tf.Tensor:
        """All rows in a static graph, the valid ones elsewhere."""
        if in_static_graph():
            return tf.range(is_valid.shape[0] * is_valid.shape[1])
        flat = tf.reshape(is_valid, [-1])
        first = flat[:1] | ~tf.reduce_any(flat)
        return tf.cast(tf.where(tf.concat([first, flat[1:]], axis=0))[:, 0], tf.int32)


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class GatherRows(keras.layers.Layer):
    """Rows of a padded table: values [B, R, ...] and rows [M] -> [M, ...]."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)

    def call(self, values: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Gather."""
        return tf.gather(tf.reshape(values, [-1, *values.shape[2:]]), rows)


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class ScatterRows(keras.layers.Layer):
    """The inverse of `GatherRows`: flat [M, ...], rows [M], is_valid [B, R] -> [B, R, ...], 0 in rows that are not valid."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)

    def call(self, flat: tf.Tensor, rows: tf.Tensor, is_valid: tf.Tensor) -> tf.Tensor:
        """Scatter; in a static graph every row is there already."""
        tail = list(flat.shape[1:])
        padded = flat if in_static_graph() else tf.scatter_nd(rows[:, None], flat, [tf.size(is_valid), *tail])
        padded = tf.reshape(padded, [-1, is_valid.shape[1], *tail])
        return tf.where(tf.reshape(is_valid, [-1, is_valid.shape[1], *[1] * len(tail)]), padded, 0.0)


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class RoiAlign(keras.layers.Layer):
    """ROIAlign (He et al., 2017) over a pyramid.

    Call with features, a list of [B, H_l, W_l, C]; rois [B, R, 4]; rows [M] int32 into B * R. Returns [M, size, size, C] float32.
    """

    def __init__(
        self,
        output_size: int,
        *,
        strides: Sequence[int],
        sampling_ratio: int,
        aligned: bool,
        minimum_size: float = 1.0,
        level_epsilon: float,
        level_rounding: str = "floor",
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.output_size = output_size
        self.strides = tuple(strides)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.minimum_size = minimum_size
        self.level_epsilon = level_epsilon
        self.level_rounding = level_rounding

    def call(self, features: list[tf.Tensor], rois: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Pool the features of the rows."""
        flat, batch_indices = _rows_of(rois, rows)
        return roi_align(
            features,
            flat,
            batch_indices,
            strides=self.strides,
            output_size=self.output_size,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            minimum_size=self.minimum_size,
            level_epsilon=self.level_epsilon,
            level_rounding=self.level_rounding,
        )


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class RoiPool(keras.layers.Layer):
    """RoIPool (Girshick, 2015), for the paper's ablation; called as `RoiAlign`, not inside `static_graph()`."""

    def __init__(
        self, output_size: int, *, strides: Sequence[int], level_epsilon: float, level_rounding: str = "floor", **kwargs: Any
    ) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.output_size = output_size
        self.strides = tuple(strides)
        self.level_epsilon = level_epsilon
        self.level_rounding = level_rounding

    def call(self, features: list[tf.Tensor], rois: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Pool the features of the rows."""
        flat, batch_indices = _rows_of(rois, rows)
        return roi_pool(
            features,
            flat,
            batch_indices,
            strides=self.strides,
            output_size=self.output_size,
            level_epsilon=self.level_epsilon,
            level_rounding=self.level_rounding,
        )


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class RoiResize(keras.layers.Layer):
    """One sample a bin from edge to edge of the rois (matterport); called as `RoiAlign`."""

    def __init__(
        self,
        output_size: int,
        *,
        strides: Sequence[int],
        inclusive: bool,
        level_epsilon: float,
        level_rounding: str = "floor",
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.output_size = output_size
        self.strides = tuple(strides)
        self.inclusive = inclusive
        self.level_epsilon = level_epsilon
        self.level_rounding = level_rounding

    def call(self, features: list[tf.Tensor], rois: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Pool the features of the rows."""
        flat, batch_indices = _rows_of(rois, rows)
        return roi_resize(
            features,
            flat,
            batch_indices,
            strides=self.strides,
            output_size=self.output_size,
            inclusive=self.inclusive,
            level_epsilon=self.level_epsilon,
            level_rounding=self.level_rounding,
        )


def _rows_of(rois: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.gather(tf.reshape(rois, [-1, 4]), rows), rows // rois.shape[1]
