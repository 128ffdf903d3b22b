"""The box branch on tiny shapes, against references that go box by box."""

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling import box_head
from mrcnn_tf.modeling.box_head import BoxLosses, DetectBoxes, RoiSampler, box_rows, build_box_head
from mrcnn_tf.ops import boxes as box_ops
from mrcnn_tf.ops.static_graph import static_graph
from mrcnn_tf.ops.suppression import Suppression

RNG = np.random.default_rng(0)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def in_xla(function):
    @tf.function(jit_compile=True)
    def compiled():
        with static_graph():
            return function()

    return compiled()


def random_boxes(*shape, seed=0, extent=60.0):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, extent, (*shape, 2))
    return np.concatenate([corner, corner + random.uniform(8, 40, (*shape, 2))], axis=-1).astype(np.float32)


def build(**options):
    defaults = {"pool_size": 3, "kind": "2fc", "norm": "none", "norm_epsilon": 1e-5, "conv_width": 4, "fc_width": 8}
    return build_box_head(5, **{**defaults, "num_classes": 3, "class_agnostic": False, **options})


@pytest.mark.parametrize(
    ("kind", "layers"),
    [("2fc", ["flatten", "fc0", "fc1"]), ("4conv1fc", ["conv0", "conv1", "conv2", "conv3", "flatten", "fc0"])],
)
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_head_shapes_and_names(kind, layers, class_agnostic):
    head = build(kind=kind, class_agnostic=class_agnostic)
    logits, deltas = head(RNG.normal(size=(6, 3, 3, 5)))
    assert logits.shape == (6, 4)
    assert deltas.shape == (6, 1 if class_agnostic else 3, 4)
    names = [layer.name for layer in head.layers]
    assert names[1 : 1 + len(layers)] == layers
    assert {"class_logits", "box_deltas"} < set(names)


def test_head_refuses_another_kind():
    with pytest.raises(KeyError, match="3fc"):
        build(kind="3fc")


def test_deltas_are_laid_out_class_by_class():
    head = build()
    head.get_layer("box_deltas").kernel.assign(tf.zeros([8, 12]))
    head.get_layer("box_deltas").bias.assign(tf.range(12.0))
    _, deltas = head(tf.ones([1, 3, 3, 5]))
    np.testing.assert_array_equal(deltas[0], np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(("num_boxes", "expected"), [(3, [0, 0, 0, 1, 2]), (1, [0, 0, 0, 0, 0])])
def test_box_rows(num_boxes, expected):
    np.testing.assert_array_equal(box_rows(tf.constant([-1, 0, 1, 2, 3]), num_boxes), expected)


def sampler(**options):
    defaults = {"num_samples": 16, "positive_fraction": 0.25, "foreground_iou_threshold": 0.5, "crowd_overlap_threshold": 0.7}
    return RoiSampler(**{**defaults, **options})


def sampling_case():
    """Two objects, a crowd region and an empty row; the second image has no ground truth and few valid proposals."""
    gt_boxes = np.zeros([2, 4, 4], np.float32)
    gt_boxes[0, :3] = [[0, 0, 20, 20], [30, 30, 60, 60], [0, 60, 40, 100]]
    gt_classes = np.array([[2, 1, 3, 0], [0] * 4], np.int32)
    gt_crowd = np.array([[False, False, True, False], [False] * 4])
    proposals = random_boxes(2, 40, seed=3)
    proposals[0, :3] = [[1, 1, 21, 20], [30, 30, 60, 55], [2, 62, 38, 98]]
    is_valid = np.ones([2, 40], bool)
    is_valid[1, 5:] = False
    return [tf.constant(value) for value in (proposals, is_valid, gt_boxes, gt_classes, gt_crowd)]


SEEDS = tf.constant([[0, 0], [0, 1]])


def test_sample_is_what_it_says():
    proposals, is_valid, gt_boxes, gt_classes, gt_crowd = sampling_case()
    # room for every foreground box
    sampled = sampler(num_samples=44, positive_fraction=1.0)(proposals, is_valid, gt_boxes, gt_classes, gt_crowd, SEEDS)
    rois, classes, matched = (sampled[key].numpy() for key in ("rois", "class_targets", "matched_indices"))
    assert rois.shape == (2, 44, 4)
    for image in range(2):
        valid = (gt_classes[image].numpy() > 0) & ~gt_crowd[image].numpy()
        overlaps = np.where(valid, box_ops.iou_matrix(rois[image], gt_boxes[image]), 0)
        foreground = classes[image] > 0
        drawn = classes[image] >= 0
        assert (overlaps.max(axis=1) >= 0.5)[drawn].tolist() == foreground[drawn].tolist()
        np.testing.assert_array_equal(matched[image][foreground], overlaps.argmax(axis=1)[foreground])
        np.testing.assert_array_equal(classes[image][foreground], gt_classes[image].numpy()[matched[image][foreground]])
        # foreground, then background, then nothing
        order = np.where(foreground, 0, np.where(drawn, 1, 2))
        assert (np.diff(order) >= 0).all()
    assert (classes[1] >= 0).sum() == 5  # the valid proposals only: empty rows of ground truth are no candidates


def test_ground_truth_is_a_candidate_but_not_crowd_or_empty_rows():
    proposals, is_valid, *truth = sampling_case()
    sampled = sampler(num_samples=8, positive_fraction=1.0)(proposals, tf.zeros_like(is_valid), *truth, SEEDS)
    found = sorted(map(tuple, sampled["rois"][0].numpy()[sampled["class_targets"][0].numpy() >= 0]))
    assert found == [(0, 0, 20, 20), (30, 30, 60, 60)]
    np.testing.assert_array_equal(sampled["class_targets"][1], [-1] * 8)


def test_no_background_is_drawn_from_inside_a_crowd():
    proposals, is_valid, *truth = sampling_case()
    inside = proposals.numpy()[0, 2]

    def drawn(threshold):
        sampled = sampler(num_samples=44, positive_fraction=1.0, crowd_overlap_threshold=threshold)(
            proposals, is_valid, *truth, SEEDS
        )
        return (sampled["rois"][0].numpy() == inside).all(axis=1).any()

    assert not drawn(0.7)
    assert drawn(1.0)


def test_positive_fraction_bounds_the_foreground():
    proposals, is_valid, *truth = sampling_case()
    proposals = tf.concat([tf.tile(truth[0][:, :1], [1, 20, 1]), proposals[:, 20:]], axis=1)
    classes = sampler()(proposals, is_valid, *truth, SEEDS)["class_targets"].numpy()
    assert (classes[0] > 0).sum() == 4
    assert (classes[0] == 0).sum() == 12


def test_sample_depends_on_the_seed_of_its_image_only():
    case = sampling_case()
    together = sampler()(*case, SEEDS)
    for image in range(2):
        alone = sampler()(*(value[image : image + 1] for value in case), SEEDS[image : image + 1])
        for key, value in alone.items():
            np.testing.assert_array_equal(value[0], together[key][image])
    other = sampler()(*case, SEEDS + 2)
    assert not np.array_equal(other["rois"][0], together["rois"][0])


def test_sample_is_the_same_under_xla_and_has_no_gradient():
    case = sampling_case()
    with tf.GradientTape() as tape:
        tape.watch(case[0])
        sampled = sampler()(*case, SEEDS)
    assert tape.gradient(sampled["rois"], case[0]) is None
    for key, value in in_xla(lambda: sampler()(*case, SEEDS)).items():
        np.testing.assert_array_equal(value, sampled[key])


def loss_case(num_boxes):
    logits = tf.constant(RNG.normal(size=(6, 4)).astype(np.float32))
    deltas = tf.constant(RNG.normal(size=(6, num_boxes, 4)).astype(np.float32))
    rois, matched = random_boxes(6, seed=4), random_boxes(6, seed=5)
    return logits, deltas, tf.constant(rois), tf.constant([3, 1, 0, 0, 2, -1]), tf.constant(matched)


@pytest.mark.parametrize("num_boxes", [3, 1], ids=["class-specific", "class-agnostic"])
@pytest.mark.parametrize(("kind", "beta"), [("l1", 1.0), ("smooth_l1", 0.5)])
def test_losses_equal_a_loop(num_boxes, kind, beta):
    case = loss_case(num_boxes)
    class_total = box_total = 0.0
    for logits, deltas, roi, target, matched in zip(*(value.numpy() for value in case), strict=True):
        if target < 0:
            continue
        class_total += np.log(np.exp(logits).sum()) - logits[target]
        if target > 0:
            size = np.abs(deltas[target - 1 if num_boxes > 1 else 0] - box_ops.encode(matched, roi, WEIGHTS).numpy())
            box_total += (size if kind == "l1" else np.where(size < beta, size**2 / (2 * beta), size - beta / 2)).sum()
    layer = BoxLosses(box_weights=WEIGHTS, box_loss=kind, smooth_l1_beta=beta)
    # both by the five rows drawn, the background ones included
    expected = [[class_total, 5], [box_total, 5]]
    np.testing.assert_allclose(layer(*case), expected, rtol=1e-4)
    np.testing.assert_allclose(in_xla(lambda: layer(*case)), expected, rtol=1e-4)


@pytest.mark.parametrize("target", [0, -1], ids=["background only", "nothing drawn"])
def test_losses_without_foreground(target):
    logits, deltas, rois, _, matched = loss_case(3)
    with tf.GradientTape() as tape:
        tape.watch([logits, deltas])
        terms = BoxLosses(box_weights=WEIGHTS, box_loss="l1", smooth_l1_beta=1.0)(
            logits, deltas, rois, tf.fill([6], target), tf.zeros_like(matched)
        )
        total = terms[0][0] + terms[1][0]
    np.testing.assert_array_equal(terms[1], [0, 6 if target == 0 else 0])
    assert (terms[0][0] > 0) == (target == 0)
    for_logits, for_deltas = tape.gradient(total, [logits, deltas])
    assert np.isfinite(for_logits).all()
    assert np.any(for_logits) == (target == 0)
    assert not np.any(for_deltas)


WINDOWS = np.array([[0, 0, 90, 100], [6, 12, 76, 76]], np.float32)


def detect_case(num_boxes, num_classes=3, seed=7):
    """Boxes that overlap much, of unlike scores; the second image has few valid proposals."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2.0, size=(2, 30, num_classes + 1)).astype(np.float32)
    deltas = random.normal(scale=0.5, size=(2, 30, num_boxes, 4)).astype(np.float32)
    is_valid = np.ones([2, 30], bool)
    is_valid[1, 4:] = False
    return [tf.constant(value) for value in (logits, deltas, random_boxes(2, 30, seed=seed), is_valid, WINDOWS)]


def detector(*, nms="hard", nms_iou_threshold=0.4, **options):
    defaults = {"score_threshold": 0.1, "max_detections": 12, "min_box_size": 0.0, "pre_nms_top_k": 5000}
    return DetectBoxes(box_weights=WEIGHTS, suppression=Suppression(nms, nms_iou_threshold), **{**defaults, **options})


def iou(a, b):
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def reference_detections(
    case,
    image,
    *,
    score_threshold=0.1,
    nms_iou_threshold=0.4,
    max_detections=12,
    min_box_size=0.0,
    best_class_only=False,
    max_log_scale=box_ops.MAX_LOG_SCALE,
):
    """(score, class, box) of one image, every pair of proposal and class by itself: detectron2's fast_rcnn_inference."""
    logits, deltas, proposals, is_valid, window = (value[image].numpy() for value in case)
    candidates = []
    for row in np.flatnonzero(is_valid):
        scores = np.exp(logits[row]) / np.exp(logits[row]).sum()
        for class_id in [scores.argmax()] if best_class_only else range(1, len(scores)):
            if class_id == 0:
                continue
            delta = deltas[row, class_id - 1 if len(deltas[row]) > 1 else 0]
            box = box_ops.decode(tf.constant(delta), tf.constant(proposals[row]), WEIGHTS, max_log_scale).numpy()
            box = np.clip(box, [*window[:2]] * 2, [*window[2:]] * 2)
            if scores[class_id] > score_threshold and min(box[2] - box[0], box[3] - box[1]) > min_box_size:
                candidates.append((scores[class_id], class_id, box))
    kept = []
    for score, class_id, box in sorted(candidates, key=lambda item: -item[0]):
        if all(other_class != class_id or iou(box, other) <= nms_iou_threshold for _, other_class, other in kept):
            kept.append((score, class_id, box))
    return kept[:max_detections]


def assert_detections(found, case, **options):
    boxes, classes, scores, counts = (value.numpy() for value in found)
    assert classes.dtype == counts.dtype == np.int32
    for image, count in enumerate(counts):
        expected = reference_detections(case, image, **options)
        assert count == len(expected)
        assert classes[image, :count].tolist() == [class_id for _, class_id, _ in expected]
        np.testing.assert_allclose(scores[image, :count], [score for score, _, _ in expected], rtol=1e-4)
        np.testing.assert_allclose(boxes[image, :count], np.reshape([box for _, _, box in expected], (-1, 4)), atol=1e-3)
        for values in (boxes, classes, scores):
            assert not values[image, count:].any()
    return counts


@pytest.mark.parametrize(
    ("num_boxes", "num_classes"), [(3, 3), (1, 3), (1, 1)], ids=["class-specific", "class-agnostic", "one class"]
)
@pytest.mark.parametrize("max_detections", [5, 200], ids=["few wanted", "more wanted than pairs"])
def test_detections_equal_the_reference(num_boxes, num_classes, max_detections):
    case = detect_case(num_boxes, num_classes)
    layer = detector(max_detections=max_detections)
    counts = assert_detections(layer(*case), case, max_detections=max_detections)
    assert counts.min() > 0
    # the test means something: suppression leaves some out
    assert counts[0] < len(reference_detections(case, 0, nms_iou_threshold=1.0, max_detections=999))
    assert_detections(in_xla(lambda: layer(*case)), case, max_detections=max_detections)


@pytest.mark.parametrize(("num_boxes", "num_classes"), [(3, 3), (1, 3), (1, 1)])
def test_a_proposal_may_stand_for_its_best_class_only(num_boxes, num_classes):
    case = detect_case(num_boxes, num_classes)
    options = {"best_class_only": True, "score_threshold": 0.0, "nms_iou_threshold": 1.0, "max_detections": 200}
    layer = detector(**options)
    counts = assert_detections(layer(*case), case, **options)
    is_foreground = case[0].numpy().argmax(axis=-1) > 0
    np.testing.assert_array_equal(counts, (is_foreground & case[3].numpy()).sum(axis=1))
    assert 0 < counts[0] < 30
    assert_detections(in_xla(lambda: layer(*case)), case, **options)


@pytest.mark.parametrize("kind", ["soft_linear", "soft_gaussian"])
def test_soft_nms_lowers_scores_and_keeps_more(kind):
    case = detect_case(3)
    soft, hard = (detector(nms=name, max_detections=200) for name in (kind, "hard"))
    boxes, classes, scores, counts = (value.numpy() for value in soft(*case))
    hard_scores, hard_counts = (value.numpy() for value in hard(*case)[2:])
    assert (counts >= hard_counts).all()
    assert counts[0] > hard_counts[0]
    assert scores[:, 0] == pytest.approx(hard_scores[:, 0])
    for image, count in enumerate(counts):
        assert (np.diff(scores[image, :count]) <= 0).all()
        assert not scores[image, count:].any()
        assert not classes[image, count:].any()
        assert (classes[image, :count] > 0).all()
    for value, compiled in zip((boxes, classes, scores, counts), in_xla(lambda: soft(*case)), strict=True):
        np.testing.assert_allclose(compiled, value, rtol=1e-4, atol=1e-3)


def test_equal_logits_stand_for_the_first_class():
    found = box_head.is_best(tf.constant([[1.0, 1, 0], [0, 2, 2], [0, 0, 1]]))
    np.testing.assert_array_equal(found, [[True, False, False], [False, True, False], [False, False, True]])


@pytest.mark.parametrize("max_log_scale", [0.1, None])
def test_the_growth_of_detections_may_be_bounded_or_not(max_log_scale):
    logits, deltas, proposals, is_valid, windows = detect_case(3)
    case = [logits, 10 * deltas, proposals, is_valid, 50 * windows]
    options = {"max_log_scale": max_log_scale, "max_detections": 200}
    assert_detections(detector(**options)(*case), case, **options)


def test_small_detections_are_dropped():
    case = detect_case(3)
    options = {"min_box_size": 25.0, "max_detections": 200}
    counts = assert_detections(detector(**options)(*case), case, **options)
    assert counts[0] < len(reference_detections(case, 0, max_detections=200))


def test_score_threshold_is_exclusive():
    logits = tf.constant([[[0.0, 0.0], [-2.0, 0.0]]])  # scores 0.5 and 0.88
    case = [logits, tf.zeros([1, 2, 1, 4]), tf.constant([[[0, 0, 9, 9], [20, 20, 30, 30]]], tf.float32)]
    _, _, scores, counts = detector(score_threshold=0.5)(*case, tf.ones([1, 2], tf.bool), tf.constant([[0.0, 0, 64, 64]]))
    np.testing.assert_array_equal(counts, [1])
    assert scores.numpy()[0, 0] == pytest.approx(1 / (1 + np.exp(-2)), rel=1e-5)


@pytest.mark.parametrize("kind", ["no proposal valid", "no score high enough", "not a number"])
def test_nothing_detected(kind):
    logits, deltas, proposals, is_valid, windows = detect_case(3)
    if kind == "no proposal valid":
        is_valid = tf.zeros_like(is_valid)
    elif kind == "not a number":
        deltas = deltas * np.nan
    layer = detector(score_threshold=0.9999 if kind == "no score high enough" else 0.1)
    boxes, classes, scores, counts = layer(logits, deltas, proposals, is_valid, windows)
    np.testing.assert_array_equal(counts, [0, 0])
    assert boxes.shape == (2, 12, 4)
    for values in (boxes, classes, scores):
        assert not np.any(values)


def test_only_the_best_candidates_reach_nms():
    case = detect_case(3)
    options = {"max_detections": 200, "nms_iou_threshold": 1.0}
    everything = detector(pre_nms_top_k=None, **options)(*case)
    found = detector(pre_nms_top_k=7, **options)(*case)
    np.testing.assert_array_equal(found[3], [7, min(7, everything[3][1])])
    np.testing.assert_array_equal(found[2][0, :7], everything[2][0, :7])
