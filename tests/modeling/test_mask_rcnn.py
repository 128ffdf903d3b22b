"""The wired model: the two graphs, the file, and the cases at the edge."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import mrcnn_tf
from mrcnn_tf.config import ConfigError
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN, load_model
from mrcnn_tf.ops.static_graph import static_graph
from tests.batches import make_batch, with_model


@pytest.fixture(scope="module")
def model(tiny_config):
    keras.utils.set_random_seed(1)
    return MaskRCNN(tiny_config)


def images(height, width, batch=1, seed=0):
    random = np.random.default_rng(seed)
    return {
        "images": random.integers(0, 256, (batch, height, width, 3)).astype(np.float32),
        "image_sizes": np.tile(np.array([[height, width]], np.int32), (batch, 1)),
    }


def trace(model):
    specs = {"images": tf.TensorSpec([None, None, None, 3]), "image_sizes": tf.TensorSpec([None, 2], tf.int32)}
    return tf.function(lambda inputs: model(inputs, training=False), input_signature=[specs])


def test_detections_keep_the_contract_at_any_size_with_one_trace(model):
    detect = trace(model)
    limit = model.config.box_head.max_detections
    for height, width, batch in ((128, 128, 2), (64, 160, 1), (32, 32, 1)):
        found = detect(images(height, width, batch))
        assert found["detection_boxes"].shape == (batch, limit, 4)
        assert found["detection_masks"].shape == (batch, limit, 28, 28)
        assert found["detection_classes"].dtype == tf.int32
        boxes, scores = found["detection_boxes"].numpy(), found["detection_scores"].numpy()
        for row in range(batch):
            count = int(found["num_detections"][row])
            assert np.all(scores[row, :count] > model.config.box_head.score_threshold)
            assert np.all(np.diff(scores[row, :count]) <= 0)
            assert np.all(found["detection_classes"][row, :count] > 0)
            assert not scores[row, count:].any()
            assert not boxes[row, count:].any()
            assert not found["detection_masks"].numpy()[row, count:].any()
            assert not found["detection_classes"].numpy()[row, count:].any()
        assert boxes.min() >= 0
        assert boxes[..., 2].max() <= height
        assert boxes[..., 3].max() <= width
    assert detect.experimental_get_tracing_count() == 1


def test_nothing_above_the_threshold_gives_no_detections(tiny_config):
    model = MaskRCNN(with_model(tiny_config, box_head={"score_threshold": 0.999}))
    found = trace(model)(images(64, 64))
    assert int(found["num_detections"][0]) == 0
    assert not found["detection_masks"].numpy().any()
    assert not found["detection_boxes"].numpy().any()


def test_static_graph_detects_the_same(model):
    inputs = images(64, 96, 2)

    @tf.function(jit_compile=True)
    def static(inputs):
        with static_graph():
            return model(inputs, training=False)

    expected, found = trace(model)(inputs), static({key: tf.constant(value) for key, value in inputs.items()})
    np.testing.assert_array_equal(found["detection_classes"], expected["detection_classes"])
    np.testing.assert_allclose(found["detection_boxes"], expected["detection_boxes"], atol=2e-2)
    np.testing.assert_allclose(found["detection_scores"], expected["detection_scores"], atol=1e-4)
    np.testing.assert_allclose(found["detection_masks"], expected["detection_masks"], atol=1e-3)


def test_the_two_parts_of_the_graph_find_what_the_whole_finds(model):
    trunk, rest = model.split()
    inputs = {name: tf.constant(value) for name, value in images(128, 96, 2).items()}
    # XLA compiles the trunk, which has no shape that depends on what is seen.
    between = tf.function(lambda inputs: trunk(inputs, training=False), jit_compile=True)(inputs)
    assert [len(between[name]) for name in ("features", "objectness", "deltas")] == [5, 5, 5]
    found, expected = rest({**inputs, "trunk": between}, training=False), model(inputs, training=False)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-3)
    parts = {id(variable) for part in (trunk, rest) for variable in part.variables}
    assert parts == {id(variable) for variable in model.variables}


def test_masks_can_be_asked_for_at_any_boxes(model):
    boxes, masks = model.halves()
    inputs = images(128, 96, 2)
    found, expected = boxes(inputs, training=False), model(inputs, training=False)
    assert set(found) == {*expected, "features"} - {"detection_masks"}
    at = {"features": found["features"], "boxes": found["detection_boxes"], "classes": found["detection_classes"]}
    np.testing.assert_allclose(masks(at, training=False), expected["detection_masks"], atol=1e-4)
    nothing = masks({**at, "classes": tf.zeros_like(at["classes"])}, training=False)
    assert not nothing.numpy().any()
    parts = {id(variable) for part in (boxes, masks) for variable in part.variables}
    assert parts == {id(variable) for variable in model.variables}


def test_soft_nms_can_be_given_to_a_trained_model_and_is_kept_in_its_file(model, tmp_path):
    box_head = model.config.box_head.model_copy(update={"nms": "soft_gaussian", "max_detections": 200, "score_threshold": 0.1})
    soft = MaskRCNN(model.config.model_copy(update={"box_head": box_head}), pretrained=False)
    soft.set_weights(model.get_weights())
    soft.save(tmp_path / "soft.keras")
    loaded = load_model(tmp_path / "soft.keras")
    assert loaded.config.box_head.nms == "soft_gaussian"
    inputs = images(64, 96)
    expected, found = trace(model)(inputs), trace(loaded)(inputs)
    assert int(found["num_detections"][0]) > int(expected["num_detections"][0])
    assert found["detection_scores"][0, 0] == expected["detection_scores"][0, 0]


def test_another_policy_has_a_copy_of_the_weights(model):
    other = model.with_policy("mixed_bfloat16")
    assert (other.dtype_policy.name, model.dtype_policy.name) == ("mixed_bfloat16", "float32")
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not {id(variable) for variable in model.variables} & {id(variable) for variable in other.variables}


def test_padding_does_not_change_what_is_found(model):
    """The region outside image_sizes is zero after normalisation, whatever the padding holds."""
    small = images(64, 64)
    padded = {"images": np.pad(small["images"], [(0, 0), (0, 32), (0, 64), (0, 0)], constant_values=200), **{}}
    zeros = {"images": np.pad(small["images"], [(0, 0), (0, 32), (0, 64), (0, 0)])}
    detect = trace(model)
    first = detect({**padded, "image_sizes": small["image_sizes"]})
    second = detect({**zeros, "image_sizes": small["image_sizes"]})
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
    assert first["detection_boxes"].numpy().max() <= 64


@pytest.mark.parametrize(("clip_to", "limit"), [("image", 64), ("input", 128)])
def test_detections_are_cut_at_the_image_or_at_the_input(tiny_config, clip_to, limit):
    model = MaskRCNN(with_model(tiny_config, box_head={"clip_to": clip_to, "score_threshold": 0.0}))
    bias = model.box_head.get_layer("box_deltas").bias
    bias.assign(np.tile([0.0, 0.0, 20.0, 20.0], bias.shape[0] // 4))  # boxes grow by exp(20 / 5)
    inputs = {**images(128, 128), "image_sizes": np.array([[64, 64]], np.int32)}
    assert trace(model)(inputs)["detection_boxes"].numpy().max() == limit


def test_both_graphs_share_every_variable(model):
    inference = {variable.path for variable in model.variables}
    training = {variable.path for variable in model.training_graph.variables}
    assert training == inference
    assert len(model.variables) == len({id(variable) for variable in model.variables})


def test_a_file_holds_everything(model, tiny_config, tmp_path):
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert isinstance(loaded, mrcnn_tf.MaskRCNN)
    assert loaded.config == tiny_config.model
    assert [category.name for category in loaded.config.categories] == [c.name for c in tiny_config.model.categories]
    inputs = images(64, 96)
    expected, found = trace(model)(inputs), trace(loaded)(inputs)
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key])


def test_load_model_refuses_other_files(tmp_path):
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match=r"broken\.keras"):
        load_model(broken)
    other = tmp_path / "other.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(other)
    with pytest.raises(ValueError, match="Sequential"):
        load_model(other)


def test_categories_are_needed(tiny_config):
    with pytest.raises(ConfigError, match="categories"):
        MaskRCNN(tiny_config.with_categories([]))


def test_faster_rcnn_has_no_masks(tiny_config):
    model = MaskRCNN(with_model(tiny_config, mask_head={"enabled": False}))
    assert model.mask_head is None
    assert "detection_masks" not in trace(model)(images(64, 64))
    batch = make_batch()
    del batch["gt_masks"]
    terms = model.training_graph({**batch, "seeds": np.zeros((2, 2), np.int32)})
    assert set(terms) == {"rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss", *model.observed}


@pytest.mark.parametrize(
    "changes",
    [
        {"box_head": {"class_agnostic_boxes": True}, "mask_head": {"class_agnostic": True}},
        {"box_head": {"kind": "4conv1fc", "norm": "group", "conv_width": 32}, "mask_head": {"norm": "group", "width": 32}},
        {"roi_align": {"kind": "pool"}},
        {"roi_align": {"sampling_ratio": 0}},
        {"roi_align": {"kind": "crop", "level_rounding": "nearest"}, "rpn": {"joint_levels": True, "clip_to": "input"}},
        {"roi_align": {"kind": "pool", "level_rounding": "nearest"}, "rpn": {"box_weights": (10.0, 10.0, 5.0, 5.0)}},
        {"rpn": {"num_convs": 2, "box_loss": "smooth_l1"}, "box_head": {"box_loss": "smooth_l1"}, "fpn": {"norm": "batch"}},
        {
            "fpn": {"p6": "conv", "norm": "frozen"},
            "rpn": {"norm": "batch", "ranking": "probability", "clip_to": "input"},
            "roi_align": {"sampling_ratio": 1, "aligned": False, "minimum_size": 0.0, "max_level": 6},
            "box_head": {"clip_to": "input"},
        },
    ],
    ids=["agnostic", "4conv1fc", "pool", "adaptive", "crop", "nearest", "smooth_l1", "model garden"],
)
def test_variants_detect_and_train(tiny_config, changes):
    model = MaskRCNN(with_model(tiny_config, **changes))
    model.compile(keras.optimizers.SGD(0.0))
    losses = model.train_on_batch(make_batch(), return_dict=True)
    assert all(np.isfinite(value) for value in losses.values())
    assert set(trace(model)(images(64, 64))) >= {"detection_boxes", "detection_masks"}


def test_bfloat16_keeps_geometry_in_float32(tiny_config, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = MaskRCNN(tiny_config)
    finally:
        keras.config.set_dtype_policy("float32")
    found = trace(model)(images(64, 64))
    assert all(found[key].dtype == tf.float32 for key in ("detection_boxes", "detection_scores", "detection_masks"))
    assert all(variable.dtype == "float32" for variable in model.trainable_variables)
    float32_layers = {
        "proposals",
        "box_pool",
        "mask_pool",
        "detect_boxes",
        "rpn_losses",
        "roi_sampler",
        "box_losses",
        "mask_loss",
    }
    layers = {layer.name: layer for layer in [*model.layers, *model.training_graph.layers]}
    assert all(layers[name].compute_dtype == "float32" for name in float32_layers)
    assert model.fpn.get_layer("output2").compute_dtype == "bfloat16"
    model.compile(keras.optimizers.SGD(0.01), jit_compile=False)
    assert all(np.isfinite(value) for value in model.train_on_batch(make_batch(), return_dict=True).values())
    path = tmp_path / "bf16.keras"
    model.save(path)
    assert load_model(path).fpn.get_layer("output2").compute_dtype == "bfloat16"


def test_frozen_stages_get_no_gradient(tiny_config):
    config = with_model(tiny_config, backbone={"frozen_stages": 3})
    model = MaskRCNN(config)
    model.compile(keras.optimizers.SGD(0.1))
    trainable = {variable.path for variable in model.trainable_variables}
    assert not any(part in path for path in trainable for part in ("stem", "res2", "res3"))
    before = model.get_weights()
    model.train_on_batch(make_batch())
    changed = [v.path for v, old in zip(model.weights, before, strict=True) if not np.array_equal(v.numpy(), old)]
    assert set(changed) <= trainable | {v.path for v in model.optimizer.variables}
    assert changed


def test_no_two_layers_start_alike(tiny_config):
    """Keras gives the same numbers to all layers that share an initializer."""
    kernels = {w.path: np.asarray(w) for w in MaskRCNN(tiny_config).trainable_variables if len(w.shape) > 1}
    drawn = [(path, value.ravel()[:8].tobytes()) for path, value in kernels.items()]
    assert len({value for _, value in drawn}) == len(drawn)
