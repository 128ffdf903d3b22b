"""The order of sums in a training step."""

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context

from mrcnn_tf.modeling.graph_options import sums_in_fixed_order
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from tests.batches import make_batch, with_model


def memory_optimization():
    options = config_pb2.ConfigProto.FromString(context.context().function_call_options.config_proto_serialized)
    return options.graph_options.rewrite_options.memory_optimization


def test_the_optimizer_is_off_inside_only():
    before = memory_optimization()
    assert before != rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    with sums_in_fixed_order():
        assert memory_optimization() == rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
        assert float(tf.function(lambda x: x + 1)(tf.constant(1.0))) == 2
    assert memory_optimization() == before


def test_steps_are_made_inside(tiny_config, monkeypatch):
    model = MaskRCNN(with_model(tiny_config, backbone={"frozen_stages": 5}))
    model.compile("sgd", run_eagerly=True)
    seen = []
    monkeypatch.setattr(model, "train_step", lambda data: seen.append(memory_optimization()) or {})
    model.train_on_batch(make_batch(1))
    assert seen == [rewriter_config_pb2.RewriterConfig.NO_MEM_OPT]


def test_gradients_of_a_resnet_are_the_same_each_time(tiny_config):
    """Sums of three gradients at the end of each stage, and of the pyramid's levels."""
    keras.utils.set_random_seed(1)
    changes = {"name": "resnet50", "frozen_stages": 0, "weights": None}
    model = MaskRCNN(with_model(tiny_config, backbone=changes))
    model.compile("sgd")
    batch = {key: tf.constant(value) for key, value in make_batch(2, 256, seed=5).items()}
    values = [variable.value for variable in model.trainable_variables]

    @tf.function
    def gradients(batch):
        return model._gradients(model._with_seeds(batch), values, after=[])[0]

    with sums_in_fixed_order():
        first = [gradient.numpy() for gradient in gradients(batch)]
        for _ in range(10):
            for expected, found in zip(first, gradients(batch), strict=True):
                np.testing.assert_array_equal(found, expected)
