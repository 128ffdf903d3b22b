import json

import numpy as np
import pytest

from mrcnn_tf.data.copy_paste import choose_pasted, occlude, paste_alpha, soften, together
from mrcnn_tf.data.masks import bitmap_to_rle, mask_crop
from mrcnn_tf.data.views import Objects, Segment, View

SIZE = (64, 80)


def _square(top, left, bottom, right):
    return [left, top, right, top, right, bottom, left, bottom]


def _objects(*polygons, crowd=(), shapeless=()):
    points = [np.reshape(polygon, (-1, 2)) for polygon in polygons]
    boxes = np.array([[*p.min(axis=0)[::-1], *p.max(axis=0)[::-1]] for p in points], np.float32).reshape(-1, 4)
    masks = np.array([mask_crop([p], b, SIZE) for p, b in zip(polygons, boxes, strict=True)], np.uint8).reshape(-1, 56, 56)
    shapes = [None if n in shapeless else Segment(json.dumps([list(p)]).encode(), SIZE) for n, p in enumerate(polygons)]
    is_crowd = np.isin(np.arange(len(polygons)), crowd)
    objects = Objects(boxes, np.arange(1, len(polygons) + 1, dtype=np.int32), is_crowd, masks, tuple(shapes))
    return View(SIZE, SIZE, (0, 0, *SIZE)).place(objects, min_area=0)


def _star(random):
    angles = np.sort(random.uniform(0, 2 * np.pi, 9))
    reach = random.uniform(4, 25, 9)
    centre = random.uniform((25, 25), (55, 39))
    points = np.stack([centre[0] + reach * np.cos(angles), centre[1] + reach * np.sin(angles)], axis=1)
    return np.clip(points, 0, (SIZE[1], SIZE[0])).ravel()


def _area(objects, row):
    top, left, bottom, right = objects.boxes[row]
    return (bottom - top) * (right - left) * objects.masks[row].mean() / 255


def test_pasting_nothing_changes_nothing():
    below = _objects(_square(1, 2, 11, 22), _square(20, 30, 40, 50))
    nothing = _objects()
    alpha = paste_alpha(nothing, SIZE)
    assert not alpha.any()
    left = together(occlude(below, alpha, min_area=1e9), nothing)
    for name in ("boxes", "classes", "crowd", "masks"):
        np.testing.assert_array_equal(getattr(left, name), getattr(below, name))


def test_an_object_half_covered_keeps_the_other_half():
    below, above = _objects(_square(10, 20, 30, 40)), _objects(_square(0, 30, 64, 50))
    left = occlude(below, paste_alpha(above, SIZE), min_area=1)
    assert left.boxes.tolist() == [[10, 20, 30, 30]]
    assert left.masks.min() == 255


def test_a_hole_is_taken_out_and_the_box_stays():
    below, above = _objects(_square(10, 20, 38, 48)), _objects(_square(17, 27, 31, 41))
    left = occlude(below, paste_alpha(above, SIZE), min_area=1)
    np.testing.assert_array_equal(left.boxes, below.boxes)
    assert left.masks[0, 14:42, 14:42].max() == 0
    assert left.masks[0, :14].min() == left.masks[0, :, :14].min() == 255


def test_covered_objects_are_dropped_and_the_rest_keeps_its_order():
    below = _objects(_square(10, 10, 20, 20), _square(40, 40, 50, 50), _square(11, 50, 12, 60))
    above = _objects(_square(5, 5, 25, 25), _square(11, 50.5, 12, 60))
    alpha = paste_alpha(above, SIZE)
    assert occlude(below, alpha, min_area=0).classes.tolist() == [2, 3]
    assert occlude(below, alpha, min_area=1).classes.tolist() == [2]


def test_boxes_that_meet_but_masks_that_do_not_are_left_alone():
    below, above = _objects([10, 10, 40, 10, 10, 40]), _objects([41, 11, 41, 41, 11, 41])
    left = occlude(below, paste_alpha(above, SIZE), min_area=1)
    np.testing.assert_array_equal(left.boxes, below.boxes)
    np.testing.assert_array_equal(left.masks, below.masks)


def test_crowds_without_a_mask_stay_as_they_are():
    below, above = _objects(_square(10, 10, 20, 20), crowd=(0,), shapeless=(0,)), _objects(_square(0, 0, 64, 80))
    left = occlude(below, paste_alpha(above, SIZE), min_area=1)
    np.testing.assert_array_equal(left.boxes, below.boxes)


@pytest.mark.parametrize("seed", range(20))
def test_visible_area_never_grows_and_is_what_the_pixels_say(seed):
    random = np.random.default_rng(seed)
    below, above = _objects(*(_star(random) for _ in range(4))), _objects(*(_star(random) for _ in range(2)))
    alpha = paste_alpha(above, SIZE)
    left = occlude(below, alpha, min_area=1)
    for row, class_id in enumerate(left.classes):
        before = class_id - 1
        assert _area(left, row) <= _area(below, before) * 1.01 + 0.5
        pixels = below.shapes[before]((0, 0, *SIZE), SIZE) * (1 - alpha)
        assert _area(left, row) == pytest.approx(pixels.sum(), abs=float(3 + 0.05 * pixels.sum()))
    assert (left.boxes[:, :2] >= np.floor(below.boxes[left.classes - 1, :2])).all()
    assert (left.boxes[:, 2:] <= np.ceil(below.boxes[left.classes - 1, 2:])).all()


def test_opacity_is_the_union_and_has_the_edges_of_the_masks():
    alpha = paste_alpha(_objects(_square(10.5, 10, 20, 20), _square(15, 15, 30, 30)), SIZE)
    assert alpha[10, 15] == pytest.approx(0.5)
    assert alpha[15:20, 15:20].min() == alpha.max() == 1
    assert alpha.sum() == pytest.approx(9.5 * 10 + 15 * 15 - 25)


def test_run_lengths_are_pasted_too():
    bitmap = np.zeros(SIZE, np.uint8)
    bitmap[5:9, 7:30] = 1
    shape = Segment(json.dumps(bitmap_to_rle(bitmap)).encode(), SIZE)
    one = Objects(
        np.array([[5, 7, 9, 30]], np.float32), np.array([1]), np.array([False]), np.full((1, 56, 56), 255, np.uint8), (shape,)
    )
    np.testing.assert_allclose(paste_alpha(one, SIZE), bitmap, atol=1e-6)


def test_soft_edges_keep_the_mass_and_none_are_sharp():
    alpha = paste_alpha(_objects(_square(20, 20, 40, 60)), SIZE)
    np.testing.assert_array_equal(soften(alpha, 0), np.uint8(alpha * 255))
    soft = soften(alpha, 2.0)
    assert soft.sum() == pytest.approx(alpha.sum() * 255, rel=0.02)
    assert 0 < soft[19, 30] < 128 < soft[20, 30] < 255


def test_half_of_the_objects_are_chosen_but_no_crowd_and_none_without_a_mask():
    objects = _objects(*[_square(n, n, n + 5, n + 5) for n in range(40)], crowd=(0,), shapeless=(1,))
    random = np.random.default_rng(0)
    drawn = np.array([np.bincount(choose_pasted(objects, random), minlength=40) for _ in range(400)])
    assert drawn[:, :2].max() == 0
    assert drawn[:, 2:].mean() == pytest.approx(0.5, abs=0.02)
    assert not len(choose_pasted(_objects(), random))
