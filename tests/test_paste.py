"""Pasting is what the original systems do, and run lengths are those of the whole mask."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_tf.paste import encode_masks, encode_region, paste_masks, paste_region

SIZES = [(1, 1), (1, 40), (40, 1), (37, 53), (64, 48)]
RULES = ["centred", "expanded", "stretched"]
PARITY = Path(__file__).parent / "parity"


def sampled_mask(mask, box, image_size):
    """Independent reference: grid_sample at every pixel centre of the image, cell by cell, zeros outside."""
    cells, cell = len(mask), (box[2:] - box[:2]) / len(mask)
    image = np.zeros(image_size)
    for y, x in np.ndindex(*image_size):
        v, u = (y + 0.5 - box[0]) / cell[0] - 0.5, (x + 0.5 - box[1]) / cell[1] - 0.5
        for i in (int(np.floor(v)), int(np.floor(v)) + 1):
            for j in (int(np.floor(u)), int(np.floor(u)) + 1):
                if 0 <= i < cells and 0 <= j < cells:
                    image[y, x] += (1 - abs(v - i)) * (1 - abs(u - j)) * mask[i, j]
    return image


def resized_mask(mask, height, width):
    """Independent reference: bilinear with half-pixel centres, indices kept inside the mask, one cell of zeros around it."""
    padded = np.pad(mask.astype(np.float64), 1)
    result = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        v = np.clip((y + 0.5) * len(mask) / height + 0.5, 0, len(padded) - 1)
        u = np.clip((x + 0.5) * len(mask) / width + 0.5, 0, len(padded) - 1)
        i, j = min(int(v), len(padded) - 2), min(int(u), len(padded) - 2)
        rows = (1 - (v - i)) * padded[i] + (v - i) * padded[i + 1]
        result[y, x] = (1 - (u - j)) * rows[j] + (u - j) * rows[j + 1]
    return result


def laid_in(image_size, y0, x0, region):
    """The part of a region that lies in the image, on zeros."""
    image = np.zeros(image_size)
    for (y, x), value in np.ndenumerate(region):
        if 0 <= y0 + y < image_size[0] and 0 <= x0 + x < image_size[1]:
            image[y0 + y, x0 + x] = value
    return image


def expanded_mask(mask, box, image_size):
    """torchvision's way in words: a border of one cell, corners cut to whole pixels towards zero, the last pixel inside."""
    half, centre = (box[2:] - box[:2]) / 2 * 30 / 28, (box[2:] + box[:2]) / 2
    first, last = np.trunc(centre - half).astype(int), np.trunc(centre + half).astype(int)
    size = np.maximum(last - first + 1, 1)
    # A border of one cell is `resized_mask` of the bordered mask, whose own zeros around come to nothing.
    return laid_in(image_size, *first, resized_mask(np.pad(mask, 1), *size))


def stretched_mask(mask, box, image_size):
    """matterport's way in words: resized to the box of whole pixels, with zeros around the mask (scikit-image's "constant")."""
    y1, x1, y2, x2 = (round(float(side)) for side in box)
    return laid_in(image_size, y1, x1, resized_mask(mask, y2 - y1, x2 - x1))


def random_boxes(rng, count, image_size):
    """Boxes within, across and outside the image, with whole and with broken coordinates."""
    corners = np.sort(rng.uniform(-0.5, 1.5, (count, 2, 2)), axis=1) * np.array(image_size)
    boxes = corners.reshape(count, 4)
    boxes[::3] = np.round(boxes[::3])
    boxes[::5] = [0, 0, *image_size]
    return boxes.astype(np.float32)


@pytest.mark.parametrize("image_size", SIZES)
def test_equals_sampling_at_pixel_centres(image_size):
    rng = np.random.default_rng(0)
    for box in random_boxes(rng, 6, image_size):
        if (box[2:] <= box[:2]).any():
            continue
        mask = rng.uniform(0, 1, (28, 28)).astype(np.float32)
        expected = sampled_mask(mask, box.astype(float), image_size)
        pasted = paste_masks(mask[None], box[None], image_size)[0]
        clear = np.abs(expected - 0.5) > 1e-4
        assert np.array_equal(pasted[clear], (expected >= 0.5)[clear])


@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize(("rule", "reference"), [("expanded", expanded_mask), ("stretched", stretched_mask)])
def test_other_rules_equal_resizing_to_whole_pixels(rule, reference, image_size):
    rng = np.random.default_rng(4)
    for box in random_boxes(rng, 6, image_size):
        if (box[2:] <= box[:2]).any():
            continue
        mask = rng.uniform(0, 1, (28, 28)).astype(np.float32)
        expected = reference(mask, box.astype(float), image_size)
        pasted = paste_masks(mask[None], box[None], image_size, rule=rule)[0]
        clear = np.abs(expected - 0.5) > 1e-4
        assert np.array_equal(pasted[clear], (expected >= 0.5)[clear])


@pytest.mark.parametrize(("rule", "is_set"), [("centred", True), ("expanded", False), ("stretched", True)])
def test_a_pixel_at_the_threshold(rule, is_set):
    half = np.full((1, 28, 28), 0.5, np.float32)
    assert paste_masks(half, np.float32([[0, 0, 28, 28]]), (28, 28), rule=rule)[0, 14, 14] == is_set


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("detectron2_R_50_FPN", "centred"),
        ("detectron2_R_101_FPN", "centred"),
        ("detectron2_X_101_FPN", "centred"),
        ("torchvision_v1", "expanded"),
        ("torchvision_v1_resized", "expanded"),
        ("torchvision_v2", "expanded"),
    ],
)
def test_masks_of_the_original_systems(name, rule):
    fixture = np.load(PARITY / f"{name}.npz")
    shape = tuple(fixture["masks_shape"])
    expected = np.unpackbits(fixture["masks_bits"], count=np.prod(shape)).reshape(shape).astype(bool)
    boxes = fixture["boxes"][:, [1, 0, 3, 2]]
    pasted = paste_masks(fixture["det_mask_probs"], boxes, shape[1:], rule=rule)
    assert expected.any(axis=(1, 2)).sum() >= 85
    assert np.count_nonzero(pasted != expected) <= 1e-5 * np.count_nonzero(expected)


def test_a_full_mask_covers_the_pixels_whose_centres_are_in_the_box():
    full = np.ones((28, 28), np.float32)
    y0, x0, region = paste_region(full, np.array([2.6, 3.4, 7.4, 9.6], np.float32), (20, 20))
    assert (y0, x0, region.shape) == (3, 3, (4, 7))
    assert region.all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("box", [[5, 5, 5, 9], [5, 5, 9, 5], [9, 9, 5, 5], [-9, -9, -2, -2], [30, 2, 40, 9]])
def test_a_box_without_a_pixel_gives_an_empty_mask(box, rule):
    full, boxes = np.ones((1, 28, 28), np.float32), np.array([box], np.float32)
    assert not paste_masks(full, boxes, (20, 20), rule=rule).any()
    y0, x0, region = paste_region(full[0], boxes[0], (20, 20), rule=rule)
    empty = coco_mask.encode(np.zeros((20, 20), np.uint8, order="F"))["counts"].decode()
    assert encode_region(y0, x0, region, (20, 20))["counts"] == empty
    assert encode_masks(full, boxes, (20, 20), rule=rule)[0]["counts"] == empty


@pytest.mark.parametrize(("rule", "pixels"), [("centred", 0), ("expanded", 9), ("stretched", 0)])
def test_a_box_between_pixel_centres(rule, pixels):
    """torchvision gives it a row of pixels all the same: columns 1 to 9, the expanded box being 1.75 to 9.25."""
    full, box = np.ones((1, 28, 28), np.float32), np.float32([[5.6, 2, 5.9, 9]])
    assert paste_masks(full, box, (20, 20), rule=rule).sum() == pixels


@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_run_lengths_are_those_of_the_whole_mask(rule, image_size):
    rng = np.random.default_rng(1)
    boxes = random_boxes(rng, 20, image_size)
    # The noisy ones have many runs; the full ones run on from column to column.
    probabilities = rng.uniform(0.2, 1, (20, 28, 28)).astype(np.float32)
    probabilities[::2] = 1
    rles = encode_masks(probabilities, boxes, image_size, rule=rule)
    masks = paste_masks(probabilities, boxes, image_size, rule=rule)
    for mask, rle, probability, box in zip(masks, rles, probabilities, boxes, strict=True):
        whole = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle == {"size": list(image_size), "counts": whole["counts"].decode()}
        y0, x0, region = paste_region(probability, box, image_size, rule=rule)
        assert encode_region(y0, x0, region, image_size) == rle


def test_a_passage_between_two_pixel_centres_sets_nothing():
    """A hump that rises and falls within one pixel, in a mask with more cells than its box has pixels."""
    mask, box = np.zeros((1, 28, 28), np.float32), np.float32([[0, 0, 7, 7]])
    mask[0, 16] = 1
    assert not paste_masks(mask, box, (7, 7)).any()
    assert coco_mask.area(encode_masks(mask, box, (7, 7))[0]) == 0
    mask[0, 17] = 1
    assert paste_masks(mask, box, (7, 7))[0].sum(axis=1).tolist() == [0, 0, 0, 0, 7, 0, 0]
    assert coco_mask.area(encode_masks(mask, box, (7, 7))[0]) == 7


def test_what_is_no_number_reaches_nothing():
    mask, box = np.ones((1, 28, 28), np.float32), np.float32([[0, 0, 28, 28]])
    mask[0, 10:12] = np.nan
    pasted = paste_masks(mask, box, (30, 30))
    assert pasted.sum() == 26 * 28
    assert coco_mask.area(encode_masks(mask, box, (30, 30))[0]) == 26 * 28


@pytest.mark.parametrize("threshold", [0, -1, float("nan")])
def test_a_threshold_that_the_surroundings_reach_is_refused(threshold):
    full, box = np.ones((1, 28, 28), np.float32), np.float32([[1, 1, 5, 5]])
    with pytest.raises(ValueError, match="threshold must be above 0"):
        encode_masks(full, box, (9, 9), threshold)
    with pytest.raises(ValueError, match="threshold must be above 0"):
        paste_masks(full, box, (9, 9), threshold)
    with pytest.raises(ValueError, match="threshold must be above 0"):
        paste_region(full[0], box[0], (9, 9), threshold)


def test_a_region_beyond_the_image_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        encode_region(8, 0, np.ones((4, 4), bool), (10, 10))


@pytest.mark.parametrize("rule", RULES)
def test_no_objects(rule):
    none = np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), (7, 9)
    assert paste_masks(*none, rule=rule).shape == (0, 7, 9)
    assert encode_masks(*none, rule=rule) == []


@pytest.mark.parametrize("box", [[10, 20, 122, 160], [3.5, 7.25, 150.75, 190.5]])
def test_pasting_what_was_cropped_gives_it_back(box):
    y, x = np.mgrid[:160, :200] + 0.5
    centre, radii = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), ((box[2] - box[0]) / 2, (box[3] - box[1]) / 2)
    ellipse = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1
    # Coverage of each of the 28 x 28 cells, by 8 x 8 samples.
    samples = (np.arange(28 * 8) + 0.5) / (28 * 8) * 2 - 1
    crop = (samples[:, None] ** 2 + samples**2 <= 1).reshape(28, 8, 28, 8).mean(axis=(1, 3))
    pasted = paste_masks(crop[None].astype(np.float32), np.array([box], np.float32), (160, 200))[0]
    assert (pasted & ellipse).sum() / (pasted | ellipse).sum() > 0.97


@pytest.mark.parametrize("rule", RULES)
def test_run_lengths_of_many_large_objects_hold_no_whole_mask(rule):
    size, count = (3000, 4000), 5
    tracemalloc.start()
    encode_masks(np.ones((count, 28, 28), np.float32), np.tile(np.float32([0, 0, *size]), (count, 1)), size, rule=rule)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size[0] * size[1]
