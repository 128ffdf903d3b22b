"""Soft-NMS against the published loop in plain numpy, in TensorFlow, XLA and TFLite."""

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops.nms import EXCLUDED_SCORE
from mrcnn_tf.ops.soft_nms import gaussian_decay, linear_decay, soft_nms
from mrcnn_tf.ops.static_graph import static_graph
from mrcnn_tf.ops.suppression import Suppression

DECAYS = {"soft_linear": linear_decay(0.3), "soft_gaussian": gaussian_decay(0.5)}


def random_case(seed, num_images=2, num_boxes=60, num_groups=3):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 100, (num_images, num_boxes, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 80, corners.shape)], axis=-1).astype(np.float32)
    scores = rng.uniform(0.05, 1, (num_images, num_boxes)).astype(np.float32)
    return boxes, scores, rng.integers(0, num_groups, scores.shape).astype(np.int32)


def iou(a, b):
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


def published(boxes, scores, kind, min_score, max_output_size, threshold=0.3, sigma=0.5):
    """Bodla et al., figure 2, for one class of one image: (index, score) in the order of selection."""
    left = {n: float(score) for n, score in enumerate(scores) if score > EXCLUDED_SCORE}
    kept = []
    while left and len(kept) < max_output_size:
        best = max(left, key=left.get)
        kept.append((best, left.pop(best)))
        for n in list(left):
            overlap = iou(boxes[best].astype(float), boxes[n].astype(float))
            linear = 1 - overlap if overlap >= threshold else 1
            left[n] *= linear if kind == "soft_linear" else np.exp(-(overlap**2) / sigma)
            if left[n] < min_score:
                del left[n]
    return kept


def reference(boxes, scores, groups, kind, min_score, max_output_size):
    """Class by class, then the best of all classes."""
    found = []
    for group in set(groups.tolist()):
        rows = np.flatnonzero(groups == group)
        found += [(rows[n], score) for n, score in published(boxes[rows], scores[rows], kind, min_score, 10**6)]
    return sorted(found, key=lambda item: -item[1])[:max_output_size]


def assert_selected(got, case, kind, min_score, max_output_size):
    indices, values, counts = (np.asarray(value) for value in got)
    assert indices.shape == values.shape == (len(case[0]), max_output_size)
    for image, count in enumerate(counts):
        expected = reference(*(value[image] for value in case), kind, min_score, max_output_size)
        assert indices[image, :count].tolist() == [index for index, _ in expected]
        np.testing.assert_allclose(values[image, :count], [score for _, score in expected], rtol=1e-4)
        assert not indices[image, count:].any()
        assert not values[image, count:].any()


@pytest.mark.parametrize("jit_compile", [None, True])
@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize(("min_score", "max_output_size"), [(0.001, 20), (0.001, 100), (0.3, 100)])
def test_equals_the_published_loop(kind, min_score, max_output_size, jit_compile):
    @tf.function(jit_compile=jit_compile)
    def select(boxes, scores, groups):
        return soft_nms(boxes, scores, groups, max_output_size=max_output_size, decay=DECAYS[kind], min_score=min_score)

    for seed in range(2):
        case = random_case(seed)
        case[1][1, 3:] = EXCLUDED_SCORE
        assert_selected(select(*case), case, kind, min_score, max_output_size)


def test_by_hand():
    """The second box covers half of the first one: IoU 1/2. The third touches nothing."""
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]]], np.float32)
    scores, groups = np.array([[0.8, 0.6, 0.5]], np.float32), np.zeros((1, 3), np.int32)
    _, linear, _ = Suppression("soft_linear", 0.3)(boxes, groups, scores, num_classes=1, max_output_size=3)
    np.testing.assert_allclose(linear, [[0.8, 0.5, 0.3]], rtol=1e-6)
    _, above, _ = Suppression("soft_linear", 0.6)(boxes, groups, scores, num_classes=1, max_output_size=3)
    np.testing.assert_allclose(above, [[0.8, 0.6, 0.5]], rtol=1e-6)
    order, gaussian, _ = Suppression("soft_gaussian", sigma=0.5)(boxes, groups, scores, num_classes=1, max_output_size=3)
    np.testing.assert_allclose(gaussian, [[0.8, 0.5, 0.6 * np.exp(-0.5)]], rtol=1e-6)
    np.testing.assert_array_equal(order, [[0, 2, 1]])


def test_the_gaussian_is_that_of_tensorflows_kernel_at_half_its_sigma():
    """`NonMaxSuppressionV5` multiplies by exp(-IoU^2 / (2 sigma))."""
    boxes, scores, _ = random_case(5, num_images=1)
    indices, values, count = tf.raw_ops.NonMaxSuppressionV5(
        boxes=boxes[0], scores=scores[0], max_output_size=60, iou_threshold=1.0, score_threshold=0.001, soft_nms_sigma=0.25
    )
    ours = soft_nms(
        boxes, scores, 0 * scores.astype(np.int32), max_output_size=60, decay=DECAYS["soft_gaussian"], min_score=0.001
    )
    assert ours[2] == [count]
    np.testing.assert_array_equal(ours[0][0, : int(count)], indices)
    np.testing.assert_allclose(ours[1][0, : int(count)], values, rtol=1e-4)


@pytest.mark.parametrize("kind", DECAYS)
def test_nothing_to_select(kind):
    select = Suppression(kind)
    for num_images, num_boxes in ((1, 0), (2, 4)):
        scores = np.full((num_images, num_boxes), EXCLUDED_SCORE, np.float32)
        groups = np.zeros((num_images, num_boxes), np.int32)
        boxes = np.zeros((num_images, num_boxes, 4), np.float32)
        indices, values, counts = select(boxes, groups, scores, num_classes=1, max_output_size=3)
        for value in (indices, values, counts):
            assert not np.any(value)


def test_boxes_without_area_neither_suppress_nor_are_suppressed():
    boxes = np.array([[[5, 5, 5, 20], [5, 5, 5, 20], [0, 0, 10, 30]]], np.float32)
    scores = np.array([[0.9, 0.8, 0.7]], np.float32)
    _, values, counts = Suppression("soft_gaussian")(boxes, np.zeros((1, 3), np.int32), scores, num_classes=1, max_output_size=3)
    assert counts == [3]
    np.testing.assert_allclose(values, scores)


@pytest.mark.parametrize("kind", DECAYS)
def test_dynamic_sizes(kind):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 4]),
            tf.TensorSpec([None, None]),
            tf.TensorSpec([None, None], tf.int32),
        ]
    )
    def select(boxes, scores, groups):
        return soft_nms(boxes, scores, groups, max_output_size=8, decay=DECAYS[kind], min_score=0.01)

    for num_images, num_boxes in ((1, 5), (3, 30)):
        case = random_case(1, num_images, num_boxes)
        assert_selected(select(*case), case, kind, 0.01, 8)
    assert select(*random_case(1, 2, 0))[2].numpy().tolist() == [0, 0]


@pytest.mark.parametrize("kind", DECAYS)
def test_the_same_in_tflite(kind, tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    case = random_case(2, num_images=1, num_boxes=30)

    @tf.function(input_signature=[tf.TensorSpec(value.shape, value.dtype) for value in case])
    def select(boxes, scores, groups):
        with static_graph():
            selected = soft_nms(boxes, scores, groups, max_output_size=12, decay=DECAYS[kind], min_score=0.001)
        return dict(zip(("indices", "scores", "count"), selected, strict=True))

    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path), signatures=select.get_concrete_function())
    content = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path)).convert()
    runner = interpreter.Interpreter(model_content=content).get_signature_runner()
    got = runner(boxes=case[0], scores=case[1], groups=case[2])
    assert_selected([got["indices"], got["scores"], got["count"]], case, kind, 0.001, 12)
