"""detectron2's networks: recognised by their names, and every stage against the original with the same weights."""

import re

import numpy as np
import pytest

from mrcnn_tf.config import ModelConfig, parse
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.predict import Predictor
from mrcnn_tf.weights import detectron2
from mrcnn_tf.weights.assign import PretrainedWeightsError
from mrcnn_tf.weights.checkpoint import Checkpoint
from tests.parity import stages
from tests.parity.gains import detectron2_gains
from tests.parity.losses import TrainingCase, assert_same_training

TABLES = {
    "R_50": "detectron2_mask_rcnn_R_50_FPN.tsv",
    "R_101": "detectron2_R_101_FPN.tsv",
    "X_101": "detectron2_X_101_FPN.tsv",
}
SEEDS = {"R_50": 31, "R_101": 38, "X_101": 32}
SAMPLES = (8, 4, 2, 1, 1)
LOSSES = {
    "rpn_class_loss": "loss_rpn_cls",
    "rpn_box_loss": "loss_rpn_loc",
    "class_loss": "loss_cls",
    "box_loss": "loss_box_reg",
    "mask_loss": "loss_mask",
}
ANCHORS = "proposal_generator.anchor_generator.cell_anchors"


def load(name):
    return dict(np.load(stages.FOLDER / f"{name}.npz"))


@pytest.fixture(scope="module", params=TABLES)
def case(request):
    network = request.param
    checkpoint = stages.seeded_checkpoint(TABLES[network], SEEDS[network], detectron2_gains(), kind="pickle")
    return stages.Stages(stages.imported(detectron2, checkpoint), load(f"detectron2_{network}_FPN"), samples=SAMPLES)


def test_feature_pyramid(case):
    for level, found in enumerate(case.sampled_features(), start=2):
        stages.assert_same_map(found, case.fixture[f"feature_p{level}"], level)


def test_proposals(case):
    stages.assert_same_proposals(case.proposals(), stages.swap_xy(case.fixture["proposals"]))


def test_objectness_of_the_proposals(case):
    """The fixture has no logits of the RPN but those of its proposals."""
    logits = np.concatenate([np.ravel(level) for level in case.rpn[0]])
    for expected in case.fixture["proposal_logits"]:
        assert np.abs(logits - expected).min() < stages.MAP_TOLERANCE * case.fixture["proposal_logits"].std()


def test_pooled_features(case):
    pooled = case.pooled("box_pool", stages.swap_xy(case.fixture["proposals"][:64]))
    stages.assert_same_map(stages.to_torch(pooled)[:, ::8], case.fixture["roi_box_features_64"])


def test_box_head(case):
    logits, deltas = case.heads(stages.swap_xy(case.fixture["proposals"][:64]))
    background_last = np.roll(logits, -1, axis=1)
    stages.assert_same_map(background_last, case.fixture["class_logits_64"])
    stages.assert_same_map(deltas, stages.swap_xy(case.fixture["box_deltas_64"].reshape(64, 80, 4)))


def test_detections_of_the_original_proposals(case):
    fixture = case.fixture
    expected = stages.swap_xy(fixture["boxes"]), fixture["labels"] + 1, fixture["scores"]
    stages.assert_same_detections(case.detect(stages.swap_xy(fixture["proposals"])), expected)


def test_masks_of_the_original_detections(case):
    found = case.masks(stages.swap_xy(case.fixture["boxes"]), case.fixture["labels"] + 1)
    np.testing.assert_allclose(found, case.fixture["det_mask_probs"], atol=2e-3)


def test_prediction_as_a_whole(case):
    fixture = case.fixture
    picture = np.asarray(case.images[0, : case.sizes[0, 0], : case.sizes[0, 1]], np.uint8)
    found = Predictor(case.model, min_size=min(picture.shape[:2]), max_size=max(picture.shape[:2]))(picture)
    expected = stages.swap_xy(fixture["boxes"]), fixture["labels"] + 1, fixture["scores"]
    rows, ours = stages.assert_same_detections((found.boxes, found.classes, found.scores), expected)
    assert stages.mask_iou(found.masks()[ours], stages.unpacked_masks(fixture)[rows]) >= 0.995


def test_losses_and_gradients(monkeypatch):
    checkpoint = stages.seeded_checkpoint(TABLES["R_50"], 41, detectron2_gains(), kind="pickle")
    fixture = load("detectron2_R_50_FPN_loss")
    case = TrainingCase(detectron2, checkpoint, fixture, first_label=0, num_labels=81, frozen_stages=2)
    assert_same_training(case, LOSSES, monkeypatch, aligned=True, soft=False)


# Recognition needs names and shapes only.


def empty(shapes):
    """A view of one zero for each shape, which takes no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def arrays():
    return {network: empty(stages.parameter_shapes(table)) for network, table in TABLES.items()}


def checkpoint_of(arrays):
    checkpoint = Checkpoint(stages.Path("some.pkl"), "pickle", arrays)
    assert detectron2.matches(checkpoint)
    return checkpoint


def describe(arrays, **options):
    return detectron2.describe(checkpoint_of(arrays), **options)


def assign(arrays):
    """The model of a checkpoint, which must fit."""
    checkpoint = checkpoint_of(arrays)
    return stages.imported(detectron2, checkpoint)


def with_norms(arrays, parts, counter=False):
    """All convolutions of trunk, pyramid and heads with a norm in place of their bias, as the norm's authors trained them."""
    changed = {}
    for name, array in arrays.items():
        if ".norm." in name:
            continue
        is_conv = name.endswith(".weight") and array.ndim == 4
        normed = is_conv and (name.startswith("backbone.") or "mask_fcn" in name)
        if name.endswith(".bias") and (name.startswith("backbone.") or "mask_fcn" in name):
            continue
        changed[name] = array
        if normed:
            changed |= norm(name.removesuffix("weight"), array.shape[0], parts, counter)
    return changed


def norm(prefix, channels, parts, counter):
    found = {f"{prefix}norm.{part}": np.broadcast_to(np.float32(1), (channels,)) for part in parts}
    return {**found, f"{prefix}norm.num_batches_tracked": np.int64(7)} if counter else found


def with_conv_box_head(arrays, parts, counter=False):
    """Four convolutions and one fully connected layer for two of the latter."""
    changed = {name: array for name, array in arrays.items() if ".box_head.fc2." not in name}
    for index in range(1, 5):
        prefix = f"roi_heads.box_head.conv{index}."
        changed |= empty({f"{prefix}weight": (256, 256, 3, 3)}) | norm(prefix, 256, parts, counter)
    return changed


GROUP, BATCH = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var")


def test_trunks(arrays):
    expected = {"R_50": ("resnet50", "1x1"), "R_101": ("resnet101", "1x1"), "X_101": ("resnext101_32x8d", "3x3")}
    for network, values in expected.items():
        found = describe(arrays[network])
        backbone = found.model["backbone"]
        assert (backbone["name"], backbone["stride_in"]) == values
        assert (backbone["norm"], backbone["norm_epsilon"]) == ("frozen", 1e-5)
        assert f"stride in the {values[1]} convolution" in found.notes[0]


def test_pixel_statistics_follow_the_trunk_and_the_file(arrays):
    for network, std in (("R_50", (1, 1, 1)), ("X_101", (57.375, 57.12, 58.395))):
        config = parse(ModelConfig, describe(arrays[network]).model, "test")
        assert config.preprocessing.pixel_std == std
        assert config.preprocessing.pixel_mean == (103.53, 116.28, 123.675)
        assert config.preprocessing.channel_order == "bgr"
    own = {"pixel_mean": np.array([[[1.0]], [[2.0]], [[3.0]]]), "pixel_std": np.ones((3, 1, 1))}
    config = parse(ModelConfig, describe({**arrays["X_101"], **own}).model, "test")
    assert (config.preprocessing.pixel_mean, config.preprocessing.pixel_std) == ((1, 2, 3), (1, 1, 1))


def test_group_norm_variant(arrays):
    changed = with_conv_box_head(with_norms(arrays["R_50"], GROUP), GROUP)
    found = describe(changed)
    assert found.architecture == "detectron2 mask_rcnn_R_50_FPN_gn"
    for section in ("backbone", "fpn", "box_head", "mask_head"):
        assert found.model[section]["norm"] == "group"
    assert (found.model["backbone"]["stride_in"], found.model["box_head"]["kind"]) == ("3x3", "4conv1fc")
    model = assign(changed)
    np.testing.assert_array_equal(model.box_head.get_layer("conv3").norm_layer.gamma, np.ones(256))


def test_new_baselines_have_batch_norm_two_rpn_and_four_box_convolutions(arrays):
    changed = with_conv_box_head(with_norms(arrays["R_50"], BATCH, counter=True), BATCH, counter=True)
    for part in ("weight", "bias"):
        first = changed.pop(f"proposal_generator.rpn_head.conv.{part}")
        changed |= {f"proposal_generator.rpn_head.conv.conv{index}.{part}": first for index in range(2)}
    found = describe(changed)
    for section in ("backbone", "fpn", "box_head", "mask_head"):
        assert found.model[section]["norm"] == "batch"
    assert (found.model["backbone"]["stride_in"], found.model["rpn"]["num_convs"]) == ("1x1", 2)
    assign(changed)


def test_class_agnostic_boxes_and_masks(arrays):
    shapes = {
        "roi_heads.box_predictor.bbox_pred.weight": (4, 1024),
        "roi_heads.box_predictor.bbox_pred.bias": (4,),
        "roi_heads.mask_head.predictor.weight": (1, 256, 1, 1),
        "roi_heads.mask_head.predictor.bias": (1,),
    }
    changed = {**arrays["R_50"], **empty(shapes)}
    found = describe(changed)
    assert found.model["box_head"]["class_agnostic_boxes"]
    assert found.model["mask_head"]["class_agnostic"]
    assign(changed)


def test_faster_rcnn(arrays):
    found = describe({name: array for name, array in arrays["R_50"].items() if ".mask_head." not in name})
    assert found.architecture == "detectron2 faster_rcnn_R_50_FPN"
    assert not found.model["mask_head"]["enabled"]


def test_categories(arrays):
    found = describe(arrays["R_50"])
    assert found.num_classes == 80
    assert (found.categories[0], found.categories[-1]) == ({"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"})
    fewer = {**arrays["R_50"], "roi_heads.box_predictor.cls_score.weight": np.zeros((4, 1024), np.float32)}
    assert (describe(fewer).num_classes, describe(fewer).categories) == (3, None)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("sem_seg_head.predictor.weight", "Panoptic"),
        ("roi_heads.keypoint_head.conv_fcn1.weight", "Keypoint"),
        ("roi_heads.box_predictor.0.cls_score.weight", "Cascade"),
        ("roi_heads.res5.0.conv1.weight", "C4"),
        ("backbone.bottom_up.res3.0.conv2_offset.weight", "deformable"),
        ("backbone.bottom_up.s1.b1.a.weight", "RegNet"),
        ("head.cls_subnet.0.weight", "RetinaNet"),
    ],
)
def test_other_networks_are_refused_by_name(arrays, name, what):
    with pytest.raises(PretrainedWeightsError, match=f"some.pkl holds .*{what}.*{re.escape(name)}"):
        describe({**arrays["R_50"], name: np.zeros(1)})


def anchors_of(sizes, ratios=(0.5, 1.0, 2.0)):
    """detectron2's buffers, x1 y1 x2 y2."""
    cells = {}
    for level, size in enumerate(sizes):
        sides = [(size / ratio**0.5, size * ratio**0.5) for ratio in ratios]
        cells[f"{ANCHORS}.{level}"] = np.float32([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides])
    return cells


def test_anchors_of_old_files_are_checked(arrays):
    boxes_only = {name: array for name, array in arrays["R_50"].items() if ".mask_head." not in name}
    config = parse(ModelConfig, {**describe(boxes_only).model, "categories": [{"id": i, "name": ""} for i in range(80)]}, "test")
    model = MaskRCNN(config, pretrained=False)
    detectron2.assign(model, checkpoint_of({**boxes_only, **anchors_of((32, 64, 128, 256, 512))}))
    with pytest.raises(PretrainedWeightsError, match=r"cell_anchors\.1 .* give model\.anchors\.sizes"):
        detectron2.assign(model, checkpoint_of({**boxes_only, **anchors_of((32, 32, 128, 256, 512))}))


def test_a_missing_parameter_is_named(arrays):
    fewer = {name: array for name, array in arrays["R_50"].items() if name != "backbone.fpn_output4.bias"}
    with pytest.raises(PretrainedWeightsError, match=r"lacks: backbone\.fpn_output4\.bias \[256\]"):
        assign(fewer)
