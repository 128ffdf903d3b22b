"""What is printed and written about a data set, and the exit status."""

import base64
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mrcnn_tf import cli
from mrcnn_tf.check import NUM_PICTURES, summary_lines, write_check
from mrcnn_tf.data.check import DataCheck, Fault, check_data

SQUARE = [2, 2, 12, 2, 12, 12, 2, 12]


def data_set(folder, changes=(), num_images=3):
    """Black pictures with one square each; the i-th annotation gets the i-th changes."""
    (folder / "images").mkdir()
    images, annotations = [], []
    for number in range(num_images):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 20, "width": 30})
        record = {"id": number, "image_id": number, "category_id": 1, "bbox": [2, 2, 10, 10], "segmentation": [SQUARE]}
        annotations.append(record | dict(changes[number] if number < len(changes) else {}))
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "<b>cat</b>"}]}
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return folder / "images", path


def call(images, annotations, *more):
    arguments = ["check-data", "--images", images, "--annotations", annotations, *more]
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def page_pictures(page):
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [np.array(Image.open(io.BytesIO(base64.b64decode(picture)))) for picture in found]


def test_sound_data_is_exit_status_0(tmp_path):
    result = call(*data_set(tmp_path), "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "3 images; 3 objects (3 small, 0 medium, 0 large), 0 of them crowd regions" in result.output
    page = (tmp_path / "out" / "index.html").read_text()
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    assert "Errors" not in page
    assert not page_pictures(page)


def test_warnings_alone_are_exit_status_0(tmp_path):
    result = call(*data_set(tmp_path, [{"bbox": [2, 2, 18, 10]}]))
    assert result.exit_code == 0, result.output
    assert "warning: box and mask: annotation 0 of 0.png: " in result.output
    assert "warnings: 1 (1 box and mask)" in result.output


def test_errors_are_listed_first_and_exit_status_1(tmp_path):
    changes = [{"bbox": [2, 2, 18, 10]}, {"category_id": 4}, {"bbox": [90, 2, 10, 10]}]
    result = call(*data_set(tmp_path, changes), "--output", tmp_path / "out")
    assert result.exit_code == 1
    marks = re.findall(r"^(error|warning): (.*?): ", result.output, re.MULTILINE)
    assert marks == [("error", "unknown category"), ("error", "box outside"), ("warning", "box and mask")]
    written = json.loads((tmp_path / "out" / "faults.json").read_text())
    assert [fault["kind"] for fault in written["errors"]] == ["unknown category", "box outside"]
    assert written["errors"][1]["record"] == "annotation 2"
    assert written["errors"][1]["file_name"] == "2.png"
    assert [fault["record"] for fault in written["warnings"]] == ["annotation 0"]
    assert (written["num_images"], written["num_objects"], written["empty_images"]) == (3, 1, ["1.png", "2.png"])
    assert len(page_pictures((tmp_path / "out" / "index.html").read_text())) == 3


def test_truncated_json_names_the_place(tmp_path):
    images, path = data_set(tmp_path)
    path.write_text(path.read_text()[:100])
    result = call(images, path, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "line 1 column" in result.output
    assert (tmp_path / "out" / "index.html").is_file()


def test_a_missing_folder_is_one_message(tmp_path):
    result = call(tmp_path / "none", tmp_path / "none.json")
    assert result.exit_code == 1
    assert "no such folder of images" in result.output
    assert "Traceback" not in result.output


def test_a_mask_and_a_box_are_drawn(tmp_path):
    images, path = data_set(tmp_path, [{"bbox": [2, 2, 18, 10]}], num_images=1)
    write_check(check_data(images, path), images, tmp_path, title="data")
    (picture,) = page_pictures((tmp_path / "index.html").read_text())
    scale = picture.shape[0] / 20
    assert picture.shape[1] == 30 * scale
    inside, outside = (picture[int(7.5 * scale), int(x * scale)].astype(int) for x in (7.5, 16))
    assert inside.max() > 60
    assert outside.max() < 30
    edge = picture[int(7.5 * scale), int(19 * scale) : int(21 * scale)]
    assert edge.max() > 100


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [-50, 5, 10, 10]},
        {"bbox": [12, 12, -10, -10]},
        {"bbox": [2, 2, 0, 0]},
        {"bbox": [1e300, 2, 1e300, 10]},
        {"bbox": "box"},
        {"bbox": [1, 2, 3]},
        {"bbox": None, "segmentation": "mask"},
        {"category_id": 7, "segmentation": [[1, 2, 3]]},
        {"category_id": 7, "segmentation": {"size": [20, 30], "counts": [600]}},
        {"segmentation": [[1e12, 1e12, 2e12, 1e12, 2e12, 2e12]]},
        {"segmentation": {"size": [2, 2], "counts": "x"}},
    ],
)
def test_a_record_with_any_fault_has_a_picture(tmp_path, change):
    images, path = data_set(tmp_path, [change])
    found = check_data(images, path)
    assert found.errors
    write_check(found, images, tmp_path, title="data")
    assert len(page_pictures((tmp_path / "index.html").read_text())) == 1


def test_pictures_are_few_and_of_every_kind(tmp_path):
    num_images = NUM_PICTURES + 4
    changes = [{"category_id": 4}] * (num_images - 1) + [{"bbox": [90, 2, 10, 10]}]
    images, path = data_set(tmp_path, changes, num_images)
    (images / "0.png").unlink()
    write_check(check_data(images, path), images, tmp_path, title="data")
    page = (tmp_path / "index.html").read_text()
    assert len(page_pictures(page)) == NUM_PICTURES
    assert "<figcaption>box outside: " in page


def test_many_faults_are_printed_in_part_and_counted():
    faults = tuple(Fault("box outside", f"annotation {number}", "far out") for number in range(7))
    lines = summary_lines(DataCheck(faults, faults[:2], {}, 1, 0, 0, ()), num_lines=5)
    assert lines[:5] == [f"error: box outside: annotation {number}: far out" for number in range(5)]
    assert lines[5:8] == ["... and 4 more", "errors: 7 (7 box outside)", "warnings: 2 (2 box outside)"]


def test_checking_loads_no_tensorflow():
    code = "import sys, mrcnn_tf.check; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
