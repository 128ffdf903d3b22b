"""Loss terms against their formulas, in value and gradient."""

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops import losses

RESIDUALS = np.array([-3.0, -0.5, -0.1, 0.0, 0.05, 0.5, 2.0], np.float32)


def gradient(function, values):
    values = tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = tf.reduce_sum(function(values))
    return tape.gradient(total, values).numpy()


def test_term_keeps_sum_and_normaliser_apart():
    total = tf.constant(6.0)
    with tf.GradientTape() as tape:
        tape.watch(total)
        pair = losses.term(total, total)
    assert pair.shape == (2,)
    assert pair.dtype == tf.float32
    np.testing.assert_array_equal(pair, [6, 6])
    # no gradient comes through the normaliser
    assert tape.gradient(pair, total).numpy() == 1


def test_term_is_float32_under_mixed_precision():
    assert losses.term(tf.constant(2.0, tf.bfloat16), 3).dtype == tf.float32


@pytest.mark.parametrize("beta", [1 / 9, 0.5, 1.0])
def test_smooth_l1_is_its_formula(beta):
    size = np.abs(RESIDUALS)
    expected = np.where(size < beta, 0.5 * size**2 / beta, size - beta / 2)
    np.testing.assert_allclose(losses.smooth_l1(tf.constant(RESIDUALS), beta), expected, rtol=1e-6)
    slope = np.where(size < beta, RESIDUALS / beta, np.sign(RESIDUALS))
    np.testing.assert_allclose(gradient(lambda r: losses.smooth_l1(r, beta), RESIDUALS), slope, rtol=1e-6)


def test_smooth_l1_nears_l1_as_beta_falls():
    np.testing.assert_allclose(losses.smooth_l1(tf.constant(RESIDUALS), 1e-6), np.abs(RESIDUALS), atol=1e-6)


def test_box_regression_chooses():
    residual = tf.constant(RESIDUALS)
    np.testing.assert_array_equal(losses.box_regression(residual, "l1", 0.5), np.abs(RESIDUALS))
    np.testing.assert_array_equal(losses.box_regression(residual, "smooth_l1", 0.5), losses.smooth_l1(residual, 0.5))


def test_sigmoid_cross_entropy_is_its_formula():
    logits, targets = RESIDUALS, np.array([0, 1, 0.5, 1, 0.25, 0, 1], np.float32)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -targets * np.log(probability) - (1 - targets) * np.log(1 - probability)
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(tf.constant(logits), tf.constant(targets)), expected, rtol=1e-5)
    found = gradient(lambda x: losses.sigmoid_cross_entropy(x, tf.constant(targets)), logits)
    np.testing.assert_allclose(found, probability - targets, atol=1e-6)


def test_sigmoid_cross_entropy_of_large_logits_is_finite():
    found = losses.sigmoid_cross_entropy(tf.constant([1e4, -1e4, 1e4]), tf.constant([0.0, 1.0, 1.0]))
    np.testing.assert_allclose(found, [1e4, 1e4, 0])
