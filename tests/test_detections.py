"""Detections of one image and what they turn into."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_tf.detections import Detections
from mrcnn_tf.paste import paste_masks

CATEGORIES = ({"id": 7, "name": "cat"}, {"id": 3, "name": "dog"})


def detections(count=3, *, masks=True):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 20, (count, 2))
    return Detections(
        boxes=np.concatenate([corners, corners + rng.uniform(5, 20, (count, 2))], axis=1).astype(np.float32),
        classes=(np.arange(count) % 2 + 1).astype(np.int32),
        scores=np.linspace(0.9, 0.1, count).astype(np.float32),
        mask_probs=rng.uniform(0.3, 1, (count, 28, 28)).astype(np.float32) if masks else None,
        image_size=(50, 60),
        categories=CATEGORIES,
    )


def test_names_and_ids_are_those_of_the_data_set():
    found = detections(3)
    assert len(found) == 3
    assert found.category_ids == [7, 3, 7]
    assert found.category_names == ["cat", "dog", "cat"]


def test_above_keeps_what_reaches_the_threshold():
    found = detections(3)
    kept = found.above(0.5)
    assert len(kept) == 2
    assert np.array_equal(kept.mask_probs, found.mask_probs[:2])
    assert len(found.above(0.95)) == 0
    assert len(found.above(0.0)) == 3


def test_masks_and_run_lengths_agree():
    found = detections(3)
    masks = found.masks()
    assert masks.shape == (3, 50, 60)
    assert masks.dtype == bool
    assert masks.any(axis=(1, 2)).all()
    for mask, rle in zip(masks, found.rles(), strict=True):
        assert isinstance(rle["counts"], str)
        assert np.array_equal(coco_mask.decode(rle), mask)


def test_masks_are_pasted_as_the_detections_say():
    found = detections(2)
    masks = {}
    for paste in ("centred", "expanded", "stretched"):
        kept = replace(found, paste=paste).above(0.0)
        assert kept.paste == paste
        masks[paste] = kept.masks()
        assert np.array_equal(masks[paste], paste_masks(found.mask_probs, found.boxes, found.image_size, rule=paste))
        assert np.array_equal(np.stack([coco_mask.decode(rle) for rle in kept.rles()]), masks[paste])
    assert np.array_equal(found.masks(), masks["centred"])
    assert (masks["centred"] != masks["expanded"]).any()
    assert (masks["centred"] != masks["stretched"]).any()


def test_supervision_gets_corners_masks_and_names():
    found = detections(3)
    converted = found.to_supervision()
    assert np.allclose(converted.xyxy, found.boxes[:, [1, 0, 3, 2]])
    assert np.array_equal(converted.mask, found.masks())
    assert converted.confidence.tolist() == found.scores.tolist()
    assert converted.class_id.tolist() == [1, 2, 1]
    assert converted.data["class_name"].tolist() == ["cat", "dog", "cat"]


def test_records_follow_the_contract():
    found = detections(2)
    records = found.to_records("a/b.jpg")
    assert set(records[0]) == {"file_name", "category_id", "category_name", "bbox", "score", "segmentation"}
    assert records[1]["file_name"] == "a/b.jpg"
    assert (records[1]["category_id"], records[1]["category_name"]) == (3, "dog")
    y1, x1, y2, x2 = found.boxes[1]
    assert np.allclose(records[1]["bbox"], [x1, y1, x2 - x1, y2 - y1])
    assert records[0]["score"] == 0.9
    assert records[0]["segmentation"] == found.rles()[0]


def test_results_carry_the_image_id():
    results = detections(2).to_results(42)
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert [result["image_id"] for result in results] == [42, 42]


def test_without_masks():
    found = detections(2, masks=False)
    assert found.masks() is None
    assert found.rles() is None
    assert "segmentation" not in found.to_records("x")[0]
    assert found.to_supervision().mask is None
    assert found.above(0.5).mask_probs is None


@pytest.mark.parametrize("masks", [True, False])
def test_nothing_found(masks):
    found = detections(0, masks=masks)
    assert len(found) == 0
    assert found.category_ids == found.category_names == found.to_records("x") == found.to_results(1) == []
    assert len(found.to_supervision()) == 0
    assert len(found.above(0.5)) == 0
    if masks:
        assert found.masks().shape == (0, 50, 60)
        assert found.rles() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": np.zeros((3, 5), np.float32)}, "boxes"),
        ({"scores": np.zeros(2, np.float32)}, "scores"),
        ({"mask_probs": np.zeros((2, 28, 28), np.float32)}, "mask_probs"),
        ({"classes": np.array([0, 1, 2], np.int32)}, r"1\.\.2"),
        ({"classes": np.array([1, 2, 3], np.int32)}, r"1\.\.2"),
        ({"paste": "glued"}, "paste must be one of centred, expanded, stretched, got 'glued'"),
    ],
)
def test_impossible_detections_are_refused(change, message):
    found = detections(3)
    fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        Detections(**{**fields, **change})


def test_detections_do_not_need_tensorflow():
    code = "import sys, mrcnn_tf.detections; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
