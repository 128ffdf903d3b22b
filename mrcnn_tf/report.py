"""One HTML page about a run: what was trained on what, how the losses fell, what was measured, and pictures.

The page is a single file without references to others or to the network: it can be mailed, archived and opened anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrcnn_tf.pages import data_url, write_page
from mrcnn_tf.plots import plot_lines

_STEP_COLUMNS = ("step", "steps", "epoch", "epochs")
_NAMES = {"bbox": "Boxes", "segm": "Masks"}


def write_report(
    path: str | Path,
    *,
    title: str,
    history: Sequence[Mapping[str, Any]] = (),
    metrics: Mapping[str, Any] | None = None,
    pictures: Sequence[tuple[str, str | Path]] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        title: the headline.
        history: rows of `metrics.csv`, oldest first; numbers may be text. Columns with "loss" in their name, and columns whose
            last word is an AP or AR (`val_segm_AP`), become plots over the column `step` or `epoch`.
        metrics: `{"bbox": {...}, "segm": {...}}` as in docs/contracts.md; other keys are left out.
        pictures: (caption, PNG or JPEG file).
        facts: name and value of whatever else the reader should know, in this order.

    Raises:
        OSError: a picture cannot be read.
    """
    sections = {name: metrics[name] for name in _NAMES if metrics and metrics.get(name)}
    write_page(
        path,
        "report.html.j2",
        title=title,
        facts=facts or {},
        headline=[
            (f"{_NAMES[name]} {figure}", _figure(section.get(figure)))
            for name, section in sections.items()
            for figure in ("AP", "AP50")
        ],
        plots=_plots(history),
        table=_table(sections, per_class=False),
        classes=_table(sections, per_class=True),
        columns=[_NAMES[name] for name in sections],
        pictures=[(caption, data_url(Path(picture).read_bytes(), Path(picture).suffix)) for caption, picture in pictures],
    )


def _plots(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(heading, image) of each plot for which there is a number to show."""
    xlabel = next((name for name in _STEP_COLUMNS if history and name in history[0]), None)
    numbers = range(1, len(history) + 1)
    x = [_number(row[xlabel]) for row in history] if xlabel else [float(number) for number in numbers]
    names = list(dict.fromkeys(name for row in history for name in row))
    plots = []
    for heading, ylabel, wanted in (
        ("Losses", "loss", [name for name in names if "loss" in name]),
        ("Average precision", "AP", [name for name in names if _is_precision(name)]),
    ):
        lines = {name: [_number(row.get(name)) for row in history] for name in wanted}
        lines = {name: line for name, line in lines.items() if any(value == value for value in line)}
        if lines:
            png = plot_lines(x, lines, xlabel=xlabel or "row", ylabel=ylabel)
            plots.append((heading, data_url(png, ".png")))
    return plots


def _is_precision(column: str) -> bool:
    last = column.replace("/", "_").split("_")[-1]
    return last[:2] in ("AP", "AR") and last[2:] in ("", "50", "75", "s", "m", "l", "1", "10", "100")


def _table(sections: Mapping[str, Mapping[str, Any]], *, per_class: bool) -> list[tuple[str, list[str]]]:
    """(name, one figure for each section) of every row."""
    rows = {
        name: section["per_class"] if per_class else section
        for name, section in sections.items()
        if not per_class or "per_class" in section
    }
    names = dict.fromkeys(name for row in rows.values() for name in row if name != "per_class")
    return [(name, [_figure(rows.get(section, {}).get(name)) for section in sections]) for name in names]


def _figure(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}"  # noqa: RUF001


def _number(value: Any) -> float:
    """NaN for an empty field of a CSV."""
    return float("nan") if value in (None, "") else float(value)
