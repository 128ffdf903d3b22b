import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.layers import ConvNorm, DepthwiseConvNorm, Normalize, StopGradient, Upsample2x
from mrcnn_tf.ops.static_graph import static_graph, xla_on_cpu

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_order_of_the_tests():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def normal(*shape):
    return RNG.normal(size=shape).astype("float32")


def randomise(layer):
    for weight in layer.weights:
        values = normal(*weight.shape)
        weight.assign(np.abs(values) + 0.5 if "variance" in weight.name else values)
    return {weight.name: weight.numpy() for weight in layer.weights}


def numpy_conv(x, kernel, stride, groups):
    """Convolution with torch's symmetric padding, by the definition."""
    k = kernel.shape[0]
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    height, width = (x.shape[1] - k) // stride + 1, (x.shape[2] - k) // stride + 1
    per_in, per_out = x.shape[3] // groups, kernel.shape[3] // groups
    out = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            patch = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            for g in range(groups):
                filters = kernel[..., g * per_out : (g + 1) * per_out]
                part = patch[..., g * per_in : (g + 1) * per_in]
                out[:, i, j, g * per_out : (g + 1) * per_out] = np.einsum("bhwc,hwco->bo", part, filters)
    return out


CASES = {
    "1x1": lambda **options: ConvNorm(8, 1, **options),
    "1x1 stride": lambda **options: ConvNorm(8, 1, strides=2, **options),
    "3x3": lambda **options: ConvNorm(8, 3, **options),
    "stride": lambda **options: ConvNorm(8, 3, strides=2, **options),
    "same": lambda **options: ConvNorm(8, 3, strides=2, padding="same", **options),
    "7x7": lambda **options: ConvNorm(8, 7, strides=2, **options),
    "grouped": lambda **options: ConvNorm(8, 3, groups=4, **options),
    "grouped stride": lambda **options: ConvNorm(8, 3, strides=2, groups=4, **options),
    "depthwise": lambda **options: DepthwiseConvNorm(5, **options),
    "depthwise stride": lambda **options: DepthwiseConvNorm(3, strides=2, padding="same", **options),
}


@pytest.mark.parametrize(("stride", "groups", "kernel_size"), [(1, 1, 3), (2, 1, 3), (2, 1, 7), (2, 1, 1), (1, 4, 3), (2, 4, 3)])
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_symmetric_convolution_against_its_definition(stride, groups, kernel_size, size):
    layer = ConvNorm(8, kernel_size, strides=stride, groups=groups, norm="none")
    x = normal(2, *size, 12)
    layer.build(x.shape)
    values = randomise(layer)
    expected = numpy_conv(x, values["kernel"], stride, groups) + values["bias"]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert layer.compute_output_shape(x.shape) == expected.shape


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("use_bias", [False, True])
def test_folded_norm_equals_the_unfolded_one_with_its_gradients(case, use_bias):
    layer = CASES[case](norm_epsilon=1e-3, use_bias=use_bias, activation="relu6")
    plain = CASES[case](norm="none", use_bias=use_bias)
    x = tf.constant(normal(2, 9, 12, 8))
    layer.build(x.shape)
    plain.build(x.shape)
    values = randomise(layer)
    for weight in plain.weights:
        weight.assign(values[weight.name])
    cotangent = normal(*layer(x).shape)

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        folded = layer(x)
        scale = values["gamma"] / np.sqrt(values["moving_variance"] + 1e-3)
        unfolded = tf.nn.relu6((plain(x) - values["moving_mean"]) * scale + values["beta"])
        losses = [tf.reduce_sum(outputs * cotangent) for outputs in (folded, unfolded)]
    np.testing.assert_allclose(folded, unfolded, rtol=1e-5, atol=1e-5)
    for sources in zip([x, *layer.trainable_weights], [x, *plain.trainable_weights], strict=True):
        got, expected = (tape.gradient(loss, source) for loss, source in zip(losses, sources, strict=True))
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_weights_and_what_is_trainable():
    def names(layer, which):
        layer.build((None, None, None, 8))
        return [weight.name for weight in getattr(layer, which)]

    assert names(ConvNorm(4, 3), "trainable_weights") == ["kernel"]
    assert names(ConvNorm(4, 3), "weights") == ["kernel", "gamma", "beta", "moving_mean", "moving_variance"]
    assert names(ConvNorm(4, 3, norm="batch"), "trainable_weights") == ["kernel", "gamma", "beta"]
    assert names(ConvNorm(4, 3, norm="group"), "weights") == ["kernel", "gamma", "beta"]
    assert names(ConvNorm(4, 3, norm="none"), "trainable_weights") == ["kernel", "bias"]
    assert names(DepthwiseConvNorm(3, trainable=False), "trainable_weights") == []


@pytest.mark.parametrize("norm", ["frozen", "batch", "group", "none"])
@pytest.mark.parametrize("case", ["1x1 stride", "stride", "grouped", "grouped stride", "depthwise stride"])
@pytest.mark.parametrize("graph", [static_graph, xla_on_cpu])
def test_xla_gives_the_same_outputs_and_gradients(norm, case, graph):
    layer = CASES[case](norm=norm, activation="relu")
    x = tf.constant(normal(2, 6, 6, 8))
    layer.build(x.shape)
    randomise(layer)

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=False)
            loss = tf.reduce_sum(tf.sin(outputs))
        return outputs, tape.gradient(loss, [x, *layer.trainable_weights])

    @tf.function(jit_compile=True)
    def compiled(x):
        with graph():
            return step(x)

    for got, expected in zip(tf.nest.flatten(compiled(x)), tf.nest.flatten(tf.function(step)(x)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(case):
    layer = CASES[case](dtype="mixed_bfloat16")
    reference = CASES[case]()
    x = normal(1, 8, 8, 8)
    for one in (layer, reference):
        one.build(x.shape)
    values = randomise(layer)
    for weight in reference.weights:
        weight.assign(values[weight.name])
    outputs = layer(x)
    assert outputs.dtype == tf.bfloat16
    assert {weight.dtype for weight in layer.weights} == {"float32"}
    expected = reference(x).numpy()
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), expected, atol=0.02 * np.abs(expected).max())


def test_batch_norm_follows_the_batch_and_stops_when_frozen():
    x = normal(4, 8, 8, 3) + 2
    layer, frozen = (ConvNorm(8, 1, norm="batch", trainable=trainable) for trainable in (True, False))
    outputs = layer(x, training=True).numpy()
    np.testing.assert_allclose(outputs.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(outputs.std((0, 1, 2)), 1, atol=1e-2)
    convolved = tf.nn.conv2d(x, layer.kernel, 1, "SAME").numpy()
    moving = {weight.name: weight.numpy() for weight in layer.weights}
    np.testing.assert_allclose(moving["moving_mean"], 0.1 * convolved.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    frozen(x, training=True)
    assert np.all({weight.name: weight.numpy() for weight in frozen.weights}["moving_mean"] == 0)


@pytest.mark.parametrize(("filters", "groups"), [(64, 32), (96, 32), (24, 8), (5, 1)])
def test_group_norm_normalises_each_group_of_each_image(filters, groups):
    x = normal(2, 6, 6, 3) * 5 + 3
    outputs = ConvNorm(filters, 1, norm="group")(x).numpy()
    cells = outputs.reshape(2, 36, groups, filters // groups)
    np.testing.assert_allclose(cells.mean((1, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(cells.std((1, 3)), 1, atol=1e-2)


def test_a_model_of_all_layers_survives_the_keras_file(tmp_path):
    images, windows = keras.Input((None, None, 3)), keras.Input((4,))
    x = Normalize((1, 2, 3), (4, 5, 6), "bgr", "black")(images, windows)
    x = ConvNorm(8, 3, groups=1, strides=2, activation="relu6", gamma_initializer=keras.initializers.Constant(0.5))(x)
    x = ConvNorm(8, 3, groups=2, norm="batch", padding="same", kernel_initializer="he_normal", trainable=False)(x)
    x = Upsample2x()(StopGradient()(DepthwiseConvNorm(3, norm_epsilon=0.1)(x)))
    model = keras.Model([images, windows], x)
    for layer in model.layers:
        randomise(layer)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    inputs = [normal(2, 8, 8, 3), np.array([[0, 0, 8, 8], [2, 1, 5, 3]], "float32")]
    np.testing.assert_array_equal(loaded(inputs), model(inputs))
    for layer in model.layers[2:]:
        config = layer.get_config()
        assert type(layer).from_config(config).get_config() == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "norm must be one of frozen.*'layer'"),
        ({"padding": "valid"}, "padding must be one of symmetric, same"),
        ({"activation": "swish"}, "activation must be one of None, relu"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ConvNorm(8, 3, **options)


def test_impossible_convolutions_are_refused():
    with pytest.raises(ValueError, match="odd, got 2"):
        ConvNorm(8, 2)
    with pytest.raises(ValueError, match="multiple of groups=3, got 8"):
        ConvNorm(9, 3, groups=3).build((None, 4, 4, 8))
    with pytest.raises(ValueError, match="filters must be a multiple of groups=4"):
        ConvNorm(9, 3, groups=4).build((None, 4, 4, 8))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("padding_value", ["mean", "black"])
def test_normalize(dtype, order, padding_value):
    images = RNG.integers(0, 256, (4, 7, 9, 3)).astype(dtype)
    windows = np.array([[0, 0, 7, 9], [0, 0, 4, 3], [2, 3, 6, 9], [0, 0, 0, 0]], "float32")
    mean, std = np.array([10.0, 120.0, 200.0]), np.array([50.0, 1.0, 3.0])
    outputs = Normalize(mean, std, order, padding_value)(images, windows).numpy()
    for image, (top, left, bottom, right), output in zip(images.astype(float), windows.astype(int), outputs, strict=True):
        ordered = image if order == "rgb" else image[..., ::-1]
        expected = np.zeros_like(image) if padding_value == "mean" else np.tile(-mean / std, (7, 9, 1))
        expected[top:bottom, left:right] = ((ordered - mean) / std)[top:bottom, left:right]
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


def test_normalize_subtracts_before_it_rounds_to_bfloat16():
    images = np.full((1, 2, 2, 3), 123.9, "float32")
    layer = Normalize((123.675,) * 3, (1.0,) * 3, dtype="mixed_bfloat16")
    outputs = layer(images, np.array([[0, 0, 2, 2]], "float32"))
    assert outputs.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), 0.225, rtol=0.005)


def test_normalize_under_xla_and_wrong_order():
    layer = Normalize((1, 2, 3), (4, 5, 6), "bgr")
    inputs = RNG.integers(0, 256, (2, 4, 6, 3)).astype("uint8"), np.array([[0, 0, 4, 6], [1, 2, 3, 4]], "float32")
    np.testing.assert_allclose(tf.function(layer, jit_compile=True)(*inputs), layer(*inputs), rtol=1e-6)
    with pytest.raises(ValueError, match="channel_order must be one of rgb, bgr; got 'gbr'"):
        Normalize((1, 2, 3), (4, 5, 6), "gbr")
    with pytest.raises(ValueError, match="padding_value must be one of mean, black; got 'grey'"):
        Normalize((1, 2, 3), (4, 5, 6), padding_value="grey")


def test_stop_gradient():
    x = tf.constant(normal(2, 3))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = StopGradient()(x)
    np.testing.assert_array_equal(y, x)
    assert tape.gradient(y, x) is None


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [0, 2])
def test_upsample_repeats_and_its_gradient_sums(jit, dtype, batch):
    x = tf.constant(RNG.integers(-8, 8, (batch, 3, 5, 4)), dtype)
    cotangent = RNG.integers(-8, 8, (batch, 6, 10, 4))
    layer = Upsample2x(dtype=dtype)

    @tf.function(jit_compile=jit)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y * tf.constant(cotangent, dtype))
        return y, tape.gradient(loss, x)

    y, gradient = run(x)
    assert y.dtype == gradient.dtype == dtype
    values = tf.cast(x, tf.float32).numpy()
    np.testing.assert_array_equal(tf.cast(y, tf.float32), values.repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(tf.cast(gradient, tf.float32), cotangent.reshape(batch, 3, 2, 5, 2, 4).sum((2, 4)))


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_gradients_of_strided_convolutions_have_kernels_of_onednn(kernel_size):
    """With explicit padding, TensorFlow's other kernels step in, in bfloat16 ten times slower."""
    layer = ConvNorm(4, kernel_size, strides=2)
    layer.build((None, None, None, 3))

    @tf.function
    def gradients(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = tf.reduce_sum(layer(images))
        return tape.gradient(total, [images, layer.kernel.value])

    nodes = gradients.get_concrete_function(tf.TensorSpec([1, 8, 8, 3])).graph.as_graph_def().node
    paddings = {node.op: node.attr["padding"].s for node in nodes if node.op.startswith("Conv2D")}
    assert paddings == {"Conv2D": b"VALID", "Conv2DBackpropFilter": b"VALID", "Conv2DBackpropInput": b"VALID"}
