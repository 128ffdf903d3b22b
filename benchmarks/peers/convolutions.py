"""The arithmetic limit: the convolutions and matrix products of a network, and nothing else.

What the network runs is recorded from one eager pass. Then each is a bare TensorFlow operation on arrays of its own of the same
shapes: no norm, bias, activation, pooling, geometry or sampling. For training, the gradients are those that autodiff computes: of
the kernels of all that is trained, and of the inputs that depend on something trained.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from tensorflow.python.eager import record

from benchmarks.peers.worker import Repetition
from mrcnn_tf.modeling.layers import ConvNorm


class Product(NamedTuple):
    """A convolution or a matrix product."""

    scope: str
    """The sub-model and the layer that compute it, "fpn/lateral2"."""
    inputs: tuple[int, ...]
    kernel: tuple[int, ...]
    operation: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    flops: float
    """Multiplications and additions of the forward pass."""
    trained: tuple[bool, bool]
    """Whether a gradient of the inputs is needed, and of the kernel."""


@contextlib.contextmanager
def recorded(model: keras.Model) -> Iterator[list[Product]]:
    """Whatever convolutions and products of a model run eagerly in here."""
    found: list[Product] = []
    scopes = {
        id(layer): f"{part.name}/{layer.name}" for part in model.layers if isinstance(part, keras.Model) for layer in part.layers
    }
    convolve, dense, transposed = ConvNorm._convolve, keras.layers.Dense.call, keras.layers.Conv2DTranspose.call

    def note(layer: Any, inputs: tf.Tensor, outputs: tf.Tensor, operation: Callable) -> tf.Tensor:
        kernel = tuple(layer.kernel.shape)
        # A kernel is applied at every pixel of the output, a transposed one at every pixel of the input.
        places = math.prod((inputs if operation is _transposed else outputs).shape[:-1])
        flops = 2.0 * places * math.prod(kernel)
        trained = bool(record.should_record_backprop([tf.convert_to_tensor(inputs)])), bool(layer.trainable)
        found.append(Product(scopes[id(layer)], tuple(inputs.shape), kernel, operation, flops, trained))
        return outputs

    def convolve_and_note(layer: Any, inputs: Any, kernel: Any) -> Any:
        return note(layer, inputs, convolve(layer, inputs, kernel), lambda x, k: convolve(layer, x, k))

    def dense_and_note(layer: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return note(layer, inputs, dense(layer, inputs, *args, **kwargs), tf.matmul)

    def transposed_and_note(layer: Any, inputs: Any) -> Any:
        return note(layer, inputs, transposed(layer, inputs), _transposed)

    ConvNorm._convolve, keras.layers.Dense.call = convolve_and_note, dense_and_note
    keras.layers.Conv2DTranspose.call = transposed_and_note
    try:
        yield found
    finally:
        ConvNorm._convolve, keras.layers.Dense.call, keras.layers.Conv2DTranspose.call = convolve, dense, transposed


def limit(products: list[Product], *, training: bool) -> Repetition:
    """All products once, one after the other.

    Args:
        products: what was `recorded`; for training inside of a tape that watches what is trained.
        training: the gradients, too.
    """
    inputs = [tf.random.normal(product.inputs) for product in products]
    kernels = [tf.random.normal(product.kernel) for product in products]

    @tf.function(autograph=False)
    def run() -> tf.Tensor:
        done = [tf.constant(0.0)]
        for product, *operands in zip(products, inputs, kernels, strict=True):
            with tf.control_dependencies(done[-1:]), tf.GradientTape(watch_accessed_variables=False) as tape:
                wanted = [value for value, needed in zip(operands, product.trained, strict=True) if needed and training]
                tape.watch(wanted)
                results = [product.operation(*operands)]
            if wanted:
                results += tape.gradient(results[0], wanted, output_gradients=results[0])
            # One value of each, so that nothing is left out and next to nothing added.
            done.append(tf.add_n([tf.reshape(result, [-1])[0] for result in results]))
        return tf.add_n(done)

    facts = {"gflops": round(sum(product.flops for product in products) / 1e9, 1), "products": len(products)}

    def repeat() -> dict[str, Any]:
        run().numpy()
        return facts

    return repeat


def _transposed(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """The doubling one of the mask head."""
    count, height, width, _ = inputs.shape
    return tf.nn.conv2d_transpose(inputs, kernel, [count, 2 * height, 2 * width, kernel.shape[2]], 2, "SAME")
