"""What two runs must have in common to be the same."""

import json
import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_tf.export import compare_predictions
from mrcnn_tf.export.compare_predictions import largest_differences


def record(*, name="a.jpg", category=1, box=(1.0, 2.0, 3.0, 4.0), score=0.5, pixels=100):
    mask = np.zeros((20, 20), np.uint8, order="F")
    mask.ravel(order="F")[:pixels] = 1
    rle = coco_mask.encode(mask)
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    return {"file_name": name, "category_id": category, "bbox": list(box), "score": score, "segmentation": segmentation}


def test_the_worst_of_all_pictures():
    expected = [record(), record(name="b.jpg"), record(name="b.jpg", category=2)]
    found = [
        record(name="b.jpg", score=0.501),
        record(box=(1.0, 2.0, 3.25, 4.0)),
        record(name="b.jpg", category=2, pixels=80),
    ]
    assert largest_differences(expected, expected) == {"box": 0, "score": 0, "mask_iou": 1}
    worst = largest_differences(expected, found)
    assert worst == {"box": 0.25, "score": pytest.approx(0.001), "mask_iou": 0.8}


def test_other_objects_are_an_error():
    with pytest.raises(ValueError, match=r"a\.jpg: expected 1 objects of categories \[1\], found 0"):
        largest_differences([record()], [])
    with pytest.raises(ValueError, match=r"found 1 of \[3\]"):
        largest_differences([record()], [record(category=3)])
    with pytest.raises(ValueError, match=r"b\.jpg: expected 0 objects"):
        largest_differences([record()], [record(), record(name="b.jpg")])


def test_masks_that_are_missing_empty_or_of_another_size():
    without = {key: value for key, value in record().items() if key != "segmentation"}
    other_size = {**record(), "segmentation": {"size": [10, 10], "counts": "00"}}
    assert largest_differences([without], [without])["mask_iou"] == 1
    assert largest_differences([record(pixels=0)], [record(pixels=0)])["mask_iou"] == 1
    for found in (without, other_size, record(pixels=0)):
        assert largest_differences([record()], [found])["mask_iou"] == 0
    assert largest_differences([], []) == {"box": 0, "score": 0, "mask_iou": 1}


@pytest.mark.parametrize(("score", "code"), [(0.5, None), (0.6, "error: that is more than the tolerance")])
def test_command(score, code, tmp_path, monkeypatch, capsys):
    for name, value in (("expected", 0.5), ("found", score)):
        (tmp_path / name).write_text(json.dumps([record(score=value)]))
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "expected"), str(tmp_path / "found")])
    if code is None:
        compare_predictions.main()
    else:
        with pytest.raises(SystemExit) as ended:
            compare_predictions.main()
        assert ended.value.code == code
    assert capsys.readouterr().out.startswith("1 objects: boxes 0 px")


def test_command_with_a_file_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "none"), str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="error: "):
        compare_predictions.main()
