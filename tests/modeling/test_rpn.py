"""The region proposal network on tiny pyramids, against a reference that goes box by box."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.modeling.rpn import Anchors, Proposals, RpnLosses, build_rpn_head, flatten
from mrcnn_tf.ops import boxes as box_ops
from mrcnn_tf.ops.matching import match, random_keys, sample
from mrcnn_tf.ops.static_graph import static_graph

STRIDES, SIZES, RATIOS = (8, 16), ((12.0,), (24.0,)), (0.5, 1.0, 2.0)
WINDOWS = np.array([[0, 0, 48, 64], [4, 16, 44, 48]], np.float32)
LEVELS = ((6, 8), (3, 4))


def feature_maps(channels, seed, scale=1.0):
    random = np.random.default_rng(seed)
    return [tf.constant(random.normal(scale=scale, size=(2, *level, channels)).astype(np.float32)) for level in LEVELS]


def make_anchors():
    return Anchors(SIZES, RATIOS, STRIDES)(feature_maps(1, 0))


def head_outputs(seed=1):
    return feature_maps(3, seed), feature_maps(12, seed + 1, scale=0.3)


def in_xla(function):
    @tf.function(jit_compile=True)
    def compiled():
        with static_graph():
            return function()

    return compiled()


def flat(maps, components):
    return np.concatenate([level.numpy().reshape(2, -1, components) for level in maps], axis=1)


def test_head_shapes_and_names():
    head = build_rpn_head(6, width=5, num_convs=2, num_anchors=3, levels=(3, 4))
    objectness, deltas = head([tf.zeros([2, height, width, 6]) for height, width in LEVELS])
    assert [level.shape for level in objectness] == [(2, height, width, 3) for height, width in LEVELS]
    assert [level.shape for level in deltas] == [(2, height, width, 12) for height, width in LEVELS]
    assert [layer.name for layer in head.layers][2:] == ["conv0", "conv1", "objectness", "deltas"]
    assert head.get_layer("conv1").kernel.shape == (3, 3, 5, 5)


def test_levels_share_the_head_and_have_norms_of_their_own():
    """With the norms folded by hand into the convolution, each level is a head without norms."""
    maps = [tf.random.stateless_normal([2, height, width, 6], [1, height]) for height, width in LEVELS]
    head = build_rpn_head(6, width=5, num_convs=1, num_anchors=3, norm="frozen", norm_epsilon=0.1, levels=(3, 4))
    random = np.random.default_rng(0)
    for weight in head.weights:
        weight.assign(random.uniform(0.5, 2, weight.shape) if "moving" in weight.name else random.normal(size=weight.shape))
    values = {(layer.name, weight.name): weight.numpy() for layer in head.layers for weight in layer.weights}
    assert ("conv0", "bias") not in values
    found = head(maps)
    for index, level in enumerate((3, 4)):
        gamma, beta, mean, variance = (
            values[f"conv0_norm{level}", name] for name in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        scale = gamma / np.sqrt(variance + 0.1)
        plain = build_rpn_head(6, width=5, num_convs=1, num_anchors=3, levels=(level,))
        folded = {("conv0", "kernel"): values["conv0", "kernel"] * scale, ("conv0", "bias"): beta - mean * scale}
        for layer in plain.layers:
            for weight in layer.weights:
                weight.assign({**values, **folded}[layer.name, weight.name])
        expected = plain([maps[index]])
        for kind in (0, 1):
            np.testing.assert_allclose(found[kind][index], expected[kind][0], atol=1e-4)


def test_anchors_layer_lays_each_level():
    anchors = make_anchors()
    assert [level.shape for level in anchors] == [(6 * 8 * 3, 4), (3 * 4 * 3, 4)]
    # the last location of P4: centre (2, 3) * 16, and its square anchor
    np.testing.assert_allclose(anchors[1][-2], [32 - 12, 48 - 12, 32 + 12, 48 + 12])


def test_anchors_layer_refuses_another_number_of_levels():
    with pytest.raises(ValueError, match="zip"):
        Anchors(SIZES, RATIOS, STRIDES)(feature_maps(1, 0)[:1])


def test_flatten_has_the_order_of_the_anchors():
    """A head that answers with its own place: each flattened row must meet the anchor of that place."""
    for level, stride, anchors in zip(LEVELS, STRIDES, make_anchors(), strict=True):
        y, x = np.meshgrid(*(np.arange(side, dtype=np.float32) * stride for side in level), indexing="ij")
        ratio = np.broadcast_to(np.float32(RATIOS), (*level, 3))
        places = np.stack(
            [np.broadcast_to(y[..., None], ratio.shape), np.broadcast_to(x[..., None], ratio.shape), ratio, ratio], -1
        )
        rows = flatten(tf.constant(places.reshape(1, *level, 12)), 4)[0].numpy()
        anchors = anchors.numpy()
        np.testing.assert_allclose(rows[:, :2], (anchors[:, :2] + anchors[:, 2:]) / 2, atol=1e-4)
        sides = anchors[:, 2:] - anchors[:, :2]
        np.testing.assert_allclose(rows[:, 2], sides[:, 0] / sides[:, 1], rtol=1e-4)


@pytest.mark.parametrize(("known", "count"), [((2, 3, 5, 12), 45), ((None, 3, 5, 12), 45), ((2, None, 5, 12), None)])
def test_flatten_keeps_what_is_known_of_the_shape(known, count):
    @tf.function(input_signature=[tf.TensorSpec(known)])
    def run(maps):
        assert flatten(maps, 4).shape.as_list() == [known[0], count, 4]
        return flatten(maps, 4)

    assert run(tf.zeros([2, 3, 5, 12])).shape == (2, 45, 4)


def iou(a, b):
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return shared / max((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared, 1e-9)


def reference_proposals(objectness, deltas, anchors, image, *, pre, post, threshold, min_size, joint=False, **coder):
    """Box by box, in the order of the scores: detectron2's find_top_rpn_proposals, or one such turn for all levels together."""
    levels = [
        (scores[image].numpy().reshape(-1), level_deltas[image].numpy().reshape(-1, 4), level_anchors.numpy())
        for scores, level_deltas, level_anchors in zip(objectness, deltas, anchors, strict=True)
    ]
    if joint:
        levels = [tuple(np.concatenate(parts) for parts in zip(*levels, strict=True))]
    found = []
    for scores, level_deltas, level_anchors in levels:
        boxes = box_ops.decode(tf.constant(level_deltas), tf.constant(level_anchors), **coder).numpy()
        boxes = np.clip(boxes, [*WINDOWS[image, :2]] * 2, [*WINDOWS[image, 2:]] * 2)
        kept = []
        for index in np.argsort(-scores, kind="stable")[:pre]:
            box = boxes[index]
            large = min(box[2] - box[0], box[3] - box[1]) > min_size
            if large and len(kept) < post and all(iou(box, boxes[other]) <= threshold for other in kept):
                kept.append(index)
        found += [(scores[index], boxes[index]) for index in kept]
    found.sort(key=lambda item: -item[0])
    return [box for _, box in found[:post]]


@pytest.mark.parametrize(
    "options",
    [
        {"pre": 40, "post": 10, "threshold": 0.7, "min_size": 0.0},
        {"pre": 40, "post": 200, "threshold": 0.3, "min_size": 9.0},
        {"pre": 1000, "post": 1000, "threshold": 0.7, "min_size": 0.0},
        {"pre": 60, "post": 40, "threshold": 0.5, "min_size": 0.0, "joint": True},
        {"pre": 1000, "post": 1000, "threshold": 0.7, "min_size": 0.0, "joint": True, "weights": (10.0, 10.0, 5.0, 5.0)},
        {"pre": 40, "post": 40, "threshold": 0.7, "min_size": 0.0, "weights": (0.3, 0.3, 0.1, 0.1), "max_log_scale": 0.5},
        {"pre": 40, "post": 40, "threshold": 0.7, "min_size": 0.0, "weights": (0.3, 0.3, 0.1, 0.1), "max_log_scale": None},
    ],
    ids=["few wanted", "fewer left than wanted", "more wanted than anchors", "joint", "joint, weights", "bound", "no bound"],
)
def test_proposals_equal_the_reference(options):
    objectness, deltas = head_outputs()
    propose = Proposals(
        pre_nms_top_k=options["pre"],
        post_nms_top_k=options["post"],
        nms_iou_threshold=options["threshold"],
        min_box_size=options["min_size"],
        joint_levels=options.get("joint", False),
        box_weights=options.get("weights", (1.0, 1.0, 1.0, 1.0)),
        max_log_scale=options.get("max_log_scale", box_ops.MAX_LOG_SCALE),
    )
    arguments = (objectness, deltas, make_anchors(), tf.constant(WINDOWS))
    proposals, is_valid = propose(*arguments)
    assert proposals.shape == (2, options["post"], 4)
    for image in range(2):
        expected = reference_proposals(*arguments[:3], image, **options)
        count = int(is_valid[image].numpy().sum())
        assert count == len(expected) > 0
        assert is_valid[image].numpy()[:count].all()
        np.testing.assert_allclose(proposals[image, :count], expected, atol=1e-3)
        assert not proposals[image, count:].numpy().any()
    compiled = in_xla(lambda: propose(*arguments))
    np.testing.assert_allclose(compiled[0], proposals, atol=1e-3)
    np.testing.assert_array_equal(compiled[1], is_valid)


@pytest.mark.parametrize(("ranking", "first"), [("logit", 1), ("probability", 0)])
def test_ranking_of_anchors_whose_probabilities_are_the_same_number(ranking, first):
    """float32 has one number for sigmoid(20) and sigmoid(30): then the anchor that comes first wins."""
    anchors = tf.constant([[0, 0, 8, 8], [20, 20, 30, 30]], tf.float32)
    objectness = tf.reshape(tf.constant([20.0, 30.0]), [1, 1, 2, 1])
    propose = Proposals(pre_nms_top_k=2, post_nms_top_k=1, nms_iou_threshold=0.7, min_box_size=0.0, ranking=ranking)
    proposals, _ = propose([objectness], [tf.zeros([1, 1, 2, 4])], [anchors], tf.constant([[0, 0, 40, 40]], tf.float32))
    np.testing.assert_array_equal(proposals[0, 0], anchors[first])


def test_proposals_of_sizes_known_at_run_time_only():
    propose = Proposals(pre_nms_top_k=40, post_nms_top_k=300, nms_iou_threshold=0.7, min_box_size=0.0)
    objectness, deltas = head_outputs()
    expected = propose(objectness, deltas, make_anchors(), tf.constant(WINDOWS))
    maps = [[keras.Input((None, None, channels)) for _ in LEVELS] for channels in (3, 12)]
    windows = keras.Input((4,))
    model = keras.Model([*maps, windows], propose(*maps, Anchors(SIZES, RATIOS, STRIDES)(maps[0]), windows))
    for first, second in zip(model([objectness, deltas, tf.constant(WINDOWS)]), expected, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-4)


def test_proposals_leave_out_what_is_not_a_number():
    objectness, deltas = head_outputs()
    broken = [tf.fill(deltas[0].shape, np.nan), deltas[1]]
    propose = Proposals(pre_nms_top_k=50, post_nms_top_k=50, nms_iou_threshold=0.7, min_box_size=0.0)
    proposals, is_valid = propose(objectness, broken, make_anchors(), tf.constant(WINDOWS))
    assert np.isfinite(proposals).all()
    assert 0 < is_valid.numpy().sum() <= 2 * LEVELS[1][0] * LEVELS[1][1] * 3


def test_no_gradient_comes_through_proposals():
    objectness, deltas = head_outputs()
    propose = Proposals(pre_nms_top_k=50, post_nms_top_k=50, nms_iou_threshold=0.7, min_box_size=0.0)
    with tf.GradientTape() as tape:
        tape.watch([*objectness, *deltas])
        total = tf.reduce_sum(propose(objectness, deltas, make_anchors(), tf.constant(WINDOWS))[0])
    assert all(gradient is None for gradient in tape.gradient(total, [*objectness, *deltas]))


OPTIONS = {
    "foreground_iou_threshold": 0.35,
    "background_iou_threshold": 0.2,
    "num_samples": 24,
    "positive_fraction": 0.5,
    "crowd_overlap_threshold": 0.7,
    "box_loss": "smooth_l1",
    "smooth_l1_beta": 0.1,
}


def ground_truth():
    """Two objects and a crowd region; nothing in the second image."""
    boxes = np.zeros([2, 4, 4], np.float32)
    boxes[0, :3] = [[5, 5, 20, 25], [20, 30, 44, 60], [0, 40, 20, 64]]
    classes = np.array([[1, 2, 1, 0], [0, 0, 0, 0]], np.int32)
    crowd = np.array([[False, False, True, False], [False] * 4])
    return tf.constant(boxes), tf.constant(classes), tf.constant(crowd)


SEEDS = tf.constant([[0, 0], [0, 1]])


def reference_losses(objectness, deltas, box_weights):
    """One sampled anchor at a time; the sample itself is tested with `ops.matching`."""
    anchors = np.concatenate(make_anchors())
    boxes, classes, crowd = (value.numpy() for value in ground_truth())
    valid = (classes > 0) & ~crowd
    labels, matched = match(
        anchors[None], boxes, valid, foreground_iou_threshold=0.35, background_iou_threshold=0.2, allow_low_quality=True
    )
    labels = labels.numpy()
    inside = [box_ops.overlap_fractions(anchors, boxes[0, 2:3]).numpy()[:, 0] > 0.7, np.zeros(len(anchors), bool)]
    labels[np.array(inside) & (labels == 0)] = -1
    drawn = sample(tf.constant(labels), random_keys(SEEDS, len(anchors)), num_samples=24, positive_fraction=0.5)
    logits, predicted = flat(objectness, 1)[..., 0], flat(deltas, 4)
    class_total = box_total = 0.0
    for image in range(2):
        for index, is_foreground, is_valid in zip(*(rows[image].numpy() for rows in drawn), strict=True):
            if not is_valid:
                continue
            probability = 1 / (1 + np.exp(-logits[image, index]))
            class_total -= np.log(probability if is_foreground else 1 - probability)
            if is_foreground:
                target = box_ops.encode(
                    tf.constant(boxes[image, matched[image, index]]), tf.constant(anchors[index]), box_weights
                )
                size = np.abs(predicted[image, index] - target)
                box_total += np.where(size < 0.1, size**2 / 0.2, size - 0.05).sum()
    return class_total, box_total, drawn


@pytest.mark.parametrize("box_weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 4.0)])
def test_losses_equal_the_reference(box_weights):
    objectness, deltas = head_outputs(5)
    class_total, box_total, drawn = reference_losses(objectness, deltas, box_weights)
    positives = drawn[1].numpy().sum(axis=1)
    assert positives[0] > 5
    assert positives[1] == 0
    layer = RpnLosses(**OPTIONS, box_weights=box_weights)

    def losses():
        return layer(objectness, deltas, make_anchors(), *ground_truth(), SEEDS)

    np.testing.assert_allclose(losses(), [[class_total, 48], [box_total, 48], [positives.sum(), 2]], rtol=1e-4)
    np.testing.assert_allclose(in_xla(losses), losses(), rtol=1e-4)


def test_losses_of_one_image_do_not_depend_on_the_other():
    objectness, deltas = head_outputs(6)
    layer, anchors = RpnLosses(**OPTIONS), make_anchors()
    together = layer(objectness, deltas, anchors, *ground_truth(), SEEDS)
    alone = [
        layer(
            *([x[i : i + 1] for x in maps] for maps in (objectness, deltas)), anchors, *(x[i : i + 1] for x in ground_truth()), s
        )
        for i, s in enumerate((SEEDS[:1], SEEDS[1:]))
    ]
    np.testing.assert_allclose(together, np.sum(alone, axis=0), rtol=1e-5)


def test_without_ground_truth_the_losses_are_finite_and_boxes_get_no_gradient():
    objectness, deltas = head_outputs(7)
    boxes, classes, crowd = (tf.zeros_like(value) for value in ground_truth())
    with tf.GradientTape() as tape:
        tape.watch([*objectness, *deltas])
        class_term, box_term, _ = RpnLosses(**OPTIONS)(objectness, deltas, make_anchors(), boxes, classes, crowd, SEEDS)
        total = class_term[0] + box_term[0]
    assert class_term[0] > 0
    np.testing.assert_array_equal(box_term, [0, 48])
    gradients = tape.gradient(total, [*objectness, *deltas])
    assert sum(np.count_nonzero(gradient) for gradient in gradients[:2]) == 48
    assert not any(np.any(gradient) for gradient in gradients[2:])


def test_l1_is_chosen_by_name():
    objectness, deltas = head_outputs(8)
    l1, nearly_l1, smooth = (
        RpnLosses(**{**OPTIONS, **options})(objectness, deltas, make_anchors(), *ground_truth(), SEEDS)[1][0].numpy()
        for options in ({"box_loss": "l1"}, {"smooth_l1_beta": 1e-6}, {})
    )
    assert l1 == pytest.approx(nearly_l1, rel=1e-4)
    assert smooth < l1


def test_rows_that_could_not_be_drawn_add_nothing():
    """More samples are asked for than there are anchors: only the normaliser grows."""
    objectness, deltas = head_outputs(9)
    count = sum(3 * height * width for height, width in LEVELS)
    truth = [tf.zeros_like(value) for value in ground_truth()]
    enough, too_many = (
        RpnLosses(**{**OPTIONS, "num_samples": number})(objectness, deltas, make_anchors(), *truth, SEEDS)[0].numpy()
        for number in (count, count + 50)
    )
    np.testing.assert_allclose(too_many[0], enough[0], rtol=1e-5)
    assert (enough[1], too_many[1]) == (2 * count, 2 * (count + 50))
