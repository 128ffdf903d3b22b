"""Layers shared by every stage: convolution with its norm, input normalisation, and thin doorways to TensorFlow ops.

Weights are stored in TensorFlow's layout: kernels [height, width, in / groups, out], depthwise kernels [height, width, C, 1].
A layer's weights are found by name: `kernel`, `bias`, `gamma`, `beta`, `moving_mean`, `moving_variance`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.modeling.norms import NORMS, add_frozen_norm, make_norm_layer
from mrcnn_tf.ops.static_graph import in_xla_on_cpu
from mrcnn_tf.ops.xla_products import add_bias, pointwise_conv

PADDINGS = ("symmetric", "same")
ACTIVATIONS = {None: tf.identity, "relu": tf.nn.relu, "relu6": tf.nn.relu6}

Shape = tuple[int | None, ...]


def he_normal_fan_out() -> keras.initializers.Initializer:
    """Normal, variance 2 / fan_out (He et al., 2015): torchvision's initialisation of ResNets."""
    return keras.initializers.VarianceScaling(scale=2.0, mode="fan_out", distribution="untruncated_normal")


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class ConvNorm(keras.layers.Layer):
    """Convolution, norm and activation in one layer.

    `norm="frozen"` is batch norm with constants: `gamma`, `beta`, `moving_mean` and `moving_variance` are weights that are
    never trained. They are folded into the kernel and a bias, in float32, each time the layer runs. No pass over the
    activations is paid for the norm, the raw kernel still gets its gradient, and inference fuses convolution, bias and ReLU.

    Input: [B, H, W, C] in the compute dtype. Output: [B, ceil(H / strides), ceil(W / strides), filters]. B must not be 0: the
    convolutions of TensorFlow's CPU library (oneDNN) then return the input's shape.
    """

    def __init__(
        self,
        filters: int | None,
        kernel_size: int,
        *,
        strides: int = 1,
        groups: int = 1,
        padding: str = "symmetric",
        norm: str = "frozen",
        norm_epsilon: float = 1e-5,
        use_bias: bool | None = None,
        activation: str | None = None,
        kernel_initializer: str | dict[str, Any] | keras.initializers.Initializer | None = None,
        gamma_initializer: str | dict[str, Any] | keras.initializers.Initializer = "ones",
        **kwargs: Any,
    ) -> None:
        """Configure the layer.

        Args:
            filters: output channels; None only for the depthwise subclass.
            kernel_size: side of the square kernel, odd.
            strides: of both axes.
            groups: of a grouped convolution (Xie et al., 2017).
            padding: "symmetric" pads kernel_size // 2 on every side (torch); "same" is TensorFlow's, which for even sizes
                and stride 2 pads the bottom and the right more.
            norm: "frozen", "batch", "sync_batch" (statistics over all replicas), "group" (32 groups, or the greatest common
                divisor of 32 and the channels) or "none".
            norm_epsilon: added to the variance.
            use_bias: None means only without a norm.
            activation: None, "relu" or "relu6".
            kernel_initializer: None means `he_normal_fan_out`.
            gamma_initializer: of the norm's scale.
            **kwargs: `name`, `dtype`, `trainable`.

        Raises:
            ValueError: an argument that is not one of the above.
        """
        super().__init__(**kwargs)
        _check_choice("norm", norm, NORMS)
        _check_choice("padding", padding, PADDINGS)
        _check_choice("activation", activation, tuple(ACTIVATIONS))
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.filters, self.kernel_size, self.strides, self.groups = filters, kernel_size, strides, groups
        self.padding, self.norm, self.norm_epsilon, self.activation = padding, norm, norm_epsilon, activation
        self.use_bias = norm == "none" if use_bias is None else use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer or he_normal_fan_out())
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.norm_layer: keras.layers.Layer | None = None

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs [B, H, W, C]; C must be known and divisible by `groups`."""
        channels = input_shape[-1]
        if channels is None or channels % self.groups:
            raise ValueError(f"{self.name}: the input channels must be a multiple of groups={self.groups}, got {channels}")
        if self.filters is not None and self.filters % self.groups:
            raise ValueError(f"{self.name}: filters must be a multiple of groups={self.groups}, got {self.filters}")
        out_channels = self._out_channels(channels)
        self.kernel = self.add_weight(
            name="kernel", shape=self._kernel_shape(channels), initializer=self.kernel_initializer, autocast=False
        )
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(out_channels,), initializer="zeros", autocast=False)
        if self.norm == "frozen":
            add_frozen_norm(self, out_channels, self.gamma_initializer)
        elif self.norm != "none":
            self.norm_layer = self._make_norm_layer(out_channels)
            self.norm_layer.build((*self.compute_output_shape(input_shape)[:-1], out_channels))

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Apply convolution, norm, activation."""
        kernel, bias = self._folded() if self.norm == "frozen" else (self.kernel, self.bias if self.use_bias else None)
        outputs = self._convolve(inputs, tf.cast(kernel, self.compute_dtype))
        if bias is not None:
            add = add_bias if in_xla_on_cpu() else tf.nn.bias_add
            outputs = add(outputs, tf.cast(bias, self.compute_dtype))
        if self.norm_layer is not None:
            outputs = self.norm_layer(outputs, training=training)
        return ACTIVATIONS[self.activation](outputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """[B, ceil(H / strides), ceil(W / strides), filters]; both paddings give this for odd kernels."""
        batch, height, width, channels = input_shape
        assert channels is not None, "build has checked it"
        height, width = (None if side is None else -(-side // self.strides) for side in (height, width))
        return batch, height, width, self._out_channels(channels)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = "filters kernel_size strides groups padding norm norm_epsilon use_bias activation"
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names.split()},
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "gamma_initializer": keras.initializers.serialize(self.gamma_initializer),
        }

    def _make_norm_layer(self, channels: int) -> keras.layers.Layer:
        # A frozen batch norm must not update its statistics: Keras does not hand `trainable` down at construction.
        shared = {
            "epsilon": self.norm_epsilon,
            "gamma_initializer": self.gamma_initializer,
            "dtype": self.dtype_policy,
            "trainable": self.trainable,
        }
        return make_norm_layer(self.norm, channels, **shared)

    def _folded(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Kernel and bias of the convolution that equals convolution and frozen norm, float32."""
        # The gradient of a function that XLA compiles is that of all it reads: without this, of the four constants, too.
        scale = tf.stop_gradient(self.gamma * tf.math.rsqrt(self.moving_variance + self.norm_epsilon))
        beta, mean = tf.stop_gradient(self.beta), tf.stop_gradient(self.moving_mean)
        mean = mean - self.bias if self.use_bias else mean
        return self.kernel * tf.reshape(scale, self._scale_shape()), beta - mean * scale

    def _padding(self) -> str | list[list[int]]:
        # With stride 1 and an odd kernel TensorFlow's SAME is symmetric, and has the better kernels.
        if self.padding == "same" or self.strides == 1:
            return "SAME"
        pad = [self.kernel_size // 2] * 2
        return [[0, 0], pad, pad, [0, 0]]

    def _out_channels(self, channels: int) -> int:
        assert self.filters is not None, "only DepthwiseConvNorm has no filters"
        return self.filters

    def _kernel_shape(self, channels: int) -> tuple[int, ...]:
        return self.kernel_size, self.kernel_size, channels // self.groups, self._out_channels(channels)

    def _scale_shape(self) -> tuple[int, ...]:
        return 1, 1, 1, -1

    def _convolve(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        if self.kernel_size == 1 and self.groups == 1 and in_xla_on_cpu():
            return pointwise_conv(inputs, kernel, self.strides)
        padding = self._padding()
        if padding != "SAME":
            # Of a convolution with explicit padding TensorFlow's CPU library (oneDNN) has no gradient: another kernel steps in,
            # ten times slower in bfloat16, and none at all for grouped convolutions.
            inputs, padding = tf.pad(inputs, padding) if self.kernel_size > 1 else inputs, "VALID"
        return tf.nn.conv2d(inputs, kernel, self.strides, padding)


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class DepthwiseConvNorm(ConvNorm):
    """`ConvNorm` with one filter per channel: kernel [height, width, C, 1], output [B, ..., C]."""

    def __init__(self, kernel_size: int, **kwargs: Any) -> None:
        """See `ConvNorm`; `filters` and `groups` do not apply."""
        super().__init__(None, kernel_size, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {key: value for key, value in super().get_config().items() if key not in ("filters", "groups")}

    def _out_channels(self, channels: int) -> int:
        return channels

    def _kernel_shape(self, channels: int) -> tuple[int, ...]:
        return self.kernel_size, self.kernel_size, channels, 1

    def _scale_shape(self) -> tuple[int, ...]:
        return 1, 1, -1, 1

    def _convolve(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.depthwise_conv2d(inputs, kernel, [1, self.strides, self.strides, 1], self._padding())


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class Normalize(keras.layers.Layer):
    """Pixels to network input: channel order, mean and standard deviation, and what stands in the padding."""

    def __init__(
        self,
        pixel_mean: tuple[float, float, float],
        pixel_std: tuple[float, float, float],
        channel_order: str = "rgb",
        padding_value: str = "mean",
        **kwargs: Any,
    ) -> None:
        """Configure the layer.

        Args:
            pixel_mean: subtracted, in the order of `channel_order`, in 0..255.
            pixel_std: divided by, in the same order.
            channel_order: "rgb", or "bgr" to reverse the channels of the RGB input.
            padding_value: "mean" gives zeros in the padding, "black" what pixels of 0 become.
            **kwargs: `name`, `dtype`.

        Raises:
            ValueError: an unknown channel order or padding value.
        """
        # Keras would round float images to the compute dtype before the subtraction.
        super().__init__(autocast=False, **kwargs)
        _check_choice("channel_order", channel_order, ("rgb", "bgr"))
        _check_choice("padding_value", padding_value, ("mean", "black"))
        self.pixel_mean, self.pixel_std = (tuple(float(value) for value in values) for values in (pixel_mean, pixel_std))
        self.channel_order, self.padding_value = channel_order, padding_value

    def call(self, images: tf.Tensor, windows: tf.Tensor) -> tf.Tensor:
        """Normalise.

        Args:
            images: [B, H, W, 3] RGB, 0..255, uint8 or float; any value in the padding.
            windows: [B, 4] boxes that the images cover, whole pixels.

        Returns:
            [B, H, W, 3] in the compute dtype.
        """
        pixels = tf.cast(images, tf.float32)
        if self.channel_order == "bgr":
            pixels = tf.reverse(pixels, [-1])
        mean, scale = tf.constant(self.pixel_mean, tf.float32), 1.0 / tf.constant(self.pixel_std, tf.float32)
        valid = _valid(tf.shape(images), windows)
        normalised = (pixels - mean) * scale * valid if self.padding_value == "mean" else (pixels * valid - mean) * scale
        return tf.cast(normalised, self.compute_dtype)

    def compute_output_shape(self, images_shape: Shape, windows_shape: Shape) -> Shape:
        """The shape of the images."""
        return images_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = "pixel_mean pixel_std channel_order padding_value"
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class StopGradient(keras.layers.Layer):
    """The input, through which no gradient flows."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the input."""
        return tf.stop_gradient(inputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The shape of the input."""
        return input_shape


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class Upsample2x(keras.layers.Layer):
    """Nearest-neighbour doubling of height and width: [B, H, W, C] -> [B, 2H, 2W, C].

    `keras.layers.UpSampling2D` becomes 5-D reshapes, which TFLite's delegates refuse; this stays one resize.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Double the input."""
        return _upsample(inputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """[B, 2H, 2W, C]."""
        batch, height, width, channels = input_shape
        return batch, None if height is None else 2 * height, None if width is None else 2 * width, channels


@tf.custom_gradient
def _upsample(inputs: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Nearest doubling. XLA knows the resize but not its gradient, which is the sum of each 2 x 2 cell."""
    outputs = tf.raw_ops.ResizeNearestNeighbor(images=inputs, size=2 * tf.shape(inputs)[1:3])
    return outputs, lambda gradient: 4 * tf.nn.avg_pool2d(gradient, 2, 2, "VALID")


def _valid(shape: tf.Tensor, windows: tf.Tensor) -> tf.Tensor:
    """[B, H, W, 1] float32, 1 inside the windows [B, 4] and 0 in the padding."""
    rows, columns = (_between(shape[axis], windows[:, axis - 1 :: 2]) for axis in (1, 2))
    return rows[:, :, tf.newaxis, tf.newaxis] * columns[:, tf.newaxis, :, tf.newaxis]


def _between(size: tf.Tensor, bounds: tf.Tensor) -> tf.Tensor:
    """[B, size] float32, 1 from the first bound up to, not including, the second one: bounds [B, 2]."""
    places = tf.cast(tf.range(size), tf.float32)[tf.newaxis, :]
    return tf.cast((places >= bounds[:, :1]) & (places < bounds[:, 1:]), tf.float32)


def _check_choice(what: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(map(str, choices))}; got {value!r}")
