"""The products equal TensorFlow's operations, with their gradients, and XLA is given no convolution and no sum."""

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops.xla_products import add_bias, pointwise_conv, transposed_conv

RNG = np.random.default_rng(0)


def normal(*shape):
    return tf.constant(RNG.normal(size=shape).astype(np.float32))


def convolve(stride):
    return lambda x, kernel: tf.nn.conv2d(x, kernel, stride, "SAME")


def convolve_transposed(x, kernel):
    side = kernel.shape[0]
    size = [x.shape[0], x.shape[1] * side, x.shape[2] * side, kernel.shape[2]]
    return tf.nn.conv2d_transpose(x, kernel, size, side)


CASES = {
    "pointwise": (lambda x, kernel: pointwise_conv(x, kernel, 1), convolve(1), (2, 5, 7, 6), (1, 1, 6, 4)),
    "pointwise stride": (lambda x, kernel: pointwise_conv(x, kernel, 2), convolve(2), (2, 5, 8, 6), (1, 1, 6, 4)),
    "transposed": (transposed_conv, convolve_transposed, (3, 4, 5, 6), (2, 2, 7, 6)),
    "transposed by 3": (transposed_conv, convolve_transposed, (1, 2, 3, 4), (3, 3, 5, 4)),
    "bias": (add_bias, tf.nn.bias_add, (2, 3, 4, 5), (5,)),
}


def with_gradients(operation, cotangent):
    def compute(x, parameter):
        with tf.GradientTape() as tape:
            tape.watch([x, parameter])
            outputs = operation(x, parameter)
            loss = tf.reduce_sum(outputs * cotangent)
        return outputs, *tape.gradient(loss, [x, parameter])

    return compute


@pytest.mark.parametrize("case", CASES)
def test_equal_with_gradients_under_xla_and_without(case):
    product, operation, size, parameter_size = CASES[case]
    x, parameter = normal(*size), normal(*parameter_size)
    cotangent = normal(*operation(x, parameter).shape)
    expected = with_gradients(operation, cotangent)(x, parameter)
    found = with_gradients(product, cotangent)
    for got in (found(x, parameter), tf.function(found, jit_compile=True)(x, parameter)):
        for value, reference in zip(got, expected, strict=True):
            np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-5)


def test_pointwise_takes_maps_of_unknown_size():
    kernel = normal(1, 1, 6, 4)
    traced = tf.function(lambda x: add_bias(pointwise_conv(x, kernel, 2), tf.ones([4])), jit_compile=True)
    concrete = traced.get_concrete_function(tf.TensorSpec([1, None, None, 6]))
    for size in ((4, 6), (5, 3)):
        x = normal(1, *size, 6)
        np.testing.assert_allclose(concrete(x), convolve(2)(x, kernel) + 1.0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_xla_computes_products_alone(case):
    product, operation, size, parameter_size = CASES[case]
    arguments = normal(*size), normal(*parameter_size)
    compute = with_gradients(product, normal(*operation(*arguments).shape))
    hlo = tf.function(compute, jit_compile=True).experimental_get_compiler_ir(*arguments)("optimized_hlo")
    assert " dot(" in hlo
    # What TensorFlow's operations become.
    assert " convolution(" not in hlo
    assert " reduce-window(" not in hlo
