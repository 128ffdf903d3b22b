"""Tables of classes: the CSV, the page, the terminal; one class, no class, and as many as LVIS has."""

import csv
import re

import pytest
from rich.console import Console

from mrcnn_tf.class_tables import class_table, write_class_page, write_class_rows


def row(name, ap, number=1):
    figures = dict.fromkeys(("AP50", "AP75", "APs", "APm", "APl", "AR"), ap)
    return {"name": name, "id": number, "objects": 3, "detections": 5, "AP": ap, **figures}


ROWS = [row("cat", 0.25), row("<dog>", None, 2), row("owl", 0.75, 3), row("eel", 0.0, 4)]


def test_csv(tmp_path):
    write_class_rows({"bbox": ROWS, "segm": ROWS[:1]}, tmp_path / "classes.csv")
    rows = list(csv.DictReader((tmp_path / "classes.csv").open(newline="")))
    assert [(entry["compared"], entry["name"], entry["AP"]) for entry in rows] == [
        ("bbox", "cat", "0.25"), ("bbox", "<dog>", ""), ("bbox", "owl", "0.75"), ("bbox", "eel", "0.0"), ("segm", "cat", "0.25"),
    ]  # fmt: skip
    assert list(rows[0]) == ["compared", *ROWS[0]]


def test_the_page_has_the_best_class_first_and_those_without_objects_last(tmp_path):
    voc = {"bbox": {"AP50": 0.5, "per_class": {"cat": {"objects": 3, "AP50": 0.5, "AP50_2007": None}}}}
    write_class_page({"classes": {"bbox": ROWS}, "voc": voc}, tmp_path / "classes.html", title="run & co")
    page = (tmp_path / "classes.html").read_text()
    assert re.findall(r"<tr><td>(.*?)</td>", page) == ["owl", "cat", "eel", "&lt;dog&gt;", "cat"]
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Boxes: 4 classes", "Boxes, PASCAL VOC: 1 class"]
    assert "run &amp; co" in page
    assert "http" not in page
    assert 'data-order="-1.0"' in page
    assert "--part:75%" in page


@pytest.mark.parametrize("count", [0, 1, 1203])
def test_any_number_of_classes(tmp_path, count):
    rows = [row(f"class {number}", number / 2000, number) for number in range(count)]
    write_class_rows({"bbox": rows}, tmp_path / "classes.csv")
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 1 + count
    write_class_page({"classes": {"bbox": rows}}, tmp_path / "classes.html", title="many")
    page = (tmp_path / "classes.html").read_text()
    assert page.count("<tr><td>") == count
    assert ("There are no classes" in page) == (count == 0)
    console = Console(width=140, record=True, file=(tmp_path / "out").open("w"))
    console.print(class_table("bbox", rows))
    assert console.export_text().count("class ") == count


def test_the_terminal(tmp_path):
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(class_table("segm", [*ROWS, row("a very long name of a class", 0.1, 1203)]))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[:2] == [["Masks"], [*ROWS[0]]]
    assert [line[0] for line in lines[2:6]] == ["owl", "cat", "a", "name"]
    assert lines[2] == ["owl", "3", "3", "5", *["0.750"] * 7]
    assert lines[4] == ["a", "very", "long", "1203", "3", "5", *["0.100"] * 7]
    assert [line[0] for line in lines if line][-2:] == ["eel", "<dog>"]
