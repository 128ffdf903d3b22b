"""The signatures against the predictor, in the process that traced them; the written SavedModel has its own tests."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import Config
from mrcnn_tf.data.images import load_image
from mrcnn_tf.export.serving_graph import ServingGraph
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.predict import Predictor
from tests.export.pictures import assert_same, with_edges

MATTERPORT_LIKE = {
    "box_ends": "inclusive",
    "preprocessing": {
        "min_size": 100,
        "max_size": 128,
        "resize_rounding": "half_even",
        "enlarge_only": True,
        "padding": "square",
        "placement": "centre",
    },
    "mask_head": {"width": 16, "num_convs": 1, "paste": "stretched"},
}
TORCHVISION_LIKE_WITHOUT_MASKS = {
    "preprocessing": {"min_size": 96, "max_size": 150, "antialias": False, "quantize": False, "resize_rounding": "floor"},
    "mask_head": {"enabled": False},
}
MODEL_GARDEN_LIKE = {"box_head": {"fc_width": 32, "max_detections": 10, "clip_to": "input"}, "mask_head": {"paste": "expanded"}}


def data_of(paths):
    return [path.read_bytes() for path in paths]


def run(function, *values):
    return {name: value.numpy() for name, value in function(*values).items()}


@pytest.mark.parametrize("changes", [MATTERPORT_LIKE, TORCHVISION_LIKE_WITHOUT_MASKS, MODEL_GARDEN_LIKE])
def test_every_way_of_preprocessing_and_pasting(changes, tiny_config, pictures):
    content = tiny_config.model_dump(mode="json")
    for section, values in changes.items():
        content["model"][section] = {**content["model"][section], **values} if isinstance(values, dict) else values
    keras.utils.set_random_seed(5)
    model = with_edges(MaskRCNN(Config.model_validate(content)))
    signatures = ServingGraph(model).signatures()
    assert ("full_masks" in signatures) == model.config.mask_head.enabled
    paths = [pictures[name] for name in ("jpeg", "png", "turned_png")]
    outputs = run(signatures.get("full_masks", signatures["serving_default"]), tf.constant(data_of(paths)))
    predict = Predictor(model)
    for row, path in enumerate(paths):
        assert_same(outputs, row, predict(load_image(path)))


def test_other_sizes_than_the_models(tiny_model, pictures):
    serve = ServingGraph(tiny_model, min_size=64, max_size=200).signatures()["serving_default"]
    outputs = run(serve, tf.constant(data_of([pictures["png"]])))
    assert_same(outputs, 0, Predictor(tiny_model, min_size=64, max_size=200)(load_image(pictures["png"])))


def test_xla_and_pinned_suppression_find_the_same(tiny_model, pictures):
    serve = ServingGraph(tiny_model, xla=True, nms_device="/device:CPU:0").signatures()["serving_default"]
    functions = serve.graph.as_graph_def().library.function
    assert any(function.attr["_XlaMustCompile"].b for function in functions)
    nodes = [node for function in functions for node in function.node_def if node.op == "NonMaxSuppressionV4"]
    assert nodes
    assert {node.device for node in nodes} == {"/device:CPU:0"}
    paths = [pictures["jpeg"], pictures["grey"], pictures["png"]]
    outputs = run(serve, tf.constant(data_of(paths)))
    for row, path in enumerate(paths):
        assert_same(outputs, row, Predictor(tiny_model)(load_image(path)))


def test_nothing_is_pinned_or_compiled_unasked(tiny_model):
    functions = ServingGraph(tiny_model).signatures()["image"].graph.as_graph_def().library.function
    assert not any(function.attr["_XlaMustCompile"].b for function in functions)
    assert {node.device for function in functions for node in function.node_def if node.op == "NonMaxSuppressionV4"} == {""}


def test_images_without_pixels_are_refused(tiny_model):
    function = ServingGraph(tiny_model).signatures()["image"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected images of at least one pixel"):
        function(tf.zeros([2, 0, 5, 3], tf.uint8))
    assert function(tf.zeros([0, 4, 5, 3], tf.uint8))["detection_boxes"].shape == (0, 10, 4)


def test_nothing_found(tiny_config, pictures):
    content = tiny_config.model_dump(mode="json")
    content["model"]["box_head"]["score_threshold"] = 0.99
    outputs = run(
        ServingGraph(MaskRCNN(Config.model_validate(content))).signatures()["full_masks"], tf.constant(data_of([pictures["png"]]))
    )
    assert outputs["num_detections"].tolist() == [0]
    assert outputs["image_size"].tolist() == [[333, 210]]
    assert not np.any(outputs["detection_masks"])
    assert set(outputs["detection_masks_rle_bytes"].ravel()) == set(outputs["detection_class_names"].ravel()) == {b""}
