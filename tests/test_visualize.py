"""Drawings: what must be seen, where, and that nothing else is touched."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_tf import visualize
from mrcnn_tf.detections import Detections
from mrcnn_tf.visualize import draw_detections, draw_ground_truth, instance_colour

GREY = 90


def detections(boxes, image_size, *, name="cat", scores=None, masks=True):
    count = len(boxes)
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(count, 4),
        classes=np.ones(count, np.int32),
        scores=np.linspace(0.9, 0.6, count).astype(np.float32) if scores is None else np.array(scores, np.float32),
        mask_probs=np.ones((count, 28, 28), np.float32) if masks else None,
        image_size=image_size,
        categories=({"id": 1, "name": name},),
    )


def grey(height, width):
    return np.full((height, width, 3), GREY, np.uint8)


def is_colour(pixels, number):
    return (pixels == np.array(instance_colour(number))).all(axis=-1)


def test_mask_outline_and_box_are_drawn_in_the_colour_of_the_object():
    image = grey(700, 800)
    drawn = draw_detections(image, detections([[200, 300, 500, 700]], (700, 800)))
    assert drawn.shape == image.shape
    assert is_colour(drawn[200, 300:700], 0).all()
    assert is_colour(drawn[499, 300:700], 0).all()
    assert is_colour(drawn[200:500, 699], 0).all()
    # Translucent inside: between the grey of the picture and the colour.
    inside = drawn[350, 500].astype(int)
    assert not is_colour(drawn[350, 500], 0)
    assert np.abs(inside - GREY).max() > 30
    assert (drawn[600:, :] == GREY).all()
    assert (image == GREY).all()


def test_a_soft_mask_is_pasted_where_its_half_is():
    found = detections([[100, 100, 500, 500]], (700, 800))
    half = np.zeros((1, 28, 28), np.float32)
    half[:, :, :14] = 1
    found = Detections(found.boxes, found.classes, found.scores, half, found.image_size, found.categories)
    drawn = draw_detections(grey(700, 800), found)
    assert (drawn[300, 320:480] == GREY).all()
    assert (drawn[300, 120:280] != GREY).any(axis=-1).all()


@pytest.mark.parametrize("paste", ["centred", "expanded", "stretched"])
def test_masks_are_painted_by_the_rule_of_the_detections(paste):
    found = detections([[100.4, 100.7, 500.3, 640.9]], (700, 800))
    middle = np.zeros((1, 28, 28), np.float32)
    middle[:, 7:21, 7:21] = 1
    found = replace(found, mask_probs=middle, paste=paste)
    drawn = draw_detections(grey(700, 800), found)
    # Away from the frame and its label.
    assert np.array_equal((drawn != GREY).any(axis=-1)[150:450, 150:600], found.masks()[0, 150:450, 150:600])


def test_without_masks_the_inside_of_a_box_stays():
    drawn = draw_detections(grey(700, 800), detections([[200, 300, 500, 700]], (700, 800), masks=False))
    assert (drawn[250:450, 350:650] == GREY).all()
    assert is_colour(drawn[200, 300:700], 0).all()


def test_nothing_is_drawn_below_the_threshold():
    found = detections([[20, 30, 500, 600]], (700, 800), scores=[0.4])
    assert (draw_detections(grey(700, 800), found) == GREY).all()
    assert (draw_detections(grey(700, 800), found, score_threshold=0.4) != GREY).any()


@pytest.mark.parametrize(("size", "factor"), [((160, 106), 4), ((1, 1), 640), ((1, 300), 3), ((640, 20), 1), ((900, 1200), 1)])
def test_small_pictures_are_enlarged_by_a_whole_factor(size, factor):
    boxes = [[0, 0, *size]]
    for drawn in (
        draw_detections(grey(*size), detections(boxes, size)),
        draw_detections(grey(*size), detections([], size)),
        draw_ground_truth(grey(*size), [{"bbox": [0, 0, *size[::-1]], "category_id": 1}], {1: "cat"}),
    ):
        assert drawn.shape == (size[0] * factor, size[1] * factor, 3)
        assert drawn.dtype == np.uint8


@pytest.mark.parametrize("box", [[0, 0, 30, 40], [0, 760, 30, 800], [690, 0, 700, 9], [690, 795, 700, 800], [0, 0, 700, 800]])
@pytest.mark.parametrize("name", ["cat", "a name that is much longer than the picture is wide, " * 4, "ž漢"])
def test_labels_are_inside_the_picture(box, name, monkeypatch):
    places = []
    original = visualize._free_place

    def spy(*arguments):
        placed = original(*arguments)
        places.append(placed)
        return placed

    monkeypatch.setattr(visualize, "_free_place", spy)
    draw_detections(grey(700, 800), detections([box], (700, 800), name=name))
    (_, (y1, x1, y2, x2)) = places[0]
    assert 0 <= y1 < y2 <= 700
    assert 0 <= x1 < x2 <= 800


def test_labels_never_cover_each_other(monkeypatch):
    places = []
    original = visualize._free_place

    def spy(*arguments):
        placed = original(*arguments)
        places.append(placed)
        return placed

    monkeypatch.setattr(visualize, "_free_place", spy)
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (60, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 200, (60, 2))], axis=1)
    draw_detections(grey(700, 800), detections(boxes, (700, 800)))
    shown = [place for placed in places if placed for place in placed[1:]]
    assert places[0] is not None
    assert len(shown) > 15
    for number, (y1, x1, y2, x2) in enumerate(shown):
        for top, left, bottom, right in shown[:number]:
            assert y2 <= top or bottom <= y1 or x2 <= left or right <= x1


def test_lines_and_letters_grow_with_the_picture():
    def thickness(size):
        box = [size // 4, size // 4, size // 2, size // 2]
        drawn = draw_detections(grey(size, size), detections([box], (size, size), masks=False))
        return is_colour(drawn[3 * size // 8, : size // 3], 0).sum()

    assert thickness(1000) == 2
    assert thickness(4000) == 8
    assert visualize._font(80).size > visualize._font(12).size


def test_near_objects_have_different_colours():
    colours = np.array([instance_colour(number) for number in range(40)], int)
    for distance in (1, 2, 3, 4):
        assert np.abs(colours[distance:] - colours[:-distance]).sum(axis=1).min() > 60


@pytest.mark.parametrize("kind", ["polygon", "uncompressed", "compressed"])
@pytest.mark.parametrize("factor", [1, 10])
def test_ground_truth_polygons_and_run_lengths(kind, factor, monkeypatch):
    monkeypatch.setattr(visualize, "SMALLEST_DRAWING", 800)
    height, width = 700 // factor, 800 // factor
    y1, x1, y2, x2 = (side // factor for side in (200, 300, 500, 700))
    # Column by column: x1 empty columns and y1 pixels, then the object and the gap to its next column.
    runs = [x1 * height + y1, *([y2 - y1, height - y2 + y1] * (x2 - x1 - 1)), y2 - y1]
    uncompressed = {"size": [height, width], "counts": [*runs, height * width - sum(runs)]}
    segmentation = {
        "polygon": [[x1, y1, x2, y1, x2, y2, x1, y2]],
        "uncompressed": uncompressed,
        "compressed": coco_mask.frPyObjects(uncompressed, height, width),
    }[kind]
    record = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": 8, "segmentation": segmentation, "iscrowd": 0}
    drawn = draw_ground_truth(grey(height, width), [record], {8: "cat"})
    # Small pictures are drawn ten times as large, so the pixels are the same.
    assert drawn.shape == (700, 800, 3)
    assert (drawn[210:490, 310:690] != GREY).any(axis=-1).all()
    assert (drawn[515:] == GREY).all()
    assert (drawn[210:490, 715:] == GREY).all()


def test_detections_of_another_picture_are_refused():
    with pytest.raises(ValueError, match=r"\(700, 800, 3\).*\(800, 700, 3\)"):
        draw_detections(grey(800, 700), detections([], (700, 800)))


def test_many_whole_image_objects_do_not_pile_up():
    size, count = (1500, 2000), 20
    found = detections([[0, 0, *size]] * count, size)
    tracemalloc.start()
    draw_detections(grey(*size), found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The drawing and its copies are 3 bytes a pixel each; the masks together would be 20.
    assert peak < 18 * size[0] * size[1]
