"""Models that make a few steps from the same start, for the tests of the training step."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import tensorflow as tf

from mrcnn_tf.modeling.loss_scale import steps_made
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.optimizers import averages_of
from tests.batches import make_batch, with_model


def numpy(variable):
    return keras.ops.convert_to_numpy(variable)


PARTS = ("backbone", "fpn", "rpn_head", "box_head", "mask_head", "mask_predictor")


def named(model):
    """All variables; paths alone are not unique."""
    return {f"{part}/{variable.path}": variable for part in PARTS for variable in getattr(model, part).variables}


def weights(model):
    return {name: numpy(variable) for name, variable in named(model).items() if variable.trainable}


def averages(model):
    by_id = {id(variable): numpy(average) for variable, average in averages_of(model.optimizer)}
    return {name: by_id[id(variable)] for name, variable in named(model).items() if id(variable) in by_id}


def assert_close(found, expected, **tolerance):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **tolerance)


def dataset_of(batches):
    """Of known length: the step that runs out of data would leave a collective operation between the replicas half done."""
    signature = {key: tf.TensorSpec(value.shape, value.dtype) for key, value in batches[0].items()}
    dataset = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))


def frozen_trunk(config):
    """With the trunk frozen, which makes a step quick."""
    return with_model(config, backbone={"frozen_stages": 5})


def build(config, strategy, *, optimizer=None, **options):
    """A compiled model, always of the same weights."""
    keras.utils.set_random_seed(7)
    with strategy.scope():
        model = MaskRCNN(config)
        model.compile(optimizer() if optimizer else keras.optimizers.SGD(0.05, momentum=0.9), **{"seed": 3, **options})
    return model


def fit(config, strategy, batches, *, jit_compile=False, **options):
    """Weights and losses after a few steps from the same start."""
    model = build(config, strategy, jit_compile=jit_compile, **options)
    history = model.fit(dataset_of(batches), verbose=0, shuffle=False)
    assert int(keras.ops.convert_to_numpy(steps_made(model.optimizer))) == len(batches)
    weights = [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    return model, weights, {name: values[0] for name, values in history.history.items()}


def one_device():
    return tf.distribute.get_strategy()


_key_base = itertools.count(1000, 1000)


def two_devices():
    # TensorFlow numbers the collective operations of every new strategy from the same start and remembers their shapes, so that
    # two models in one process clash; it provides this attribute for tests.
    tf.distribute.MirroredStrategy._collective_key_base = next(_key_base)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def unequal_batches(count=2):
    """The halves of each batch differ in their number of objects, so that local normalisers would be wrong."""
    return [make_batch(4, seed=10 + step, empty=(1,)) for step in range(count)]
