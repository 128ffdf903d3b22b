import json

import numpy as np
import pytest

from mrcnn_tf.data.masks import bitmap_to_rle, mask_crop
from mrcnn_tf.data.views import Objects, Segment, View, as_mask, tight_box

DIAMOND = [20, 10, 30, 20, 20, 30, 10, 20]


def _objects(polygons, image_size, *, crowd=(), masks=True, shapes=True):
    points = [np.reshape(polygon, (-1, 2)) for polygon in polygons]
    boxes = np.array([[*p.min(axis=0)[::-1], *p.max(axis=0)[::-1]] for p in points], np.float32).reshape(-1, 4)
    crops = np.array([mask_crop([p], b, image_size) for p, b in zip(polygons, boxes, strict=True)], np.uint8).reshape(-1, 56, 56)
    segments = tuple(Segment(json.dumps([list(polygon)]).encode(), image_size) if shapes else None for polygon in polygons)
    is_crowd = np.array([row in crowd for row in range(len(polygons))], bool)
    return Objects(boxes, np.arange(1, len(polygons) + 1, dtype=np.int32), is_crowd, crops if masks else None, segments)


def _whole(size, **more):
    return View(size, size, (0, 0, *size), **more)


def test_a_view_of_everything_changes_nothing():
    objects = _objects([DIAMOND, [0, 0, 50, 0, 50, 40, 0, 40]], (40, 50))
    placed = _whole((40, 50)).place(objects, min_area=1e9)
    for name in ("boxes", "classes", "crowd", "masks"):
        np.testing.assert_array_equal(getattr(placed, name), getattr(objects, name))


def test_mirroring_twice_changes_nothing():
    objects = _objects([DIAMOND, [0, 0, 9, 0, 9, 40]], (40, 50))
    flip = _whole((40, 50), flip=True)
    once = flip.place(objects, min_area=1)
    np.testing.assert_array_equal(once.boxes, [[10, 20, 30, 40], [0, 41, 40, 50]])
    np.testing.assert_array_equal(once.masks, objects.masks[:, :, ::-1])
    twice = flip.place(once, min_area=1)
    for name in ("boxes", "masks"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(objects, name))
    # The shapes have been mirrored twice, too.
    again = as_mask(twice.shapes[1]((0, 0, 40, 9), (56, 56)))
    np.testing.assert_allclose(again.astype(int), objects.masks[1], atol=1)


def test_resizing_multiplies_before_it_divides():
    """So that a box that ends at the edge of the picture still does."""
    for width in range(1, 400, 7):
        view = View((3, width), (5, 133), (0, 0, 5, 133))
        assert view.place(_objects([[0, 0, width, 0, width, 3]], (3, width)), min_area=1).boxes[0].tolist() == [0, 0, 5, 133]


@pytest.mark.parametrize("flip", [False, True])
def test_a_cut_object_has_the_mask_of_what_is_left(flip):
    """The right half of the diamond, in a picture enlarged twice."""
    view = View((40, 50), (80, 100), (0, 40, 80, 100), flip=flip, offset=(3, 4))
    placed = view.place(_objects([DIAMOND], (40, 50)), min_area=1)
    expected = mask_crop([DIAMOND], (10, 20, 30, 30), (40, 50))
    assert placed.boxes.tolist() == [[23, 44, 63, 64] if flip else [23, 4, 63, 24]]
    np.testing.assert_array_equal(placed.masks[0], expected[:, ::-1] if flip else expected)


def test_a_cut_box_is_drawn_around_what_is_left():
    """Only the left corner of the diamond is in the window; the clipped box would be as high as the diamond."""
    view = View((40, 50), (40, 50), (0, 0, 40, 13))
    placed = view.place(_objects([DIAMOND], (40, 50)), min_area=1)
    np.testing.assert_allclose(placed.boxes, [[17, 10, 23, 13]], atol=0.11)
    assert placed.masks[0, 28, 55] == 255
    assert placed.masks[0, 0, 0] == 0


def test_without_masks_boxes_are_clipped():
    placed = View((40, 50), (40, 50), (0, 0, 40, 13)).place(_objects([DIAMOND], (40, 50), masks=False, shapes=False), min_area=1)
    assert placed.boxes.tolist() == [[10, 10, 30, 13]]
    assert placed.masks is None


def test_what_is_cut_to_less_than_the_area_is_dropped():
    objects = _objects([DIAMOND, [0, 0, 4, 0, 4, 4, 0, 4], [40, 0, 50, 0, 50, 40]], (40, 50))
    view = View((40, 50), (40, 50), (0, 0, 40, 13))
    # 9 square pixels are left of the diamond, all of the square, nothing of the triangle.
    assert view.place(objects, min_area=8.5).classes.tolist() == [1, 2]
    assert view.place(objects, min_area=9.5).classes.tolist() == [2]


def test_small_objects_that_are_not_cut_stay():
    objects = _objects([[0, 0, 4, 0, 4, 4, 0, 4]], (40, 50))
    placed = View((40, 50), (4, 5), (0, 0, 4, 5)).place(objects, min_area=1e9)
    np.testing.assert_allclose(placed.boxes, [[0, 0, 0.4, 0.4]], rtol=1e-6)


def test_a_crowd_region_without_a_mask_is_clipped():
    objects = _objects([[0, 0, 50, 0, 50, 40, 0, 40]], (40, 50), crowd=(0,), shapes=False)
    placed = View((40, 50), (40, 50), (0, 0, 40, 13)).place(objects, min_area=1)
    assert placed.boxes.tolist() == [[0, 0, 40, 13]]
    assert placed.crowd.tolist() == [True]


@pytest.mark.parametrize("masks", [True, False])
def test_no_objects_and_one_pixel(masks):
    empty = _whole((40, 50), flip=True).place(_objects([], (40, 50), masks=masks), min_area=1)
    assert empty.boxes.shape == (0, 4)
    pixel = View((1, 1), (7, 7), (2, 3, 4, 6)).place(_objects([[0, 0, 1, 0, 1, 1, 0, 1]], (1, 1), masks=masks), min_area=1)
    assert pixel.boxes.tolist() == [[0, 0, 2, 3]]
    assert masks is False or pixel.masks.min() == 255


def test_a_box_without_area_that_is_cut_is_dropped():
    flat = Objects(np.array([[10, 10, 10, 20]], np.float32), np.array([1]), np.array([False]), None, (None,))
    assert not len(View((40, 50), (40, 50), (0, 0, 40, 13)).place(flat, min_area=0).classes)


def test_run_lengths_are_cut_like_polygons():
    bitmap = np.zeros((40, 50), np.uint8)
    bitmap[10:30, 10:30] = np.tri(20)
    shape = Segment(json.dumps(bitmap_to_rle(bitmap)).encode(), (40, 50))
    objects = Objects(
        np.array([[10, 10, 30, 30]], np.float32),
        np.array([1]),
        np.array([False]),
        as_mask(shape((10, 10, 30, 30), (56, 56)))[None],
        (shape,),
    )
    placed = View((40, 50), (40, 50), (15, 5, 40, 50)).place(objects, min_area=1)
    assert placed.boxes.tolist() == [[0, 5, 15, 25]]
    np.testing.assert_array_equal(placed.masks[0], as_mask(shape((15, 10, 30, 30), (56, 56))))


def test_views_pack_into_nine_numbers():
    assert View((40, 50), (80, 100), (1, 2, 3, 4), flip=True, offset=(5, 6)).packed().tolist() == [80, 100, 1, 2, 3, 4, 1, 5, 6]


def test_the_tight_box_holds_the_solid_cells():
    solid = np.zeros((4, 10), bool)
    solid[1, 3] = solid[2, 5] = True
    assert tight_box(solid, (0, 10, 8, 20)).tolist() == [2, 13, 6, 16]
    assert tight_box(np.zeros((2, 2), bool), (0, 0, 1, 1)) is None
