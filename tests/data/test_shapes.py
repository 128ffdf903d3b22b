import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mrcnn_tf.data.coco import read_annotations
from mrcnn_tf.data.masks import decode_rle, polygon_coverage
from mrcnn_tf.data.shapes import CATEGORIES, draw_shapes, write_shapes

SIZE = (128, 160)


@pytest.fixture(scope="module")
def pictures():
    return [draw_shapes(5, index, image_size=SIZE) for index in range(40)]


def _bitmap(item):
    if isinstance(item.segmentation, dict):
        return decode_rle(item.segmentation, SIZE) > 0
    return polygon_coverage(item.segmentation, (0, 0, *SIZE), SIZE) >= 0.5


def test_pictures_are_honest(pictures):
    for image, objects in pictures:
        assert image.shape == (*SIZE, 3)
        assert image.dtype == np.uint8
        assert 3 <= len(objects) <= 8
        for item in objects:
            top, left, bottom, right = item.box
            assert 0 <= top < bottom <= SIZE[0]
            assert 0 <= left < right <= SIZE[1]
            assert min(bottom - top, right - left) >= 12 - 1e-9
            assert max(bottom - top, right - left) <= 64 + 1e-9
    assert {item.class_id for _, objects in pictures for item in objects} == {1, 2, 3, 4}


def test_at_least_a_quarter_of_the_objects_are_overlapped(pictures):
    hidden = [isinstance(item.segmentation, dict) for _, objects in pictures for item in objects]
    assert np.mean(hidden) >= 0.25


def test_masks_are_disjoint_and_boxes_enclose_them(pictures):
    for _, objects in pictures:
        bitmaps = [_bitmap(item) for item in objects]
        assert np.sum(bitmaps, axis=0).max() == 1
        for item, bitmap in zip(objects, bitmaps, strict=True):
            rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
            tight = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
            assert np.abs(tight - item.box).max() <= (0 if isinstance(item.segmentation, dict) else 3)
            assert item.area == pytest.approx(bitmap.sum(), rel=0.05)


def test_masks_lie_where_the_object_is_painted(pictures):
    """Inside a mask the picture is of one colour; around it another one begins."""
    inner, outer = [], []
    for image, objects in pictures:
        smooth = image.astype(float)
        for item in objects:
            bitmap = _bitmap(item)
            centre = smooth[bitmap].mean(axis=0)
            shifted = [np.roll(bitmap, (down, right), (0, 1)) for down in (-2, 0, 2) for right in (-2, 0, 2)]
            ring = np.zeros_like(bitmap)
            ring[2:-2, 2:-2] = np.any(shifted, axis=0)[2:-2, 2:-2]
            ring &= ~bitmap
            inner.append(np.abs(smooth[bitmap] - centre).mean())
            outer.append(np.abs(smooth[ring] - centre).mean())
    assert np.mean(outer) > 4 * np.mean(inner)


def test_colours_do_not_tell_the_class(pictures):
    means = {class_id: [] for class_id in range(1, 5)}
    for image, objects in pictures:
        for item in objects:
            means[item.class_id].append(image[_bitmap(item)].mean(axis=0))
    spread = np.std([colour for colours in means.values() for colour in colours], axis=0)
    centres = np.array([np.mean(colours, axis=0) for colours in means.values()])
    assert (np.abs(centres - centres.mean(axis=0)) < 0.6 * spread).all()


def test_a_picture_is_given_by_seed_and_index():
    first, again = draw_shapes(1, 2), draw_shapes(1, 2)
    np.testing.assert_array_equal(first[0], again[0])
    assert [item.box for item in first[1]] == [item.box for item in again[1]]
    for other in (draw_shapes(1, 3), draw_shapes(2, 2)):
        assert (first[0] != other[0]).mean() > 0.5


def test_too_small_pictures_are_refused():
    with pytest.raises(ValueError, match="at least 128"):
        draw_shapes(0, 0, image_size=(127, 200))


def test_the_written_set_is_coco(tmp_path):
    path = write_shapes(tmp_path, num_images=4, seed=0, image_size=SIZE, split="train")
    other = write_shapes(tmp_path, num_images=4, seed=0, image_size=SIZE, split="val")
    assert not list(tmp_path.rglob("*.tmp"))
    annotations = read_annotations(path)
    assert list(annotations.categories) == [dict(category) for category in CATEGORIES]
    pictures = [np.asarray(Image.open(tmp_path / "images" / record.file_name)) for record in annotations.records]
    others = [np.asarray(Image.open(tmp_path / "images" / r.file_name)) for r in read_annotations(other).records]
    assert all(picture.shape == (*SIZE, 3) for picture in pictures)
    assert not any((one == two).all() for one in pictures for two in others)
    ids = [entry["id"] for entry in json.loads(path.read_text())["annotations"]]
    assert len(set(ids)) == len(ids)
    coco = COCO(str(path))
    for record in annotations.records:
        for item in record.objects:
            reference, ours = coco.annToMask(coco.anns[item.annotation_id]) > 0, _bitmap(item)
            assert (reference & ours).sum() / (reference | ours).sum() > 0.85
