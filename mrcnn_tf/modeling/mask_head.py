"""The mask branch (He et al., 2017, section 3): head, the class's map, loss.

Shapes: M regions, C channels, K classes, S side of the masks (28).
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.modeling.layers import ConvNorm, he_normal_fan_out
from mrcnn_tf.ops import losses
from mrcnn_tf.ops.masks import crop_mask_targets
from mrcnn_tf.ops.static_graph import in_static_graph, in_xla_on_cpu
from mrcnn_tf.ops.xla_products import add_bias, transposed_conv


def build_mask_head(
    in_channels: int, *, pool_size: int, num_convs: int, width: int, norm: str, norm_epsilon: float
) -> keras.Model:
    """Convolutions and one transposed convolution.

    Args:
        in_channels: C of the pooled features.
        pool_size: side of the pooled features (14).
        num_convs: 3x3 convolutions.
        width: their channels.
        norm: of the convolutions.
        norm_epsilon: of the norm.

    Returns:
        A model: [M, 14, 14, C] -> [M, 28, 28, width]. Layers `conv0`.., `deconv`.
    """
    regions = keras.Input((pool_size, pool_size, in_channels), name="regions")
    x = regions
    for i in range(num_convs):
        x = ConvNorm(width, 3, norm=norm, norm_epsilon=norm_epsilon, activation="relu", name=f"conv{i}")(x)
    x = Deconvolution(width, 2, strides=2, activation=_rectify, kernel_initializer=he_normal_fan_out(), name="deconv")(x)
    return keras.Model(regions, x, name="mask_head")


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class Deconvolution(keras.layers.Conv2DTranspose):
    """Keras' transposed convolution, of a kernel as large as its stride: [M, S, S, C] -> [M, K S, K S, filters]."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Convolve, add the bias, apply the activation."""
        if not in_xla_on_cpu():
            return super().call(inputs)
        kernel, bias = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias)
        return self.activation(add_bias(transposed_conv(inputs, kernel), bias))


def _rectify(x: tf.Tensor) -> tf.Tensor:
    """ReLU; in a static graph as a leaky one of slope 0, which TFLite does not fuse into a convolution that delegates refuse."""
    return tf.nn.leaky_relu(x, 0.0) if in_static_graph() and not in_xla_on_cpu() else tf.nn.relu(x)


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class MaskPredictor(keras.layers.Layer):
    """The last 1x1 convolution, computed for one class per region only.

    Call with features [M, S, S, C] and classes [M] int32 (1..K; 0 and below use row 0 and are masked by the caller).
    Returns logits [M, S, S]. Weights `kernel` [C, K or 1], `bias` [K or 1].
    """

    def __init__(self, num_masks: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_masks = num_masks

    def build(self, features_shape: tuple, classes_shape: tuple) -> None:
        """Create kernel and bias."""
        del classes_shape
        init = keras.initializers.RandomNormal(stddev=0.001)
        self.kernel = self.add_weight(shape=(features_shape[-1], self.num_masks), initializer=init, name="kernel")
        self.bias = self.add_weight(shape=(self.num_masks,), initializer="zeros", name="bias")

    def call(self, features: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """Logits of each region's own class."""
        rows = tf.clip_by_value(classes - 1, 0, self.num_masks - 1)
        kernels = tf.gather(tf.transpose(tf.convert_to_tensor(self.kernel)), rows)
        # As a column: gathered from a vector, its gradient would be IndexedSlices and leave the path of dense gradients.
        biases = tf.gather(tf.convert_to_tensor(self.bias)[:, None], rows)
        if in_xla_on_cpu():
            return tf.einsum("myxc,mc->myx", features, kernels) + biases[:, None]
        side = features.shape[1]
        flat = tf.reshape(features, [-1, side * side, features.shape[3]])
        # Not by indices: delegates of TFLite refuse slices that drop or add an axis.
        logits = tf.squeeze(tf.matmul(flat, tf.expand_dims(kernels, -1)), -1)
        return tf.reshape(logits + biases, [-1, side, side])

    def get_config(self) -> dict:
        """Constructor arguments."""
        return {**super().get_config(), "num_masks": self.num_masks}


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class MaskTargets(keras.layers.Layer):
    """What the mask head should answer.

    Call with gt_masks [B, G, 56, 56] uint8, gt_boxes [B, G, 4], rois [B, F, 4], matched_indices [B, F]. Returns [B, F, S, S]
    float32: coverage, or 0 and 1 (coverage >= 0.5).
    """

    def __init__(self, size: int, *, soft: bool, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.size = size
        self.soft = soft

    def call(self, gt_masks: tf.Tensor, gt_boxes: tf.Tensor, rois: tf.Tensor, matched_indices: tf.Tensor) -> tf.Tensor:
        """Crop."""
        coverage = crop_mask_targets(gt_masks, gt_boxes, rois, matched_indices, size=self.size)
        return coverage if self.soft else tf.cast(coverage >= 0.5, tf.float32)


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class MaskLoss(keras.layers.Layer):
    """Mean binary cross-entropy over the pixels of foreground regions.

    Call with logits [M, S, S], targets [M, S, S], class_targets [M]. Returns a loss term (`mrcnn_tf.ops.losses.term`).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)

    def call(self, logits: tf.Tensor, targets: tf.Tensor, class_targets: tf.Tensor) -> tf.Tensor:
        """The mask term."""
        is_foreground = tf.cast(class_targets > 0, tf.float32)
        per_region = tf.reduce_mean(losses.sigmoid_cross_entropy(logits, targets), axis=[1, 2])
        return losses.term(tf.reduce_sum(is_foreground * per_region), tf.reduce_sum(is_foreground))


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class MaskProbabilities(keras.layers.Layer):
    """Sigmoid in float32: logits [M, S, S] -> probabilities [M, S, S]."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)

    def call(self, logits: tf.Tensor) -> tf.Tensor:
        """Apply the sigmoid."""
        return tf.sigmoid(logits)
