"""Where images lie in the padded input and where boxes end: the layers, and what the model does with them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.modeling.windows import ImageWindows, InputWindows, MoveEnds
from mrcnn_tf.ops.static_graph import static_graph
from tests.batches import make_batch, with_model

SIZES = np.array([[64, 40], [33, 96]], np.int32)
IMAGES = np.zeros([2, 64, 96, 3], np.float32)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (ImageWindows(centred=False), [[0, 0, 64, 40], [0, 0, 33, 96]]),
        (ImageWindows(centred=True), [[0, 28, 64, 68], [15, 0, 48, 96]]),
        (InputWindows(), [[0, 0, 64, 96], [0, 0, 64, 96]]),
    ],
    ids=["top left", "centred", "input"],
)
def test_windows(layer, expected):
    found = layer(IMAGES, SIZES)
    assert found.dtype == tf.float32
    np.testing.assert_array_equal(found, expected)
    images, sizes = keras.Input((None, None, 3)), keras.Input((2,), dtype="int32")
    model = keras.Model([images, sizes], layer(images, sizes))
    np.testing.assert_array_equal(model([IMAGES, SIZES]), expected)
    np.testing.assert_array_equal(tf.function(layer, jit_compile=True)(IMAGES, SIZES), expected)


def test_ends_move_there_and_back():
    boxes = np.array([[[3, 4, 10, 12], [0, 0, 0, 0]]], np.float32)
    inside = MoveEnds(-1.0)(boxes)
    np.testing.assert_array_equal(inside, [[[3, 4, 9, 11], [0, 0, 0, 0]]])
    np.testing.assert_array_equal(MoveEnds(1.0)(inside), boxes)


def build(tiny_config, growth=1.0, **sections):
    """A model whose proposals are anchors enlarged by exp(growth), so that they reach beyond the image."""
    keras.utils.set_random_seed(3)
    many = {"post_nms_top_k_test": 300, "pre_nms_top_k_test": 300}
    model = MaskRCNN(with_model(tiny_config, rpn={**many, **sections.pop("rpn", {})}, **sections))
    deltas = model.rpn_head.get_layer("deltas")
    deltas.kernel.assign(tf.zeros_like(deltas.kernel))
    deltas.bias.assign(np.tile([0, 0, growth, growth], deltas.bias.shape[0] // 4))
    return model


def pictures(sizes, side=128, padding=0, offsets=None):
    random = np.random.default_rng(5)
    images = np.full((len(sizes), side, side, 3), padding, np.float32)
    for image, (height, width), (top, left) in zip(images, sizes, offsets or [(0, 0)] * len(sizes), strict=True):
        image[top : top + height, left : left + width] = random.integers(0, 256, (height, width, 3))
    return {"images": images, "image_sizes": np.array(sizes, np.int32)}


def proposals_of(model):
    return keras.Model(model.inputs, model.get_layer("proposals").output)


SMALL = [(60, 128), (128, 50)]
CENTRED = ((34, 0), (0, 39))


@pytest.mark.parametrize("padding_value", ["mean", "black"])
def test_centred_images_are_found_where_they_lie(tiny_config, padding_value):
    model = build(tiny_config, preprocessing={"placement": "centre", "padding_value": padding_value})
    found = model(pictures(SMALL, offsets=CENTRED))
    for boxes, count, (height, width), (top, left) in zip(
        found["detection_boxes"].numpy(), found["num_detections"].numpy(), SMALL, CENTRED, strict=True
    ):
        assert count > 0
        assert boxes[:count, 0].min() >= top
        assert boxes[:count, 1].min() >= left
        assert boxes[:count, 2].max() <= top + height
        assert boxes[:count, 3].max() <= left + width
        assert not boxes[count:].any()
    again = model(pictures(SMALL, padding=77, offsets=CENTRED))
    for key, value in found.items():
        np.testing.assert_array_equal(again[key], value)  # whatever stands in the padding


def test_black_padding_is_not_the_mean(tiny_config):
    inputs = pictures(SMALL)
    mean, black = (
        keras.Model(model.inputs, model.get_layer("normalize").output)(inputs).numpy()
        for model in (build(tiny_config), build(tiny_config, preprocessing={"padding_value": "black"}))
    )
    np.testing.assert_array_equal(mean[0, :60], black[0, :60])
    assert not mean[0, 60:].any()
    np.testing.assert_allclose(black[0, 60:], -127 / 128, atol=1e-6)


@pytest.mark.parametrize(("clip_to", "reaches"), [("image", [60, 128]), ("input", [128, 128])])
def test_proposals_are_cut_at_the_image_or_at_the_input(tiny_config, clip_to, reaches):
    proposals, is_valid = proposals_of(build(tiny_config, rpn={"clip_to": clip_to}))(pictures(SMALL))
    assert is_valid[0].numpy().sum() > 20
    np.testing.assert_array_equal(proposals[0].numpy()[:, 2:].max(axis=0), reaches)


def test_inclusive_boxes_end_at_the_last_pixel(tiny_config):
    sizes = [(128, 128), (100, 90)]
    inputs = pictures(sizes)
    exclusive, inclusive = build(tiny_config), build(tiny_config, box_ends="inclusive")
    ends = [proposals_of(model)(inputs)[0].numpy()[..., 2:].max(axis=1) for model in (exclusive, inclusive)]
    np.testing.assert_array_equal(ends[0], sizes)
    np.testing.assert_array_equal(ends[1], np.array(sizes) - 1)
    inside = keras.Model(inclusive.inputs, inclusive.get_layer("detect_boxes").output[0])(inputs).numpy()
    found = inclusive(inputs)
    for boxes, inner, count, size in zip(
        found["detection_boxes"].numpy(), inside, found["num_detections"].numpy(), sizes, strict=True
    ):
        assert count > 0
        np.testing.assert_array_equal(boxes[:count], inner[:count] + np.float32([0, 0, 1, 1]))
        assert np.all(boxes[:, 2:] <= size)
        assert not boxes[count:].any()


def test_inclusive_anchors_are_one_pixel_smaller(tiny_config):
    """Without deltas proposals are anchors; those of 24 pixels fit into the input."""
    heights = {}
    for ends in ("exclusive", "inclusive"):
        model = build(tiny_config, 0.0, box_ends=ends, anchors={"sizes": ((24.0,),) * 5, "aspect_ratios": (1.0,)})
        proposals, is_valid = proposals_of(model)(pictures([(128, 128)]))
        boxes = proposals[0].numpy()[is_valid[0].numpy()]
        heights[ends] = (boxes[:, 2] - boxes[:, 0]).max()
    assert heights == {"exclusive": 24.0, "inclusive": 23.0}


@pytest.mark.parametrize(("ends", "moved"), [("exclusive", 0), ("inclusive", 1)])
def test_ground_truth_moves_with_the_boxes(tiny_config, ends, moved):
    """The ground truth is among the regions that are sampled."""
    model = build(tiny_config, box_ends=ends, box_head={"positive_fraction": 1.0, "num_samples": 64})
    graph = model.training_graph
    batch = {**make_batch(), "seeds": np.zeros((2, 2), np.int32)}
    classes, _, rois = keras.Model(graph.inputs, graph.get_layer("roi_sampler").output)(batch)  # by rising key
    for image in range(2):
        foreground = rois[image].numpy()[classes[image].numpy() > 0]
        for box in batch["gt_boxes"][image, :-1] - np.float32([0, 0, moved, moved]):  # the last one is a crowd
            assert (np.abs(foreground - box).max(axis=1) == 0).any()
    assert all(np.isfinite(value).all() for value in graph(batch).values())


def test_everything_runs_in_a_static_graph(tiny_config):
    changes = {
        "preprocessing": {"placement": "centre", "padding_value": "black"},
        "rpn": {"joint_levels": True, "clip_to": "input"},
        "box_head": {"best_class_only": True, "score_threshold": 0.0},
        "roi_align": {"kind": "crop", "level_rounding": "nearest"},
    }
    inputs = {key: tf.constant(value) for key, value in pictures(SMALL, offsets=CENTRED).items()}

    def static(model):
        @tf.function(jit_compile=True)
        def run(inputs):
            with static_graph():
                return model(inputs, training=False)

        return run(inputs)

    model = build(tiny_config, box_ends="inclusive", max_log_scale=None, **changes)
    expected, found = model(inputs), static(model)
    assert expected["num_detections"].numpy().min() > 0
    np.testing.assert_array_equal(found["num_detections"], expected["num_detections"])
    for image, boxes in enumerate(expected["detection_boxes"].numpy()):
        # Equal scores may change places.
        distance = np.abs(boxes[:, None] - found["detection_boxes"][image].numpy()[None]).max(axis=-1)
        rows = distance.argmin(axis=1)
        assert distance.min(axis=1).max() < 2e-2
        for key, tolerance in (("detection_classes", 0), ("detection_scores", 1e-4)):
            np.testing.assert_allclose(found[key][image].numpy()[rows], expected[key][image], atol=tolerance)
