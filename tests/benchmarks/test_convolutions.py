import keras
import pytest
import tensorflow as tf

from benchmarks.peers.convolutions import Product, limit, recorded
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from tests.batches import make_batch, with_model


@pytest.fixture(scope="module")
def model(tiny_config):
    keras.utils.set_random_seed(0)
    trunk = {"name": "resnet50", "weights": None, "frozen_stages": 2}
    return MaskRCNN(with_model(tiny_config, backbone=trunk, mask_head={"num_convs": 2}))


def test_products_of_a_picture(model):
    with recorded(model) as products:
        model({"images": tf.zeros([1, 64, 64, 3]), "image_sizes": tf.constant([[64, 64]])})
    counts = {}
    for product in products:
        part = product.scope.split("/")[0]
        counts[part] = counts.get(part, 0) + 1
    rois = {product.inputs[0] for product in products if product.scope.startswith("box_head")}
    # 53 of ResNet-50, lateral and output of 4 levels, three convolutions on 5 levels, two hidden and two last layers.
    assert counts == {"resnet50": 53, "fpn": 8, "rpn_head": 15, "box_head": 4, "mask_head": 3}
    assert len(rois) == 1
    assert not any(True in product.trained[:1] for product in products)
    stem = products[0]
    assert (stem.scope, stem.flops) == ("resnet50/stem", 2 * 32 * 32 * 7 * 7 * 3 * 64)
    transposed = next(product for product in products if product.scope == "mask_head/deconv")
    assert transposed.flops == 2 * transposed.inputs[0] * 14 * 14 * 2 * 2 * 16 * 16


def test_gradients_of_a_step_are_those_of_what_is_trained(model):
    batch = {name: tf.constant(value) for name, value in make_batch(batch=1).items()}
    with tf.GradientTape(watch_accessed_variables=False) as tape, recorded(model) as products:
        tape.watch([variable.value for variable in model.trainable_variables])
        model.training_graph({**batch, "seeds": tf.constant([[0, 0]])}, training=True)
    trained = {product.scope: product.trained for product in products}
    assert trained["resnet50/stem"] == trained["resnet50/res2_2_conv3"] == (False, False)
    assert trained["resnet50/res3_0_conv1"] == trained["fpn/lateral2"] == (False, True)
    assert trained["resnet50/res3_0_conv2"] == trained["rpn_head/conv0"] == trained["box_head/fc0"] == (True, True)


@pytest.mark.parametrize("training", [True, False])
def test_limit_runs_each_product(training):
    ran = []

    def multiply(inputs, kernel):
        tf.py_function(lambda: ran.append(1), [], [])
        return tf.matmul(inputs, kernel)

    products = [Product("a/b", (2, 3), (3, 4), multiply, 48.0, (True, True))] * 2
    assert limit(products, training=training)() == {"gflops": 0.0, "products": 2}
    assert len(ran) == 2


def test_nothing_is_recorded_afterwards(model):
    with recorded(model) as products:
        pass
    model({"images": tf.zeros([1, 64, 64, 3]), "image_sizes": tf.constant([[64, 64]])})
    assert products == []
