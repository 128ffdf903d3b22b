"""The figures of each class for people: a CSV, a page whose tables can be sorted and searched, and a table for the terminal.

Made for thousands of classes as for one.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mrcnn_tf.files import replacing
from mrcnn_tf.pages import write_page

NAMES = {"bbox": "Boxes", "segm": "Masks", "boundary": "Boundaries"}

Rows = Sequence[Mapping[str, Any]]


def write_class_rows(classes: Mapping[str, Rows], path: str | Path) -> None:
    """Write the rows of all that was compared as CSV; an empty field is where nothing was there to measure.

    Args:
        classes: `classes` of `metrics.json` (see docs/contracts.md).
        path: the file.
    """
    rows = [{"compared": kind, **row} for kind, of_kind in classes.items() for row in of_kind]
    columns = list(rows[0]) if rows else ["compared", "name", "id"]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_class_page(metrics: Mapping[str, Any], path: str | Path, *, title: str) -> None:
    """Write one self-contained page with a table for each thing that was compared, the best class first.

    Args:
        metrics: as of `metrics.json` (see docs/contracts.md).
        path: the HTML file.
        title: the headline.
    """
    tables = [(NAMES[kind], rows) for kind, rows in metrics["classes"].items()]
    for kind, section in metrics.get("voc", {}).items():
        tables.append((f"{NAMES[kind]}, PASCAL VOC", [{"name": name, **row} for name, row in section["per_class"].items()]))
    write_page(
        path,
        "classes.html.j2",
        title=title,
        tables=[(heading, list(rows[0]), [_cells(row) for row in _best_first(rows)]) for heading, rows in tables if rows],
    )


def class_table(kind: str, rows: Rows) -> Table:
    """The rows of one thing that was compared, for the terminal, the best class first."""
    columns = list(rows[0]) if rows else ["name"]
    # Narrow enough for 80 columns with names as COCO has them; longer ones go on in the next line.
    table = Table(title=NAMES[kind], title_justify="left", box=None, collapse_padding=True, pad_edge=False)
    table.add_column("name", overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in _best_first(rows):
        table.add_row(*(_text(value) for value in row.values()))
    return table


def _best_first(rows: Rows) -> Rows:
    """By the first figure; those without last."""

    def key(row: Mapping[str, Any]) -> float:
        figure = next(value for name, value in row.items() if name.startswith("AP"))
        return 1.0 if figure is None else -figure

    return sorted(rows, key=key)


def _cells(row: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(text, what it is sorted by, part of the cell that is filled) of each field but the name, and before them the name."""
    return [(str(row["name"]), 0.0, 0.0), *(_cell(name, value) for name, value in row.items() if name != "name")]


def _cell(name: str, value: float | None) -> tuple[str, float, float]:
    is_figure = name.startswith("A")
    return _text(value), -1.0 if value is None else float(value), float(value or 0.0) if is_figure else 0.0


def _text(value: str | float | None) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value:.3f}" if isinstance(value, float) else str(value)
