"""The report is one page that stands alone."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mrcnn_tf.report import write_report

METRICS = {
    "bbox": {"AP": 0.6123, "AP50": 0.9, "APl": None, "per_class": {"star": 0.7, "circle": None}},
    "segm": {"AP": 0.5, "AP50": 0.8, "APl": None, "per_class": {"star": 0.6, "circle": None}},
    "seconds": 12.5,
}
HISTORY = [
    {"epoch": "1", "step": "50", "loss": "2.5", "mask_loss": "0.7", "learning_rate": "0.01", "segm_AP": ""},
    {"epoch": "2", "step": "100", "loss": "1.5", "mask_loss": "0.5", "learning_rate": "0.01", "segm_AP": "0.25"},
]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data + " "


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.full((8, 12, 3), 77, np.uint8)).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def test_everything_is_on_the_page(tmp_path, picture):
    write_report(
        tmp_path / "report.html",
        title="A run",
        history=HISTORY,
        metrics=METRICS,
        pictures=[("first <picture>", picture)],
        facts={"Steps": 100, "Data": "shapes"},
    )
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not page.open
    for word in ("A run", "Steps", "100", "0.612", "star", "0.700", "first <picture>", "Losses", "Average precision"):
        assert word in page.text
    # Two plots and the picture, all of them in the page.
    images = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in page.images]
    assert len(images) == 3
    assert images[-1].size == (12, 8)
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script", text)
    assert [path.name for path in tmp_path.iterdir() if "report" in path.name] == ["report.html"]


def test_figures_that_were_not_measured_are_dashes(tmp_path):
    write_report(tmp_path / "report.html", title="x", metrics=METRICS)
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", (tmp_path / "report.html").read_text())
    assert ("AP", "0.612", "0.500") in rows
    assert [row[1:] for row in rows if row[0] in ("APl", "circle")] == [("–", "–")] * 2  # noqa: RUF001


def test_boxes_alone(tmp_path):
    write_report(tmp_path / "report.html", title="x", metrics={"bbox": METRICS["bbox"]})
    assert "Masks" not in Page((tmp_path / "report.html").read_text()).text


def test_a_run_without_evaluations_has_no_curve_of_them(tmp_path):
    history = [{**row, "segm_AP": ""} for row in HISTORY]
    write_report(tmp_path / "report.html", title="x", history=history)
    page = Page((tmp_path / "report.html").read_text())
    assert "Losses" in page.text
    assert "Average precision" not in page.text
    assert len(page.images) == 1


def test_nothing_but_a_title(tmp_path):
    write_report(tmp_path / "report.html", title="Ünfug & <b>")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Ünfug & <b>" in page.text
    assert page.images == []


def test_a_missing_picture_leaves_the_old_page(tmp_path):
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(OSError, match="none"):
        write_report(tmp_path / "report.html", title="x", pictures=[("x", tmp_path / "none.png")])
    assert (tmp_path / "report.html").read_text() == "old"
