"""Import of matterport's checkpoints, stage by stage, against the published arithmetic in `matterport_reference`.

The pictures need no resizing: how matterport resizes is tested with `mrcnn_tf.ops.images`.
"""

from __future__ import annotations

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.data.coco_labels import COCO_CATEGORIES
from mrcnn_tf.ops.images import resize_image
from mrcnn_tf.predict import Predictor
from mrcnn_tf.weights import matterport
from mrcnn_tf.weights.assign import PretrainedWeightsError
from mrcnn_tf.weights.checkpoint import Checkpoint
from mrcnn_tf.weights.importer import import_weights
from tests.batches import make_batch
from tests.parity import stages
from tests.parity.seeded import image
from tests.weights import matterport_reference as original
from tests.weights.matterport_case import SIDE, SIZE, Case, checkpoint, inside

ALL_LEVELS = np.array(
    [[0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [0.3, 0.3, 0.6, 0.7], [0.5, 0.0, 0.7, 0.1], [0.9, 0.2, 1, 1], [0.4, 0.4, 0.4, 0.4]],
    np.float32,
)
"""Normalised boxes on P2 to P5, some on the border, one without area."""


@pytest.fixture(scope="module", params=["resnet50", "resnet101"])
def case(request):
    return Case(request.param)


def test_pyramid(case):
    windows = case.layer("image_windows")(case.inputs["images"], case.inputs["image_sizes"])
    normalised = case.layer("normalize")(case.inputs["images"], windows)
    np.testing.assert_allclose(normalised, case.molded, atol=1e-4)
    found = case.model.fpn(case.model.backbone(normalised))
    for level, expected in zip((2, 3, 4, 5, 6), case.levels, strict=True):
        stages.assert_same_map(found[f"p{level}"], expected, f"P{level}")


def test_rpn(case):
    objectness, deltas = case.model.rpn_head([tf.constant(level) for level in case.levels])
    for found, found_deltas, (logits, expected) in zip(objectness, deltas, case.rpn, strict=True):
        stages.assert_same_map(found[0], logits[..., 1] - logits[..., 0], "logits")
        stages.assert_same_map(tf.reshape(found_deltas[0], expected.shape), expected, "deltas")
        np.testing.assert_allclose(tf.sigmoid(found[0]), original.softmax(logits)[..., 1], atol=1e-5)


def test_anchors(case):
    found = np.concatenate(case.anchors)
    np.testing.assert_allclose(found, original.anchors(SIDE) * (SIDE - 1), atol=1e-3)


def test_proposals_alone(case):
    objectness = [tf.constant(logits[..., 1] - logits[..., 0])[None] for logits, _ in case.rpn]
    deltas = [tf.reshape(tf.constant(deltas), [1, *deltas.shape[:2], -1]) for _, deltas in case.rpn]
    window = tf.constant([[0.0, 0, SIDE - 1, SIDE - 1]])
    boxes, is_valid = case.layer("proposals")(objectness, deltas, case.anchors, window)
    stages.assert_same_proposals(boxes[0][is_valid[0]].numpy(), inside(case.proposals).numpy())


def test_proposals_of_a_picture(case):
    boxes, is_valid = keras.Model(case.model.inputs, case.layer("proposals").output)(case.inputs)
    expected = inside(case.proposals).numpy()
    stages.assert_same_proposals(boxes[0][is_valid[0]].numpy(), expected)
    # the case means something: several levels, and boxes that are cut at the input, not at the picture
    assert len(np.unique(original.levels_of(case.proposals, SIDE))) >= 3
    assert expected[:, 0].min() < case.window[0]
    assert expected.max() == SIDE - 1


@pytest.mark.parametrize(("layer", "size"), [("box_pool", 7), ("mask_pool", 14)])
def test_pooled_features(case, layer, size):
    stages.assert_same_map(case.pooled(layer, case.proposals[::4]), original.pooled(case.levels, case.proposals[::4], size))
    assert set(original.levels_of(ALL_LEVELS, SIDE)) == {2, 3, 4, 5}
    stages.assert_same_map(case.pooled(layer, ALL_LEVELS), original.pooled(case.levels, ALL_LEVELS, size))


def test_box_head(case):
    logits, deltas = case.model.box_head(original.pooled(case.levels, case.proposals, 7))
    stages.assert_same_map(logits, case.heads[0], "class logits")
    stages.assert_same_map(deltas, case.heads[1][:, 1:], "box deltas")


def test_detections_alone(case):
    logits, deltas = (tf.constant(values)[None] for values in case.heads)
    is_valid = tf.ones([1, len(case.proposals)], tf.bool)
    window = tf.constant([case.window], tf.float32) - [0, 0, 1, 1]
    found = case.layer("detect_boxes")(logits, deltas[:, :, 1:], inside(case.proposals)[None], is_valid, window)
    boxes, classes, scores = (values[0, : int(found[3][0])].numpy() for values in found[:3])
    expected, *rest = case.detections
    # ends exclusive, so that boxes of one pixel have an area
    found = (case.layer("outside_ends")(boxes).numpy(), classes, scores)
    stages.assert_same_detections(found, (original.pixels(expected, (SIDE, SIDE)), *rest))


def test_detections_of_a_picture(case):
    found = {name: value[0].numpy() for name, value in case.model(case.inputs).items()}
    count = found["num_detections"]
    boxes, classes, scores = (found[f"detection_{name}"][:count] for name in ("boxes", "classes", "scores"))
    expected, expected_classes, expected_scores = case.detections
    expected = original.pixels(expected, (SIDE, SIDE))
    rows, ours = stages.assert_same_detections((boxes, classes, scores), (expected, expected_classes, expected_scores))
    np.testing.assert_allclose(found["detection_masks"][ours], case.masks[rows], atol=2e-3)
    # the case means something: classes, background, scores on both sides of the threshold
    assert len(np.unique(expected_classes)) > 8
    assert 20 < len(expected) < 100
    best = original.softmax(case.heads[0])
    assert 0.1 < (best.argmax(axis=1) == 0).mean() < 0.9
    assert (best.max(axis=1) < original.MIN_CONFIDENCE).mean() > 0.1


def test_masks(case):
    found = case.model.mask_predictor(case.model.mask_head(case.mask_regions), tf.constant(case.detections[1], tf.int32))
    np.testing.assert_allclose(tf.sigmoid(found), case.masks, atol=2e-3)
    assert case.masks.std() > 0.2


def test_masks_of_the_picture(case):
    boxes, classes, scores = case.detections
    expected = original.in_picture(boxes, case.window, SIDE, SIZE)
    assert_same_objects(Predictor(case.model)(case.picture), expected, classes, scores, case.masks)


def test_masks_of_an_enlarged_picture():
    """Boxes and masks come back through another scale; the enlarged picture itself is ours in both systems."""
    case = Case("resnet50")
    small = image(3, 136, 160)
    case.molded, case.window = original.mold(resize_image(small, (256, 301), antialias=False, quantize=True).numpy(), SIDE)
    boxes, classes, scores = case.detections
    assert len(boxes) > 10
    expected = original.in_picture(boxes, case.window, SIDE, small.shape[:2])
    assert_same_objects(Predictor(case.model)(small), expected, classes, scores, case.masks)


def assert_same_objects(found, boxes, classes, scores, masks):
    """Boxes of whole pixels, and masks in the picture."""
    rounded = np.round(found.boxes).astype(int)
    has_area = (rounded[:, 2:] > rounded[:, :2]).all(axis=1)
    rows, ours = stages.assert_same_detections(
        (rounded[has_area], found.classes[has_area], found.scores[has_area]), (boxes, classes, scores)
    )
    full = np.array([original.pasted(masks[row], boxes[row], found.image_size) for row in rows])
    assert stages.mask_iou(found.masks()[has_area][ours], full) >= 0.995
    assert full.any(axis=(1, 2)).mean() > 0.9


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_the_network_is_recognised(backbone):
    found = matterport.describe(checkpoint(backbone))
    assert found.architecture == f"matterport Mask R-CNN, {backbone}"
    assert found.model["backbone"]["name"] == backbone
    assert found.num_classes == 80
    assert found.categories == COCO_CATEGORIES
    assert "matterport's own" in found.notes[0]
    assert len(found.notes) == 1


def test_formats_are_told_apart_by_names_and_kind():
    own = checkpoint()
    assert matterport.matches(own)
    assert not matterport.matches(Checkpoint(own.path, "torch", own.arrays))
    assert not matterport.matches(Checkpoint(own.path, "h5", {"conv1/kernel": np.zeros(1)}))


def test_other_numbers_of_classes_and_anchors():
    raw = np.zeros((1, 1, 512, 10), np.float32)
    found = matterport.describe(checkpoint(num_outputs=4, rpn_class_raw__kernel=raw), norm_epsilon=1e-5)
    assert (found.num_classes, found.categories) == (3, None)
    assert "5 anchors" in found.notes[1]
    assert found.model["backbone"]["norm_epsilon"] == found.model["mask_head"]["norm_epsilon"] == 1e-5


def test_widths_are_those_of_the_file():
    narrow = checkpoint(
        mrcnn_class_conv1__kernel=np.zeros((7, 7, 128, 256)),
        mrcnn_mask_conv1__kernel=np.zeros((3, 3, 128, 96)),
        fpn_p2__kernel=np.zeros((3, 3, 128, 128)),
        rpn_conv_shared__kernel=np.zeros((3, 3, 128, 64)),
    )
    model = matterport.describe(narrow).model
    assert (model["fpn"]["width"], model["rpn"]["width"]) == (128, 64)
    assert (model["box_head"]["fc_width"], model["mask_head"]["width"]) == (256, 96)


def test_networks_that_are_not_ours_are_refused():
    with pytest.raises(PretrainedWeightsError, match=r"seeded\.h5: stage 4 of the trunk has 5 blocks"):
        matterport.describe(checkpoint(res4f_branch2a__kernel=None))
    with pytest.raises(PretrainedWeightsError, match="fpn_p2/kernel is missing"):
        matterport.describe(checkpoint(fpn_p2__kernel=None))


def test_every_parameter_has_to_fit_and_nothing_is_assigned_before():
    small = checkpoint(num_outputs=4)
    model = stages.imported(matterport, small)
    before = model.get_weights()
    changes = {
        "bn3a_branch1__gamma": None,
        "mrcnn_bbox_fc__bias": np.zeros(12, np.float32),
        "fpn_p7__kernel": np.zeros((3, 3), np.float32),
        "conv1__kernel": np.ones((7, 7, 3, 64), np.float32),
    }
    with pytest.raises(PretrainedWeightsError) as error:
        matterport.assign(model, checkpoint(num_outputs=4, **changes))
    message = str(error.value)
    assert "lacks: bn3a_branch1/gamma [512]" in message
    assert "mrcnn_bbox_fc/bias is [12], the model needs [16]" in message
    assert "has no place for: fpn_p7/kernel [3, 3]" in message
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    # ports to TensorFlow 2 keep the anchors among the weights
    matterport.assign(model, checkpoint(num_outputs=4, anchors__Variable=np.zeros((9, 4), np.float32)))


def write_h5(path, arrays):
    """As Keras 2 saves the weights of matterport's model: a group for each layer, the RPN being a model within."""
    groups = {}
    for name in arrays:
        layer = name.split("/")[0]
        groups.setdefault("rpn_model" if layer.startswith("rpn_") else layer, []).append(name)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [group.encode() for group in ("input_image", *groups)]
        file.create_group("input_image").attrs["weight_names"] = []
        for group, names in groups.items():
            file.create_group(group).attrs["weight_names"] = [f"{name}:0".encode() for name in names]
            for name in names:
                file[group][f"{name}:0"] = arrays[name]


def test_a_file_is_imported(tmp_path):
    own = checkpoint(num_outputs=4)
    write_h5(tmp_path / "own.h5", own.arrays)
    imported = import_weights(tmp_path / "own.h5", overrides=["model.preprocessing.max_size=512"])
    assert imported.found.architecture == "matterport Mask R-CNN, resnet50"
    assert [category.name for category in imported.model.config.categories] == ["class 1", "class 2", "class 3"]
    assert imported.model.config.preprocessing.max_size == 512
    for weight, value in zip(imported.model.get_weights(), stages.imported(matterport, own).get_weights(), strict=True):
        np.testing.assert_array_equal(weight, value)


def test_an_imported_model_is_saved_and_trains(tmp_path):
    model = stages.imported(matterport, checkpoint(num_outputs=5))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.config == model.config
    assert loaded.config.box_ends == "inclusive"
    for weight, value in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, value)
    loaded.compile(keras.optimizers.SGD(1e-4))
    losses = loaded.train_on_batch(make_batch(), return_dict=True)
    assert losses["mask_loss"] > 0
    assert all(np.isfinite(value) for value in losses.values())
