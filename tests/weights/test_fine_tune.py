"""Starting from a trained model: what is kept, what is new, and what the user is told."""

import logging

import numpy as np
import pytest

from mrcnn_tf.config import ConfigError, load_config
from mrcnn_tf.data.shapes import CATEGORIES
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.train import train
from mrcnn_tf.weights.assign import PretrainedWeightsError
from mrcnn_tf.weights.fine_tune import start_from
from tests.batches import with_model

OTHERS = [{"id": 5, "name": "ring"}, {"id": 9, "name": "moon"}]


@pytest.fixture(scope="module")
def trained(tiny_config, tmp_path_factory):
    """A model in which every weight matters, and its file."""
    model = MaskRCNN(tiny_config)
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.uniform(0.1, 1, weight.shape))
    path = tmp_path_factory.mktemp("trained") / "trained.keras"
    model.save(path)
    return model, path


def weights_of(model, *, per_class):
    """Path to value; of the layers with an output per class, or of the others."""
    layers = ("class_logits", "box_deltas", "mask_predictor")
    return {w.path: np.asarray(w) for w in model.weights if any(name in w.path for name in layers) == per_class}


def test_same_classes_keep_everything(trained, tiny_config):
    source, path = trained
    model = MaskRCNN(tiny_config)
    assert start_from(model, path) == ()
    for found, expected in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_other_classes_keep_everything_but_the_predictors_and_say_so(trained, tiny_config, caplog):
    source, path = trained
    model = MaskRCNN(tiny_config.with_categories(OTHERS))
    initial = weights_of(model, per_class=True)
    with caplog.at_level(logging.WARNING, "mrcnn_tf.weights"):
        assert start_from(model, path) == ("box_head/class_logits", "box_head/box_deltas", "mask_predictor")
    assert "start from random weights: box_head/class_logits, box_head/box_deltas, mask_predictor" in caplog.text
    for name, value in weights_of(model, per_class=True).items():
        np.testing.assert_array_equal(value, initial[name])
    for name, value in weights_of(source, per_class=False).items():
        np.testing.assert_array_equal(weights_of(model, per_class=False)[name], value)


def test_class_agnostic_predictors_are_kept(trained, tiny_config, tmp_path):
    agnostic = with_model(tiny_config, box_head={"class_agnostic_boxes": True}, mask_head={"class_agnostic": True})
    MaskRCNN(agnostic).save(tmp_path / "agnostic.keras")
    assert start_from(MaskRCNN(agnostic.with_categories(OTHERS)), tmp_path / "agnostic.keras") == ("box_head/class_logits",)


def test_a_mask_branch_may_come_or_go(trained, tiny_config, tmp_path):
    _, path = trained
    boxes_only = with_model(tiny_config, mask_head={"enabled": False})
    model = MaskRCNN(boxes_only)
    assert start_from(model, path) == ()
    model.save(tmp_path / "boxes.keras")
    assert start_from(MaskRCNN(tiny_config), tmp_path / "boxes.keras") == ("mask_head", "mask_predictor")


def test_misfits_are_listed_and_nothing_is_assigned(trained, tiny_config):
    model = MaskRCNN(with_model(tiny_config, box_head={"fc_width": 16}))
    before = [np.asarray(weight) for weight in model.weights]
    with pytest.raises(PretrainedWeightsError, match=r"fc0/kernel is \[784, 32\], the model needs \[784, 16\]"):
        start_from(model, trained[1])
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_no_file_and_another_file(tiny_config, tmp_path):
    model = MaskRCNN(tiny_config)
    with pytest.raises(PretrainedWeightsError, match="there is no file"):
        start_from(model, tmp_path / "none.keras")
    (tmp_path / "other.keras").write_bytes(b"PK nonsense")
    with pytest.raises(PretrainedWeightsError, match=r"expected a \.keras file"):
        start_from(model, tmp_path / "other.keras")


# Through a configuration.


@pytest.fixture
def own(tmp_path, trained):
    """A configuration that names the trained model and little more."""
    path = tmp_path / "own.yaml"
    path.write_text(f"model: {{weights: {trained[1]}, backbone: {{frozen_stages: 3}}}}\ntrain: {{xla: 'off'}}\n")
    return path


def test_a_configuration_takes_what_it_does_not_give_from_the_model(own, trained):
    config = load_config(own, ["model.box_head.score_threshold=0.3"]).model
    assert config.backbone.name == "efficientnet_lite0"
    assert (config.fpn.width, config.rpn.num_samples, config.preprocessing.min_size) == (16, 32, 128)
    assert (config.backbone.frozen_stages, config.box_head.score_threshold) == (3, 0.3)
    assert config.categories == ()
    assert config.weights == str(trained[1])


def test_the_configuration_of_a_run_repeats_it(own, tmp_path):
    config = load_config(own).with_categories(CATEGORIES)
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config


def test_a_model_made_of_it_starts_from_the_weights(own, trained):
    model = MaskRCNN(load_config(own).with_categories(CATEGORIES))
    for found, expected in zip(model.backbone.weights, trained[0].backbone.weights, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_training_goes_on_from_it(own, shapes_dir, tmp_path, caplog):
    split = "train: {images: images, annotations: instances_train.json}"
    data = f"{{root: {shapes_dir}, {split}, min_sizes: [128], max_size: 128, image_size: [128, 128]}}"
    overrides = [f"data={data}", "train.batch_size=2", "train.schedule=cosine", "train.num_steps=1"]
    run = train(
        load_config(own, [*overrides, "train.warmup_steps=0", "train.learning_rate=1e-9"]), tmp_path / "run", progress=False
    )
    assert "random weights" not in caplog.text
    again = load_config(tmp_path / "run" / "config.yaml")
    assert (again.model.fpn.width, run.steps) == (16, 1)


@pytest.mark.parametrize("name", ["none.keras", "other.keras"])
def test_a_configuration_that_names_no_model_is_an_error(tmp_path, name):
    (tmp_path / "other.keras").write_bytes(b"nonsense")
    path = tmp_path / "own.yaml"
    path.write_text(f"model: {{weights: {tmp_path / name}}}")
    with pytest.raises(ConfigError, match=rf"own.yaml: model.weights: .*{name}"):
        load_config(path)
