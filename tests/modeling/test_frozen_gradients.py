"""No gradient is computed for or below the frozen stages of the trunk."""

import re

import pytest
import tensorflow as tf

from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.modeling.recompute import recomputing
from tests.batches import make_batch, with_model

FROZEN_STAGES = 2
"""Stem and C2."""
FED_BY_A_FROZEN_STAGE = {"res3_0_conv1", "res3_0_shortcut", "lateral2"}
LAYER = re.compile(r"/((?:stem|res\d_\d+_\w+?|lateral\d|output\d))(?:_\d+)?/")


def gradient_layers(model, *, recompute=False):
    """For each kind of gradient operation that a step has to make, the layers of trunk and pyramid that it is made for."""
    batch = {name: tf.constant(value) for name, value in make_batch(2).items()} | {"seeds": tf.zeros([2, 2], tf.int32)}
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(autograph=False)
    def compute():
        with tf.GradientTape(watch_accessed_variables=False) as tape, recomputing(recompute):
            tape.watch(variables)
            terms = model.training_graph(batch, training=True)
            loss = tf.add_n([terms[name][0] for name in model.loss_weights])
        return tape.gradient(loss, variables)

    operations = needed(compute.get_concrete_function().graph)
    kinds = ("Conv2DBackpropFilter", "Conv2DBackpropInput", "ReluGrad")
    return {kind: sorted(layers_of(operations, kind)) for kind in kinds}


def needed(graph):
    """The operations that the outputs of a graph depend on."""
    found, waiting = set(), [tensor.op for tensor in graph.outputs]
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    return found


def layers_of(operations, kind):
    names = [LAYER.search(operation.name) for operation in operations if operation.type == kind]
    return [name[1] for name in names if name]


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", ["frozen", pytest.param("batch", marks=pytest.mark.slow)])
def test_each_convolution_that_is_trained_has_one_gradient_and_the_others_none(tiny_config, norm, recompute):
    backbone = {"name": "resnet50", "norm": norm, "frozen_stages": FROZEN_STAGES}
    model = MaskRCNN(with_model(tiny_config, backbone=backbone), pretrained=False)
    convolutions = [layer.name for part in (model.backbone, model.fpn) for layer in part.layers if hasattr(layer, "kernel")]
    trained = sorted(name for name in convolutions if name[:4] not in ("stem", "res2"))
    assert len(trained) < len(convolutions)
    found = gradient_layers(model, recompute=recompute)
    assert found["Conv2DBackpropFilter"] == trained
    assert found["Conv2DBackpropInput"] == sorted(set(trained) - FED_BY_A_FROZEN_STAGE)
    assert {name[:4] for name in found["ReluGrad"]} == {"res3", "res4", "res5"}
