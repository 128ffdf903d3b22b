"""The mask branch on tiny shapes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.mask_head import MaskLoss, MaskPredictor, MaskProbabilities, MaskTargets, build_mask_head
from mrcnn_tf.ops.masks import crop_mask_targets
from mrcnn_tf.ops.static_graph import static_graph, xla_on_cpu

RNG = np.random.default_rng(0)


def normal(*shape):
    return tf.constant(RNG.normal(size=shape).astype(np.float32))


def in_xla(function, graph):
    @tf.function(jit_compile=True)
    def compiled():
        with graph():
            return function()

    return compiled()


@pytest.mark.parametrize("num_convs", [0, 2])
def test_head_doubles_the_side(num_convs):
    head = build_mask_head(6, pool_size=5, num_convs=num_convs, width=4, norm="none", norm_epsilon=1e-5)
    found = head(normal(3, 5, 5, 6))
    assert found.shape == (3, 10, 10, 4)
    assert (found.numpy() >= 0).all()
    assert [layer.name for layer in head.layers][1:] == [*(f"conv{i}" for i in range(num_convs)), "deconv"]
    assert head.get_layer("deconv").kernel.shape == (2, 2, 4, 4 if num_convs else 6)


def test_head_with_group_norm_has_its_weights():
    head = build_mask_head(6, pool_size=5, num_convs=1, width=4, norm="group", norm_epsilon=1e-5)
    assert {weight.name for weight in head.get_layer("conv0").weights} == {"kernel", "gamma", "beta"}


def make_predictor(num_masks, channels=4):
    predictor = MaskPredictor(num_masks)
    predictor.build((None, 3, 3, channels), (None,))
    for weight in predictor.weights:
        weight.assign(normal(*weight.shape))
    return predictor


@pytest.mark.parametrize("num_masks", [5, 1], ids=["class-specific", "class-agnostic"])
def test_predictor_is_the_full_convolution_at_the_classs_channel(num_masks):
    predictor = make_predictor(num_masks)
    features, classes = normal(6, 3, 3, 4), np.array([1, 5, 2, 0, -1, 5])
    found = predictor(features, tf.constant(classes, tf.int32))
    assert found.shape == (6, 3, 3)
    full = tf.nn.conv2d(features, tf.reshape(predictor.kernel.value, [1, 1, 4, num_masks]), 1, "SAME") + predictor.bias.value
    channel = np.clip(classes - 1, 0, num_masks - 1)
    np.testing.assert_allclose(found, full.numpy()[np.arange(6), :, :, channel], atol=1e-5)


def test_predictor_trains_the_rows_of_the_classes_at_hand_only():
    predictor = make_predictor(3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(predictor(normal(2, 3, 3, 4), tf.constant([2, 2])))
    kernel, bias = tape.gradient(loss, [predictor.kernel.value, predictor.bias.value])
    assert all(isinstance(gradient, tf.Tensor) for gradient in (kernel, bias))  # dense: neither clipping nor replicas differ
    assert np.abs(kernel[:, 1]).min() > 0
    assert not np.any(tf.gather(kernel, [0, 2], axis=1))
    np.testing.assert_allclose(bias, [0, 18, 0])


def test_predictor_comes_back_from_its_configuration():
    again = MaskPredictor.from_config(MaskPredictor(7, name="mine").get_config())
    assert (again.num_masks, again.name) == (7, "mine")


def test_predictor_computes_in_bfloat16_and_keeps_float32_weights():
    predictor = MaskPredictor(3, dtype="mixed_bfloat16")
    assert predictor(normal(2, 3, 3, 4), tf.constant([1, 2])).dtype == tf.bfloat16
    assert predictor.kernel.dtype == "float32"
    probabilities = MaskProbabilities()(tf.constant([[[0.0, 200.0, -200.0]]], tf.bfloat16))
    assert probabilities.dtype == tf.float32
    np.testing.assert_allclose(probabilities, [[[0.5, 1, 0]]])


def truth():
    """Two images of two objects; the second image has none."""
    masks = np.zeros((2, 2, 56, 56), np.uint8)
    masks[0, 0, :, :28] = 255  # the left half
    masks[0, 1] = 120  # everywhere a little less than half
    boxes = np.array([[[0, 0, 40, 40], [10, 10, 30, 30]], [[0, 0, 0, 0]] * 2], np.float32)
    rois = np.array([[[0, 0, 40, 40], [0, 0, 40, 20], [10, 10, 30, 30]], [[0, 0, 9, 9]] * 3], np.float32)
    matched = np.array([[0, 0, 1], [0, 0, 0]], np.int32)
    return [tf.constant(value) for value in (masks, boxes, rois, matched)]


def test_hard_targets_cut_the_coverage_at_half():
    found = MaskTargets(28, soft=False)(*truth()).numpy()
    assert found.shape == (2, 3, 28, 28)
    np.testing.assert_array_equal(found[0, 0], np.repeat([np.arange(28) < 14], 28, axis=0))
    assert (found[0, 1] == 1).all()
    assert (found[0, 2] == 0).all()
    assert (found[1] == 0).all()


def test_soft_targets_are_the_coverage():
    found = MaskTargets(28, soft=True)(*truth())
    np.testing.assert_array_equal(found, crop_mask_targets(*truth(), size=28))
    np.testing.assert_allclose(found[0, 2], 120 / 255, atol=1e-5)


def test_loss_is_the_mean_over_the_pixels_of_foreground_regions():
    logits, targets = normal(4, 3, 3), tf.constant(RNG.uniform(size=(4, 3, 3)).astype(np.float32))
    total, normaliser = MaskLoss()(logits, targets, tf.constant([2, 0, 1, -1])).numpy()
    probability = 1 / (1 + np.exp(-logits.numpy()))
    entropy = -targets.numpy() * np.log(probability) - (1 - targets.numpy()) * np.log(1 - probability)
    assert total == pytest.approx(entropy[0].mean() + entropy[2].mean(), rel=1e-5)
    assert normaliser == 2


def test_loss_without_foreground_is_zero_and_has_no_gradient():
    logits = normal(2, 3, 3)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        term = MaskLoss()(logits, tf.zeros([2, 3, 3]), tf.constant([0, -1]))
    np.testing.assert_array_equal(term, [0, 0])
    assert not tape.gradient(term, logits).numpy().any()


@pytest.mark.parametrize("graph", [static_graph, xla_on_cpu])
def test_branch_is_the_same_under_xla_with_its_gradients(graph):
    head = build_mask_head(4, pool_size=14, num_convs=1, width=4, norm="none", norm_epsilon=1e-5)
    predictor, regions, classes = make_predictor(3), normal(6, 14, 14, 4), tf.constant([1, 0, 3, 2, 0, 0])
    for variable in (*head.trainable_variables, *predictor.trainable_variables):
        variable.assign(normal(*variable.shape))
    variables = [variable.value for variable in (*head.trainable_variables, *predictor.trainable_variables)]

    def branch():
        targets = tf.reshape(MaskTargets(28, soft=True)(*truth()), [6, 28, 28])
        with tf.GradientTape() as tape:
            tape.watch([regions, *variables])
            logits = predictor(head(regions), classes)
            loss, normaliser = tf.unstack(MaskLoss()(logits, targets, classes))
        return logits, loss, normaliser, *tape.gradient(loss, [regions, *variables])

    for plain, compiled in zip(branch(), in_xla(branch, graph), strict=True):
        assert np.abs(plain).max() > 0
        np.testing.assert_allclose(compiled, plain, rtol=1e-4, atol=1e-4 * np.abs(plain).max())


def test_branch_works_in_a_functional_graph_of_unknown_batch():
    regions, classes = keras.Input((14, 14, 4)), keras.Input((), dtype="int32")
    head = build_mask_head(4, pool_size=14, num_convs=1, width=4, norm="none", norm_epsilon=1e-5)
    model = keras.Model([regions, classes], MaskProbabilities()(MaskPredictor(3)(head(regions), classes)))
    assert model([normal(5, 14, 14, 4), tf.ones([5], tf.int32)]).shape == (5, 28, 28)
