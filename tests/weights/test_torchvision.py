"""torchvision's networks: recognised by their names, and every stage against the original with the same weights."""

import re

import numpy as np
import pytest

from mrcnn_tf.predict import Predictor
from mrcnn_tf.weights import torchvision
from mrcnn_tf.weights.assign import PretrainedWeightsError
from mrcnn_tf.weights.checkpoint import Checkpoint
from tests.parity import stages
from tests.parity.gains import gains
from tests.parity.losses import TrainingCase, assert_same_training
from tests.parity.seeded import image

TABLES = {version: f"torchvision_maskrcnn_resnet50_fpn_{version}.tsv" for version in ("v1", "v2")}
SAMPLES = (8, 4, 2, 1, 1)
RPN_SAMPLES = (2, 2, 1, 1, 1)
LOSSES = {
    "rpn_class_loss": "loss_objectness",
    "rpn_box_loss": "loss_rpn_box_reg",
    "class_loss": "loss_classifier",
    "box_loss": "loss_box_reg",
    "mask_loss": "loss_mask",
}


def load(name):
    return dict(np.load(stages.FOLDER / f"{name}.npz"))


@pytest.fixture(scope="module", params=[("v1", 11), ("v2", 12)], ids=["v1", "v2"])
def case(request):
    version, seed = request.param
    checkpoint = stages.seeded_checkpoint(TABLES[version], seed, gains(version))
    model = stages.imported(torchvision, checkpoint, norm_epsilon=1e-5)
    return stages.Stages(model, load(f"torchvision_{version}"), samples=SAMPLES)


def test_feature_pyramid(case):
    for name, found in zip(("0", "1", "2", "3", "pool"), case.sampled_features(), strict=True):
        stages.assert_same_map(found, case.fixture[f"fpn_{name}"], name)


def test_rpn(case):
    for level, (logits, deltas, n) in enumerate(zip(*case.rpn, RPN_SAMPLES, strict=True)):
        stages.assert_same_map(stages.to_torch(logits)[:, :, ::n, ::n], case.fixture[f"rpn_logits_{level}"], level)
        deltas = np.reshape(stages.swap_xy(np.reshape(deltas, [*deltas.shape[:3], -1, 4])), deltas.shape)
        stages.assert_same_map(stages.to_torch(deltas)[:, :, ::n, ::n], case.fixture[f"rpn_deltas_{level}"], level)


def test_proposals(case):
    stages.assert_same_proposals(case.proposals(), stages.swap_xy(case.fixture["proposals"]))


def test_pooled_features(case):
    pooled = case.pooled("box_pool", stages.swap_xy(case.fixture["proposals"][:64]))
    stages.assert_same_map(stages.to_torch(pooled)[:, ::8], case.fixture["roi_box_features_64"])


def test_box_head(case):
    logits, deltas = case.heads(stages.swap_xy(case.fixture["proposals"][:64]))
    stages.assert_same_map(logits, case.fixture["class_logits_64"])
    expected = stages.swap_xy(case.fixture["box_deltas_64"].reshape(64, 91, 4))[:, 1:]
    stages.assert_same_map(deltas, expected)


def test_detections_of_the_original_proposals(case):
    fixture = case.fixture
    expected = stages.swap_xy(fixture["det_boxes_resized"]), fixture["det_labels"], fixture["det_scores"]
    stages.assert_same_detections(case.detect(stages.swap_xy(fixture["proposals"])), expected)


def test_masks_of_the_original_detections(case):
    found = case.masks(stages.swap_xy(case.fixture["det_boxes_resized"]), case.fixture["det_labels"])
    np.testing.assert_allclose(found, case.fixture["det_mask_probs"], atol=2e-3)


def assert_same_prediction(model, fixture, **sizes):
    settings = {key: int(re.search(rf'"{key}": (\d+)', str(fixture["meta"]))[1]) for key in ("seed", "height", "width")}
    found = Predictor(model, **sizes)(image(**settings))
    expected = stages.swap_xy(fixture["boxes"]), fixture["labels"], fixture["scores"]
    rows, ours = stages.assert_same_detections((found.boxes, found.classes, found.scores), expected)
    np.testing.assert_allclose(found.mask_probs[ours], fixture["det_mask_probs"][rows], atol=2e-3)
    assert stages.mask_iou(found.masks()[ours], stages.unpacked_masks(fixture)[rows]) >= 0.995


def test_prediction_as_a_whole(case):
    assert_same_prediction(case.model, case.fixture, min_size=320, max_size=416)


def test_prediction_of_a_resized_picture():
    checkpoint = stages.seeded_checkpoint(TABLES["v1"], 14, gains("v1"))
    model = stages.imported(torchvision, checkpoint, norm_epsilon=1e-5)
    assert_same_prediction(model, load("torchvision_v1_resized"), min_size=320, max_size=480)


def test_losses_and_gradients(monkeypatch):
    checkpoint = stages.seeded_checkpoint(TABLES["v1"], 21, gains("v1"))
    fixture = load("torchvision_v1_loss")
    case = TrainingCase(torchvision, checkpoint, fixture, first_label=1, num_labels=91, frozen_stages=0)
    assert_same_training(case, LOSSES, monkeypatch, aligned=False, soft=True)


# Recognition needs names and shapes only.


@pytest.fixture(scope="module")
def arrays():
    """The parameters of both versions; a view of one zero each, so that they take no memory."""
    return {version: empty(stages.parameter_shapes(table)) for version, table in TABLES.items()}


def empty(shapes):
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def describe(arrays, **options):
    checkpoint = Checkpoint(stages.Path("some.pth"), "torch", arrays)
    assert torchvision.matches(checkpoint)
    return torchvision.describe(checkpoint, **options)


def test_version_1_has_frozen_norms_of_eps_0_and_says_so(arrays):
    found = describe(arrays["v1"])
    assert found.architecture == "torchvision maskrcnn_resnet50_fpn"
    assert found.model["backbone"]["norm"] == "frozen"
    assert found.model["backbone"]["norm_epsilon"] == 0
    assert found.model["box_head"]["kind"] == "2fc"
    assert "eps 0" in found.notes[0]
    assert "--norm-eps 1e-5" in found.notes[0]
    given = describe(arrays["v1"], norm_epsilon=1e-5)
    assert (given.model["backbone"]["norm_epsilon"], given.notes) == (1e-5, ())


def test_version_2_has_batch_norms_everywhere(arrays):
    found = describe(arrays["v2"])
    assert found.architecture == "torchvision maskrcnn_resnet50_fpn_v2"
    for section in ("backbone", "fpn", "box_head", "mask_head"):
        assert (found.model[section]["norm"], found.model[section]["norm_epsilon"]) == ("batch", 1e-5)
    assert found.model["rpn"]["num_convs"] == 2
    assert found.model["box_head"]["kind"] == "4conv1fc"


def test_categories_are_torchvisions_labels(arrays):
    found = describe(arrays["v1"])
    assert found.num_classes == 90
    assert found.categories[0] == {"id": 1, "name": "person"}
    assert found.categories[11]["name"] == "N/A"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_without_masks_it_is_faster_rcnn(arrays, version):
    boxes_only = {name: array for name, array in arrays[version].items() if ".mask_" not in name}
    found = describe(boxes_only)
    assert found.architecture.startswith("torchvision fasterrcnn_resnet50_fpn")
    assert not found.model["mask_head"]["enabled"]


def old_name(name):
    for pattern, replacement in (
        (r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2."),
        (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    ):
        name = re.sub(pattern, replacement, name)
    return re.sub(r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}.", name)


def test_names_of_before_torchvision_0_13(arrays):
    old = {old_name(name): array for name, array in arrays["v1"].items()}
    assert "roi_heads.mask_head.mask_fcn4.weight" in old
    assert old.keys() != arrays["v1"].keys()
    assert torchvision.current_names(old).keys() == arrays["v1"].keys()
    assert describe(old) == describe(arrays["v1"])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("roi_heads.keypoint_head.0.weight", "Keypoint R-CNN"),
        ("head.classification_head.conv.0.0.weight", "one-stage"),
        ("backbone.body.0.0.weight", "MobileNet"),
    ],
)
def test_other_networks_are_refused_by_name(arrays, name, what):
    with pytest.raises(PretrainedWeightsError, match=f"some.pth holds .*{what}.*{re.escape(name)}"):
        describe({**arrays["v1"], name: np.zeros(1)})


def test_other_depths_are_refused(arrays):
    fewer = {name: array for name, array in arrays["v1"].items() if ".layer3.5." not in name}
    with pytest.raises(PretrainedWeightsError, match=r"\(3, 4, 5, 3\) bottleneck blocks; known are resnet50"):
        describe(fewer)


def test_misfits_are_listed_by_name_and_shape_and_nothing_is_assigned(case):
    version = "v2" if case.model.config.box_head.kind == "4conv1fc" else "v1"
    arrays = empty(stages.parameter_shapes(TABLES[version]))
    arrays["roi_heads.box_predictor.cls_score.bias"] = np.zeros(7, np.float32)
    del arrays["rpn.head.cls_logits.bias"]
    arrays["roi_heads.extra.weight"] = np.zeros((2, 3), np.float32)
    before = [np.asarray(weight) for weight in case.model.weights]
    with pytest.raises(PretrainedWeightsError) as caught:
        torchvision.assign(case.model, Checkpoint(stages.Path("some.pth"), "torch", arrays))
    message = str(caught.value)
    assert "lacks: rpn.head.cls_logits.bias [3]" in message
    assert "cls_score.bias is [7], the model needs [91]" in message
    assert "no place for: roi_heads.extra.weight [2, 3]" in message
    for weight, value in zip(case.model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
