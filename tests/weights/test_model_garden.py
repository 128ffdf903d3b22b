"""Model Garden's checkpoints: what is recognised and refused, and every stage against the original with the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import Config, parse
from mrcnn_tf.data.coco_labels import TORCHVISION_CATEGORIES
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.predict import Predictor
from mrcnn_tf.weights import model_garden
from mrcnn_tf.weights.assign import PretrainedWeightsError
from mrcnn_tf.weights.checkpoint import Checkpoint
from mrcnn_tf.weights.importer import import_weights
from tests.parity import stages

ROOT = Path(__file__).parents[2]
INTERPRETER = "MRCNN_TF_MODEL_GARDEN_PYTHON"
LEVELS = (2, 3, 4, 5, 6)
WINDOW = np.float32([[0, 0, 320, 320]])
"""Model Garden cuts boxes at the padded input."""
MASK_TOLERANCE = 2e-3
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def norm(name, channels):
    return {f"{name}/{part}": (channels,) for part in ("gamma", "beta", "moving_mean", "moving_variance")}


def conv(name, *kernel, outputs=None):
    return {f"{name}/kernel": kernel, f"{name}/bias": (outputs or kernel[-1],)}


def trunk(depths=(3, 4, 6, 3)):
    """Shapes of a ResNet by the numbers of its layers."""
    shapes = {"backbone/layer_with_weights-0/kernel": (7, 7, 3, 64), **norm("backbone/layer_with_weights-1", 64)}
    inputs, number = 64, 2
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for block in range(depth):
            name = f"backbone/layer_with_weights-{number}"
            kernels = {1: (1, 1, inputs, width), 2: (3, 3, width, width), 3: (1, 1, width, 4 * width)}
            for index, kernel in kernels.items():
                shapes |= {f"{name}/_conv{index}/kernel": kernel, **norm(f"{name}/_norm{index}", kernel[-1])}
            if block == 0:
                shapes |= {f"{name}/_shortcut/kernel": (1, 1, inputs, 4 * width), **norm(f"{name}/_norm0", 4 * width)}
            inputs, number = 4 * width, number + 1
    return shapes


def network(num_classes=2, depths=(3, 4, 6, 3), convs=4, fcs=1, masks=True, agnostic=False):
    """Shapes of all parameters, with narrow heads."""
    width, fc_width, rows = 8, 6, num_classes + 1
    shapes = trunk(depths)
    for number, channels in enumerate((2048, 1024, 512, 256)):
        shapes |= conv(f"decoder/layer_with_weights-{number}", 1, 1, channels, width)
    for number in range(4, 9):
        shapes |= conv(f"decoder/layer_with_weights-{number}", 3, 3, width, width)
    for number in range(9, 14):
        shapes |= norm(f"decoder/layer_with_weights-{number}", width)
    shapes |= conv("rpn_head/_convs/0", 3, 3, width, width)
    for level in range(5):
        shapes |= norm(f"rpn_head/_norms/{level}/0", width)
    shapes |= conv("rpn_head/_classifier", 1, 1, width, 3) | conv("rpn_head/_box_regressor", 1, 1, width, 12)
    for i in range(convs):
        shapes |= conv(f"detection_head/0/_convs/{i}", 3, 3, width, width) | norm(f"detection_head/0/_conv_norms/{i}", width)
    for i in range(fcs):
        inputs = fc_width if i else 49 * width
        shapes |= conv(f"detection_head/0/_fcs/{i}", inputs, fc_width) | norm(f"detection_head/0/_fc_norms/{i}", fc_width)
    shapes |= conv("detection_head/0/_classifier", fc_width, rows)
    shapes |= conv("detection_head/0/_box_regressor", fc_width, 4 if agnostic else 4 * rows)
    if not masks:
        return shapes
    for i in range(4):
        shapes |= conv(f"mask_head/_convs/{i}", 3, 3, width, width) | norm(f"mask_head/_conv_norms/{i}", width)
    shapes |= conv("mask_head/_deconv", 2, 2, width, width) | norm("mask_head/_deconv_bn", width)
    return shapes | conv("mask_head/_mask_regressor", 1, 1, width, 1 if agnostic else rows)


def checkpoint(shapes, **changes):
    """Zeros that take no memory, and what a trainer keeps beside the model."""
    arrays = {f"{name}{VALUE}": np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    arrays |= {
        f"global_step{VALUE}": np.int64(7),
        f"save_counter{VALUE}": np.int64(1),
        f"optimizer/_variables/1{VALUE}": np.zeros((3, 3), np.float32),
        f"backbone/layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer/momentum{VALUE}": np.zeros((7, 7), np.float32),
    }
    return Checkpoint(Path("ckpt-7"), "tensorflow", arrays | changes)


def build(found):
    categories = [{"id": i, "name": str(i)} for i in range(1, found.num_classes + 1)]
    return MaskRCNN(parse(Config, {"model": {**found.model, "categories": categories}}, "test"), pretrained=False)


def test_the_published_network_is_recognised():
    found = model_garden.describe(checkpoint(network(90)))
    assert model_garden.matches(checkpoint(network(90)))
    assert found.architecture == "Model Garden Mask R-CNN, resnet50 with FPN"
    assert (found.num_classes, found.categories) == (90, TORCHVISION_CATEGORIES)
    assert found.model["preset"] == "model_garden"
    assert found.model["backbone"] == {"name": "resnet50", "weights": None, "norm": "frozen", "norm_epsilon": 1e-4}
    assert found.model["box_head"]["kind"] == "4conv1fc"
    assert found.model["mask_head"]["num_convs"] == 4
    assert any("--norm-eps" in note for note in found.notes)


def test_names_and_shapes_tell_the_variants_apart():
    deep = model_garden.describe(checkpoint(network(depths=(3, 4, 23, 3))))
    assert deep.model["backbone"]["name"] == "resnet101"
    boxes_only = model_garden.describe(checkpoint(network(masks=False)))
    assert boxes_only.model["mask_head"] == {"enabled": False}
    assert "Faster" in boxes_only.architecture
    agnostic = model_garden.describe(checkpoint(network(convs=0, fcs=2, agnostic=True))).model
    assert agnostic["box_head"]["kind"] == "2fc"
    assert agnostic["box_head"]["class_agnostic_boxes"]
    assert agnostic["mask_head"]["class_agnostic"]
    found = model_garden.describe(checkpoint(network()), norm_epsilon=1e-3)
    assert found.categories is None
    assert {section["norm_epsilon"] for section in found.model.values() if "norm_epsilon" in section} == {1e-3}
    assert not any("--norm-eps" in note for note in found.notes)


@pytest.mark.parametrize("root", ["model/", ""])
def test_checkpoints_of_the_model_and_of_the_trainer_have_the_same_names(root):
    arrays = {"backbone/layer_with_weights-0/kernel": 0, "detection_head/0/_fcs/0/bias": 1}
    if root:
        arrays = {f"{root}{name}".replace("detection_head/0", "_config_dict/detection_head"): a for name, a in arrays.items()}
    names = model_garden.current_names({f"{name}{VALUE}": array for name, array in arrays.items()})
    assert names == {"backbone/layer_with_weights-0/kernel": 0, "detection_head/_fcs/0/bias": 1}


@pytest.mark.parametrize(
    "shapes",
    [network(), network(masks=False), network(convs=0, fcs=2, agnostic=True), network(num_classes=1)],
    ids=["masks", "boxes", "agnostic", "one class"],
)
def test_every_parameter_has_its_place(shapes):
    whole = checkpoint(shapes)
    model_garden.assign(build(model_garden.describe(whole)), whole)


def test_missing_superfluous_and_misshapen_parameters_are_listed_together():
    shapes = network()
    model = build(model_garden.describe(checkpoint(shapes)))
    before = model.get_weights()[0]
    del shapes["decoder/layer_with_weights-9/gamma"]
    shapes["rpn_head/_convs/0/kernel"] = (3, 3, 8, 7)
    shapes["backbone/layer_with_weights-18/gamma"] = (5,)
    with pytest.raises(PretrainedWeightsError) as error:
        model_garden.assign(model, checkpoint(shapes))
    for text in (
        "ckpt-7",
        "lacks: decoder/layer_with_weights-9/gamma [8]",
        "rpn_head/_convs/0/kernel is [3, 3, 8, 7], the model needs [3, 3, 8, 8]",
        "no place for: backbone/layer_with_weights-18/gamma [5]",
    ):
        assert text in str(error.value)
    np.testing.assert_array_equal(model.get_weights()[0], before)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (network() | {"detection_head/1/_convs/0/kernel": (3, 3, 8, 8)}, "a Cascade R-CNN"),
        (network() | {"backbone/layer_with_weights-2/_squeeze_excitation/_se_reduce/kernel": (1,)}, "ResNet-RS"),
        (network(depths=(3, 8, 36, 3)), r"\(3, 8, 36, 3\) bottleneck blocks; known are resnet50"),
        (network(convs=2), "2 convolutions and 1 fully connected"),
        ({k: v for k, v in network().items() if "_classifier" not in k}, "_classifier/kernel is missing"),
    ],
    ids=["cascade", "squeeze", "depth", "head", "missing"],
)
def test_other_networks_are_refused_by_name(shapes, message):
    with pytest.raises(PretrainedWeightsError, match=message):
        model_garden.describe(checkpoint(shapes))


def test_other_checkpoints_are_not_model_gardens():
    assert not model_garden.matches(checkpoint(trunk()))
    of_torch = Checkpoint(Path("x.pth"), "torch", checkpoint(network()).arrays)
    assert not model_garden.matches(of_torch)


# What follows runs the original in a process of its own.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints and stages of the original."""
    python = os.environ.get(INTERPRETER, sys.executable)
    looks = "import importlib.util as u, sys; sys.exit(u.find_spec('official') is None or u.find_spec('official.vision') is None)"
    if subprocess.run([python, "-c", looks], check=False, capture_output=True).returncode:
        pytest.skip(
            f"{python} has no tf-models-official; pip install 'mrcnn-tf[model-garden]', or name another one in {INTERPRETER}"
        )
    out = tmp_path_factory.mktemp("model_garden")
    command = [python, "-m", "tests.weights.model_garden_original", str(out)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def original(folder):
    return dict(np.load(folder / "stages.npz"))


@pytest.fixture(scope="module")
def model(folder):
    overrides = ["model.preprocessing.min_size=320", "model.preprocessing.max_size=320"]
    return import_weights(folder / "trainer" / "ckpt-1", overrides=overrides).model


def levels(original, name):
    return [tf.constant(original[f"{name}{level}"][None]) for level in LEVELS]


@pytest.mark.slow
def test_a_checkpoint_of_the_model_alone_holds_the_same(folder, model):
    imported = import_weights(folder / "plain" / "ckpt")
    assert imported.found.num_classes == 90
    for weight, expected in zip(imported.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.slow
def test_pyramid(model, original):
    found = model.fpn(model.backbone(original["inputs"][None]))
    for level in LEVELS:
        stages.assert_same_map(found[f"p{level}"][0], original[f"p{level}"], f"P{level}")


@pytest.mark.slow
def test_rpn_head_and_anchors(model, original):
    features = levels(original, "p")
    objectness, deltas = model.rpn_head(features)
    anchors = model.get_layer("anchors")(features)
    for index, level in enumerate(LEVELS):
        stages.assert_same_map(objectness[index][0], original[f"objectness{level}"], f"objectness {level}")
        stages.assert_same_map(deltas[index][0], original[f"deltas{level}"], f"deltas {level}")
        np.testing.assert_allclose(anchors[index], original[f"anchors{level}"].reshape(-1, 4), atol=1e-3)


@pytest.mark.slow
def test_proposals(model, original):
    anchors = [tf.constant(original[f"anchors{level}"].reshape(-1, 4)) for level in LEVELS]
    found, is_valid = model.get_layer("proposals")(levels(original, "objectness"), levels(original, "deltas"), anchors, WINDOW)
    stages.assert_same_proposals(found[0][is_valid[0]].numpy(), original["proposals"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "boxes", "pooled"), [("box_pool", "proposals", "pooled"), ("mask_pool", "boxes", "pooled_for_masks")]
)
def test_pooling(model, original, layer, boxes, pooled):
    rois = original[boxes][None, : len(original[pooled])]
    found = model.get_layer(layer)(levels(original, "p"), rois, tf.range(rois.shape[1]))
    stages.assert_same_map(found, original[pooled])


@pytest.mark.slow
def test_pooling_of_regions_of_all_levels(model, original):
    rois = original["rois"][None]
    assert (np.prod(rois[0, :, 2:] - rois[0, :, :2], axis=1) ** 0.5 > 896).any(), "none for P6"
    found = model.get_layer("box_pool")(levels(original, "map"), rois, tf.range(rois.shape[1]))
    stages.assert_same_map(found, original["pooled_rois"])


@pytest.mark.slow
def test_box_head(model, original):
    class_logits, deltas = model.box_head(original["pooled"])
    count = len(class_logits)
    stages.assert_same_map(class_logits, original["class_logits"][:count])
    stages.assert_same_map(deltas, original["box_deltas"][:count].reshape(count, 91, 4)[:, 1:])


@pytest.mark.slow
def test_detections(model, original):
    deltas = original["box_deltas"].reshape(1, -1, 91, 4)[:, :, 1:]
    is_valid = np.ones((1, deltas.shape[1]), bool)
    arguments = (original["class_logits"][None], deltas, original["proposals"][None], is_valid, WINDOW)
    boxes, classes, scores, count = (value.numpy()[0] for value in model.get_layer("detect_boxes")(*arguments))
    assert count == original["count"]
    stages.assert_same_detections((boxes, classes, scores), detections(original))


@pytest.mark.slow
def test_masks(model, original):
    boxes, classes = original["boxes"][None], original["classes"]
    rows = tf.range(len(classes))
    logits = model.mask_predictor(model.mask_head(model.get_layer("mask_pool")(levels(original, "p"), boxes, rows)), classes)
    found = model.get_layer("mask_probabilities")(logits)
    np.testing.assert_allclose(found, original["masks"], atol=MASK_TOLERANCE)


@pytest.mark.slow
def test_the_whole_model(model, original):
    scale = np.float32(model.config.preprocessing.pixel_std), np.float32(model.config.preprocessing.pixel_mean)
    images = original["inputs"][None] * scale[0] + scale[1]
    found = model({"images": images, "image_sizes": np.int32([[246, 320]])}, training=False)
    boxes, classes, scores, masks = (found[f"detection_{name}"][0].numpy() for name in ("boxes", "classes", "scores", "masks"))
    expected_rows, rows = stages.assert_same_detections((boxes, classes, scores), detections(original))
    np.testing.assert_allclose(masks[rows], original["masks"][expected_rows], atol=MASK_TOLERANCE)


@pytest.mark.slow
def test_from_picture_to_masks(model, original):
    """Resizing, padding, scaling back and pasting as well."""
    found = Predictor(model)(original["picture"])
    boxes, classes, scores = detections(original)
    boxes = boxes / np.tile(original["scale"], 2)
    picture_size = np.tile(original["picture_size"], 2)
    in_picture = (boxes[:, :2] < picture_size[:2]).all(axis=1)
    assert (boxes[in_picture] > picture_size).any(), "no box reaches from the picture into the padding"
    expected = boxes[in_picture], classes[in_picture], scores[in_picture]
    expected_rows, rows = stages.assert_same_detections((found.boxes, found.classes, found.scores), expected)
    height, width = (int(side) for side in picture_size[:2])
    pasted = np.unpackbits(original["pasted"])[: len(boxes) * height * width].reshape(-1, height, width).astype(bool)
    assert stages.mask_iou(found.masks()[rows], pasted[in_picture][expected_rows]) > 0.995


def detections(original):
    """Boxes, classes and scores."""
    return tuple(original[name] for name in ("boxes", "classes", "scores"))
