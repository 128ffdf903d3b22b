"""Activations that are computed twice: the same gradients from less memory."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.backbones import build_backbone
from mrcnn_tf.modeling.graph_options import sums_in_fixed_order
from mrcnn_tf.modeling.layers import ConvNorm
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.modeling.recompute import Recomputable, recomputing
from tests.batches import with_model
from tests.modeling.steps import assert_close, build, fit, numpy, one_device, two_devices, unequal_batches, weights

STAGES, LAYERS, WIDTH, SIZE, IMAGES = 3, 3, 16, 16, 4


def chain(norm="frozen", *, frozen_stages=0, layers=LAYERS, width=WIDTH):
    """A trunk in small: stages of convolutions around which something is added."""
    keras.utils.set_random_seed(3)
    features = inputs = keras.Input((None, None, 3), dtype=keras.config.dtype_policy().compute_dtype)
    outputs = {}
    for stage in range(STAGES):
        for index in range(layers):
            name, trainable = f"s{stage}_{index}", stage >= frozen_stages
            branch = ConvNorm(width, 3, norm=norm, activation="relu", name=name, trainable=trainable)(features)
            features = keras.layers.Add()([features, branch]) if index else branch
        outputs[f"c{stage}"] = features
    return Recomputable(inputs, outputs, name="chain")


def images(size=SIZE):
    return np.random.default_rng(0).normal(size=(IMAGES, size, size, 3)).astype(np.float32)


def gradient_step(model, *, wanted, jit_compile=False, size=SIZE):
    """Of a loss on all outputs of this replica's share of the images: the gradients, added up over the replicas."""
    variables = [variable.value for variable in model.trainable_variables]
    pixels = tf.constant(images(size))

    def forward(inputs):
        with recomputing(wanted):
            return model(tf.cast(inputs, model.compute_dtype), training=True)

    # Not compiled without need: synchronised norms cannot be called from a nested function.
    compiled = tf.function(forward, jit_compile=True, autograph=False) if jit_compile else forward

    def step():
        context = tf.distribute.get_replica_context()
        share = IMAGES // context.num_replicas_in_sync
        first = context.replica_id_in_sync_group * share
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            outputs = compiled(pixels[first : first + share])
            loss = tf.add_n([tf.reduce_sum(tf.cast(value, tf.float32) ** 2) for value in outputs.values()])
        return context.all_reduce("SUM", tape.gradient(loss, variables))

    return step


def gradients_and_state(norm, strategy, **options):
    """The gradients, and what else the step has changed."""
    with strategy.scope():
        model = chain(norm)
    step = gradient_step(model, **options)
    found = tf.function(lambda: strategy.run(step), autograph=False)()
    gradients = [strategy.experimental_local_results(value)[0].numpy() for value in found]
    return gradients, [numpy(variable) for variable in model.non_trainable_variables]


@pytest.mark.parametrize("strategy", [one_device, pytest.param(two_devices, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", ["frozen", "batch", pytest.param("sync_batch", marks=pytest.mark.slow), "group"])
def test_gradients_are_equal_to_the_bit_and_statistics_are_updated_once(norm, strategy):
    kept, state = gradients_and_state(norm, strategy(), wanted=False)
    again, state_again = gradients_and_state(norm, strategy(), wanted=True)
    for one, other in zip([*again, *state_again], [*kept, *state], strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(np.abs(value).max() > 0 for value in kept)


def test_under_xla_gradients_are_equal_up_to_rounding():
    kept, _ = gradients_and_state("frozen", one_device(), wanted=False, jit_compile=True)
    again, _ = gradients_and_state("frozen", one_device(), wanted=True, jit_compile=True)
    for one, other in zip(again, kept, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())


def test_under_mixed_precision_gradients_are_equal_to_the_bit():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        kept, again = (gradients_and_state("group", one_device(), wanted=wanted)[0] for wanted in (False, True))
    finally:
        keras.config.set_dtype_policy(before)
    for one, other in zip(again, kept, strict=True):
        np.testing.assert_array_equal(one, other)


def count_convolutions(step):
    graph = tf.function(step, autograph=False).get_concrete_function().graph
    return sum(operation.type == "Conv2D" for operation in graph.get_operations())


def test_stages_that_are_trained_are_computed_twice_and_frozen_ones_once():
    model = chain(frozen_stages=1)
    assert count_convolutions(gradient_step(model, wanted=False)) == STAGES * LAYERS
    assert count_convolutions(gradient_step(model, wanted=True)) == LAYERS + 2 * (STAGES - 1) * LAYERS


def peak_memory(model, wanted, size):
    """Bytes of tensors in a step, of TensorFlow's allocator for oneDNN."""
    step = tf.function(gradient_step(model, wanted=wanted, size=size), autograph=False)
    with sums_in_fixed_order():
        step()
        tf.config.experimental.reset_memory_stats("CPU:0")
        before = tf.config.experimental.get_memory_info("CPU:0")["current"]
        step()
    return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before


def test_it_takes_less_memory():
    try:
        tf.config.experimental.get_memory_info("CPU:0")
    except (ValueError, tf.errors.OpError) as error:
        pytest.skip(f"TensorFlow does not count memory on this CPU: {error}")
    size, layers = 128, 8
    model = chain(layers=layers, width=32)
    activation = IMAGES * size * size * 32 * 4
    kept, again = (peak_memory(model, wanted, size) for wanted in (False, True))
    # One of each layer, or of a stage and of what it is given; besides, what the convolutions work with.
    assert kept > STAGES * layers * activation
    assert again < 0.7 * kept


def test_a_training_run_ends_with_the_same_weights(tiny_config):
    batches = unequal_batches(1)
    kept, _, losses = fit(tiny_config, one_device(), batches)
    again, _, losses_again = fit(tiny_config, one_device(), batches, recompute=True)
    assert losses_again == pytest.approx(losses, rel=1e-6)
    assert_close(weights(again), weights(kept), rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "precision", "norm", "options", "tolerance"),
    [
        (two_devices, "float32", "sync_batch", {"steps_per_execution": 2}, 1e-6),
        (two_devices, "mixed_bfloat16", "frozen", {"gradient_accumulation_steps": 2}, 1e-6),
        (one_device, "float32", "frozen", {"jit_compile": True}, 1e-5),
        (one_device, "mixed_float16", "batch", {"steps_per_execution": 2}, 1e-6),
    ],
)
def test_it_goes_with_the_other_options(tiny_config, strategy, precision, norm, options, tolerance):
    config = with_model(tiny_config, backbone={"norm": norm})
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        kept, _, losses = fit(config, strategy(), unequal_batches(2), **options)
        again, _, losses_again = fit(config, strategy(), unequal_batches(2), recompute=True, **options)
    finally:
        keras.config.set_dtype_policy(before)
    assert losses_again == pytest.approx(losses, rel=10 * tolerance)
    assert_close(weights(again), weights(kept), rtol=0, atol=tolerance)


def test_a_saved_model_goes_on_as_it_was_compiled_and_has_the_weights_of_any(tiny_config, tmp_path):
    model = build(tiny_config, one_device(), recompute=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_compile_config()["recompute"] is True
    plain = MaskRCNN(tiny_config, pretrained=False)
    assert [variable.path for variable in plain.variables] == [variable.path for variable in loaded.variables]
    for one, other in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other))


def test_inference_is_not_changed():
    model = chain()
    with recomputing():
        inside = model(images(), training=False)
    for name, value in model(images(), training=False).items():
        np.testing.assert_array_equal(inside[name], value)


def test_a_trunk_on_its_own_is_saved_and_loaded(tmp_path):
    trunk = build_backbone("efficientnet_lite0")
    model = Recomputable(trunk.input, trunk.output, name=trunk.name)
    model.save(tmp_path / "trunk.keras")
    loaded = keras.saving.load_model(tmp_path / "trunk.keras")
    assert list(loaded.output) == ["c2", "c3", "c4", "c5"]
    assert len(loaded.variables) == len(model.variables)
    pixels = images(64)
    with recomputing():
        found = loaded(pixels)
    for name, value in model(pixels).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
