"""Plots of precision over recall and of training, drawn without a display."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mrcnn_tf.files import replacing

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * number, 2) for number in range(10))
_INK, _SOFT, _GRID = "#1f2933", "#616e7c", "#e4e7eb"
_LINES = ("#0b6e99", "#d9480f", "#2b8a3e", "#862e9c", "#c92a2a", "#5c940d", "#495057", "#e67700")
_COLUMNS = 5


def plot_precision_recall(precision: NDArray[np.float64], path: str | Path, *, title: str) -> None:
    """Precision over recall, one curve per IoU threshold, the mean over the classes that have ground truth.

    Args:
        precision: [10, 101, K] for IoU 0.5..0.95, recall 0..1 and K classes; -1 where there was no ground truth.
        path: the PNG to write.
        title: what was compared, "bbox" or "segm".
    """
    measured = np.ma.masked_less(precision, 0)
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = _recall_axes(figure.add_subplot())
    axes.set_title(f"{title}: precision over recall, mean of the classes", fontsize=11, color=_INK, loc="left")
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(precision)))
    for threshold, curve, colour in zip(IOU_THRESHOLDS, measured.mean(axis=2), colours, strict=True):
        label = f"IoU {threshold:.2f}   AP {_figure(curve)}"
        axes.plot(np.linspace(0, 1, curve.size), curve, color=colour, linewidth=1.6, label=label)
    axes.set(xlabel="recall", ylabel="precision")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), labelcolor=_INK)
    save_figure(figure, path)


def plot_classes(precision: NDArray[np.float64], names: Sequence[str], path: str | Path, *, title: str) -> None:
    """Precision over recall, one small plot per class with IoU 0.5, 0.75 and the mean of 0.5..0.95.

    Args:
        precision: [10, 101, K] for IoU 0.5..0.95, recall 0..1 and K classes; -1 where there was no ground truth.
        names: K names.
        path: the PNG to write.
        title: what was compared, "bbox" or "segm".
    """
    columns = min(_COLUMNS, max(1, len(names)))
    rows = max(1, math.ceil(len(names) / columns))
    # A single class still needs room for the title and the legend.
    figure = Figure(figsize=(max(4.8, 2.5 * columns), 2.2 * rows + 1.0), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, name in enumerate(names):
        _plot_class(grid[number], precision[:, :, number], name)
    for axes in grid[len(names) :]:
        axes.axis("off")
    figure.suptitle(f"{title}: precision over recall of each class", color=_INK, fontsize=11)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save_figure(figure, path)


def plot_errors(sections: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """What each kind of error costs, one plot for boxes and one for masks.

    Args:
        sections: `errors` of `metrics.json` (see docs/contracts.md).
        path: the PNG to write.
    """
    figure = Figure(figsize=(1.2 + 4.6 * len(sections), 3.6), layout="constrained")
    grid = figure.subplots(1, len(sections), squeeze=False, sharex=True).ravel()
    for axes, (kind, section) in zip(grid, sections.items(), strict=True):
        _plot_costs(_clean(axes), section)
        axes.set_title(f"{kind}, AP50 {_text(section['AP50'])}", fontsize=11, color=_INK, loc="left")
    figure.supxlabel("AP50 gained where the errors of a kind are put right", fontsize=9, color=_SOFT)
    save_figure(figure, path)


def plot_lines(x: Sequence[float], lines: Mapping[str, Sequence[float]], *, xlabel: str, ylabel: str) -> bytes:
    """A PNG of named lines over a common x; NaN leaves a gap that is bridged."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = _clean(figure.add_subplot())
    for number, (name, values) in enumerate(lines.items()):
        y = np.asarray(values, float)
        there = np.isfinite(y)
        style = "-" if number < len(_LINES) else "--"
        colour = _LINES[number % len(_LINES)]
        # A single point is no line: markers keep it visible.
        marker = "o" if there.sum() <= 40 else None
        axes.plot(
            np.asarray(x, float)[there], y[there], style, marker=marker, markersize=3, color=colour, linewidth=1.6, label=name
        )
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9, frameon=False, labelcolor=_INK, loc="center left", bbox_to_anchor=(1, 0.5))
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, to a temporary name first."""
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _plot_costs(axes: Axes, section: Mapping[str, Any]) -> None:
    names = list(section["cost"])
    costs = [section["cost"][name] or 0.0 for name in names]
    colours = [_LINES[0] if name in section["count"] else _SOFT for name in names]
    axes.barh(names, costs, color=colours, height=0.62)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=9)
    for row, name in enumerate(names):
        count = section["count"].get(name)
        text = _text(section["cost"][name]) + ("" if count is None else f"   ({count})")
        axes.annotate(text, (costs[row], row), (4, 0), textcoords="offset points", va="center", fontsize=8, color=_SOFT)
    axes.set_xlim(0, 1.45 * max([*costs, 0.02]))


def _plot_class(axes: Axes, precision: NDArray[np.float64], name: str) -> None:
    short = name if len(name) <= 16 else name[:15] + "…"
    _recall_axes(axes).tick_params(labelsize=7)
    axes.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axes.set_title(short, fontsize=9, color=_INK, loc="left")
    recall = np.linspace(0, 1, precision.shape[1])
    curves = {"IoU 0.50": precision[0], "IoU 0.75": precision[5], "mean of IoU 0.50 to 0.95": precision.mean(axis=0)}
    for (label, curve), colour in zip(curves.items(), ("#74a9cf", "#2b8cbe", "#d9480f"), strict=True):
        # An empty line keeps the legend complete where the class has no ground truth.
        axes.plot(recall, np.where(curve < 0, np.nan, curve), color=colour, linewidth=1.4, label=label)
    text = "no ground truth" if (precision < 0).all() else f"AP {precision.mean():.3f}"
    axes.set_title(text, fontsize=8, color=_SOFT, loc="right")


def _recall_axes(axes: Axes) -> Axes:
    _clean(axes)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return axes


def _clean(axes: Axes) -> Axes:
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color("#9aa5b1")
    return axes


def _figure(curve: Any) -> str:
    mean = np.ma.mean(curve)
    return _text(None if mean is np.ma.masked else mean)


def _text(figure: float | None) -> str:
    return "n/a" if figure is None else f"{figure:.3f}"
