"""Table and plots of `results.json` for the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

_FIRST = "The first repetition, with tracing and compiling, is made by all sides at once."
Results = dict[str, dict[str, Any]]
AXES = {
    "megapixels": "megapixels of the picture",
    "batch": "pictures in a batch, 800 x 1216",
    "proposals": "proposals, 512 x 512",
    "detections": "detections at most, 512 x 512",
    "classes": "classes, 512 x 512",
}
LOGARITHMIC = ("proposals", "detections", "classes")
COLOURS = {"ours": "tab:blue", "torchvision": "tab:orange"}


def write_report(results: Results, docs: Path) -> None:
    """Write `performance_tables.md`, and `performance_systems.png` and `performance_growth.png` beside the other images.

    Args:
        results: what `compare.py` has written, by name of the comparison.
        docs: folder of the documentation, with a folder `images`.
    """
    (docs / "performance_tables.md").write_text(tables(results))
    for name, figure in (("systems", systems(results)), ("growth", growth(results))):
        if figure is not None:
            figure.savefig(docs / "images" / f"performance_{name}.png", dpi=110)
            plt.close(figure)


def tables(results: Results) -> str:
    """All comparisons in Markdown."""
    lines = [
        "# Tables of performance",
        "",
        "Written by `make benchmark`; what they mean is in [performance.md](performance.md).",
        _FIRST,
    ]
    for machine, found in _by_machine(results):
        lines += ["", _described(machine)]
        for one in [one for one in found if "group" not in one]:
            lines += ["", f"## {one['title'][0].upper()}{one['title'][1:]}", "", *_table(one)]
        for group in [group for group in AXES if any(one.get("group") == group for one in found)]:
            lines += ["", f"## Growth by {group}", "", *_growth_table([one for one in found if one.get("group") == group])]
    return "\n".join(lines) + "\n"


def systems(results: Results) -> Any:
    """Bars of the comparisons between systems; None without any."""
    chosen = [one for one in results.values() if "group" not in one and "sides" in one]
    if not chosen:
        return None
    heights = [len(one["sides"]) for one in chosen]
    figure, axes = plt.subplots(
        len(chosen), 1, figsize=(8, 0.34 * sum(heights) + 0.75 * len(chosen)), height_ratios=heights, squeeze=False
    )
    for axis, one in zip(axes[:, 0], chosen, strict=True):
        names = list(one["sides"])
        seconds = [side["seconds"] for side in one["sides"].values()]
        colours = ["tab:blue" if name.startswith("ours") else "tab:gray" if "bare" in name else "tab:orange" for name in names]
        bars = axis.barh(names, seconds, color=colours)
        axis.bar_label(bars, [f"{value:.2f} s" for value in seconds], padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(one["title"], fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def growth(results: Results) -> Any:
    """Lines over what grows; None without any."""
    groups = {group: [one for one in results.values() if one.get("group") == group and "sides" in one] for group in AXES}
    groups = {group: sorted(found, key=lambda one: one["at"]) for group, found in groups.items() if found}
    if not groups:
        return None
    figure, axes = plt.subplots(1, len(groups), figsize=(3.1 * len(groups), 3.2), squeeze=False)
    for axis, (group, found) in zip(axes[0], groups.items(), strict=True):
        for name in found[0]["sides"]:
            places = [one["at"] for one in found]
            axis.plot(places, [one["sides"][name]["seconds"] for one in found], "o-", label=name, color=COLOURS.get(name), ms=4)
        if group in LOGARITHMIC:
            axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_xlabel(AXES[group], fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("seconds, inference", fontsize=8)
    axes[0][0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


def _by_machine(results: Results) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for one in results.values():
        for machine, members in found:
            if machine == one["machine"]:
                members.append(one)
                break
        else:
            found.append((one["machine"], [one]))
    return found


def _described(machine: dict[str, Any]) -> str:
    systems = "; ".join(
        ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) for versions in machine["versions"].values()
    )
    return (
        f"{machine['processor']} ({', '.join(machine['instructions'])}), {machine['cores']} cores, "
        f"{machine['memory_gib']:.0f} GiB, {machine['threads']} threads. {systems}."
    )


def _table(one: dict[str, Any]) -> list[str]:
    if "error" in one:
        return [f"Not measured: {one['error']}"]
    lines = [f"| system | time, s | to {one['base']} | first, s | peak memory, MiB | to {one['base']} | found |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for name, side in one["sides"].items():
        facts = [
            f"{side[key]} {unit}" for key, unit in (("detections", "detections"), ("gflops", "GFLOP forward")) if key in side
        ]
        if "same_detections" in side:
            facts.append(
                f"{side['same_detections']:.0%} of those of float32, scores within {side['score_difference']}, "
                f"masks' IoU {side['mask_iou']}"
            )
        lines.append(
            f"| {name} | {side['seconds']:.3f} | {side['ratio']:.2f} | {side['first_seconds']:.1f} | {side['peak_mib']:.0f} "
            f"| {side['memory_ratio']:.2f} | {', '.join(facts)} |"
        )
    return lines


def _growth_table(found: list[dict[str, Any]]) -> list[str]:
    found = sorted((one for one in found if "sides" in one), key=lambda one: one["at"])
    lines = ["| | ours, s | torchvision, s | ours to it | memory, to it | detections, ours and its |", "| --- " * 6 + "|"]
    for one in found:
        ours, peer = one["sides"]["ours"], one["sides"]["torchvision"]
        lines.append(
            f"| {one['title'].removeprefix('inference, ')} | {ours['seconds']:.3f} | {peer['seconds']:.3f} | {ours['ratio']:.2f} "
            f"| {ours['memory_ratio']:.2f} | {ours['detections']}, {peer['detections']} |"
        )
    return lines
