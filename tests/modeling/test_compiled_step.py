"""What XLA is given to compile and what it makes of that: nothing is computed twice, and no gradient that nobody asks for."""

import re

import keras
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from tests.batches import make_batch, with_model

SIDE, FROZEN_STAGES = 128, 4
PIXELS = sum((SIDE // stride) ** 2 for stride in (4, 8, 16, 32))
"""Of the levels that are pooled."""


@pytest.fixture(scope="module")
def model(tiny_config):
    """C5 and all after it is trained, which XLA compiles in seconds."""
    config = with_model(tiny_config, backbone={"name": "resnet50", "frozen_stages": FROZEN_STAGES}, box_head={"num_samples": 8})
    model = MaskRCNN(config, pretrained=False)
    model.compile(keras.optimizers.SGD(0.1), jit_compile=True)
    return model


@pytest.fixture(scope="module")
def backward(model):
    """The gradient that `train_step` has XLA compile, as TensorFlow's operations."""
    batch = {name: tf.constant(value) for name, value in make_batch(1, SIDE).items()}
    step = tf.function(model.train_step).get_concrete_function(batch)
    (found,) = [
        function for function in step.graph.as_graph_def().library.function if "backward_compiled" in function.signature.name
    ]
    return found


def of_kind(function, kind):
    """Names of the operations of a kind, which have their layers' in them."""
    return [node.name for node in function.node_def if node.op == kind]


def test_the_pyramid_is_joined_once_and_not_again_in_each_gather(model):
    batch = {name: tf.constant(value) for name, value in make_batch(1, SIDE).items()} | {"seeds": tf.zeros([1, 2], tf.int32)}
    hlo = model._terms.experimental_get_compiler_ir(batch, True)("optimized_hlo")
    table = rf"f32\[{PIXELS},{model.config.fpn.width}\]\S*"
    computations = re.split(r"\n(?=\S)", hlo)
    joining = [computation for computation in computations if re.search(rf"= {table} concatenate\(", computation)]
    reading = [
        computation for computation in computations if re.search(rf"{table}.*? gather\(|gather\({table}", computation, re.S)
    ]
    # Both poolings have the same table.
    assert len(joining) == 1
    assert " gather(" not in joining[0]
    assert reading


def test_constants_of_frozen_norms_have_no_gradient(backward):
    assert of_kind(backward, "Conv2DBackpropFilter")
    # Of the square root of the variance, with which the kernel is scaled.
    assert not of_kind(backward, "RsqrtGrad")


def test_convolutions_that_are_products_have_products_for_gradients(backward):
    convolutions = of_kind(backward, "Conv2DBackpropFilter") + of_kind(backward, "Conv2DBackpropInput")
    assert any("res5_0_conv2" in name for name in convolutions)
    assert not [name for name in convolutions if re.search("conv1|conv3|shortcut|lateral|objectness|deltas|deconv", name)]
    # Those of dense layers are sums over few rows.
    assert all("/box_head" in name for name in of_kind(backward, "BiasAddGrad"))
    assert not [name for name in of_kind(backward, "Conv2D") if "deconv" in name]
