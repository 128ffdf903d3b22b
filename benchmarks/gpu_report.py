"""Tables of `gpu.py`'s results in Markdown, and what others have published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Cells = Mapping[str, dict[str, Any]]
_NVIDIA = "https://github.com/NVIDIA/DeepLearningExamples/tree/master/TensorFlow2/Segmentation/MaskRCNN"
_DETECTRON2 = "https://github.com/facebookresearch/detectron2/blob/main/MODEL_ZOO.md"
_MIXED = ("mixed_bfloat16", "mixed_float16")


class Published(NamedTuple):
    """A figure of others; context, for it was measured on other hardware."""

    what: str
    figure: str
    where: str
    source: str
    ours: Callable[[Cells], str | None]
    """The same of ours, with its settings."""


def short_name(task: str, options: Mapping[str, Any]) -> str:
    """Of a cell."""
    if task == "agreement":
        return task
    xla = {False: "off", True: "on"}.get(options["xla"], options["xla"])
    parts = [f"batch {options['batch']}", options["precision"], f"XLA {xla}"]
    if options.get("nms") == "cpu":
        parts.append("NMS on the CPU")
    if "replicas" in options:
        parts.append(f"{options['replicas']} devices")
    return f"{task}: {', '.join(parts)}"


def best_training(cells: Cells, **wanted: tuple[Any, ...]) -> dict[str, Any] | None:
    """The training cell of one device with most images a second.

    Args:
        cells: by name.
        **wanted: values that its options may have.
    """
    found = _measured(cells, "training", **wanted)
    return max(found, key=lambda cell: cell["images_per_second"], default=None)


def report(results: Mapping[str, Any]) -> str:
    """All tables.

    Args:
        results: what `gpu.py` has written.
    """
    cells, machine = results["cells"], results["machine"]
    lines = [_described(machine, results["settings"]), "", _agreement(cells.get("agreement"))]
    for title, table in (
        ("Training, one device", _training(cells)),
        ("Inference, one device", _inference(cells)),
        ("Training, several devices", _scaling(cells)),
    ):
        lines += ["", f"## {title}", "", *table] if table else []
    lines += ["", "## Beside what others have published", "", *published_table(cells, _device(machine))]
    return "\n".join(lines)


def published_table(cells: Cells, device: str | None) -> list[str]:
    """The published figures with a column for ours.

    Args:
        cells: by name.
        device: what ours was measured on; None: it was not.
    """
    column = f"this project, {device}" if device else "this project"
    rows = [[one.what, f"[{one.figure}]({one.source})", one.where, one.ours(cells) or "not run"] for one in PUBLISHED]
    return _table(("what", "published", "measured on", column), rows)


def _described(machine: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    network = settings["config"] or "R50-FPN, 80 classes, seeded weights"
    height, width = settings["size"]
    return (
        f"{_device(machine)} (compute capability {', '.join(sorted(set(machine['compute_capability']))) or 'none'}), "
        f"{machine['cpu_cores']} cores; {versions}. {network}; {height} x {width}; medians of {settings['steps']}."
    )


def _device(machine: Mapping[str, Any]) -> str:
    names = machine["gpus"]
    if not names:
        return "CPU"
    return " and ".join(f"{names.count(name)} x {name}" for name in sorted(set(names)))


def _agreement(cell: dict[str, Any] | None) -> str:
    if cell is None or "failed" in cell:
        return f"Whether the device finds what the CPU finds was not compared: {(cell or {}).get('failed', 'not run')}."
    found = "; ".join(
        f"XLA {name}: {one['detections'][0]} and {one['detections'][1]} detections, {one.get('same', 0):.1%} the same, scores "
        f"within {one.get('score_difference', 0):.1e}"
        for name, one in cell.items()
        if isinstance(one, dict)
    )
    return f"The device {'finds' if cell['agrees'] else 'does NOT find'} what the CPU finds (float32 without TF32; {found})."


def _training(cells: Cells) -> list[str]:
    columns = ("batch", "precision", "XLA", "images/s", "step, ms", "first step, s", "peak memory, GiB")
    rows = [
        [cell["batch"], _precision(cell), "on" if cell["xla"] else "off", *_figures(cell, lambda c: [_images(c), *_common(c)])]
        for cell in _of_task(cells, "training")
    ]
    return _table(columns, rows)


def _inference(cells: Cells) -> list[str]:
    columns = ("batch", "precision", "XLA", "NMS", "ms an image", "a batch, ms", "first batch, s", "peak memory, GiB")
    rows = [
        [cell["batch"], _precision(cell), cell["xla"], cell["nms"], *_figures(cell, _inference_figures)]
        for cell in _of_task(cells, "inference")
    ]
    return _table((*columns, "detections", "pasting, ms an image"), rows)


def _inference_figures(cell: dict[str, Any]) -> list[str]:
    pasting = cell.get("paste_milliseconds_per_image")
    return [
        f"{cell['milliseconds_per_image']:.1f}",
        *_common(cell),
        str(cell["detections"]),
        "no masks" if pasting is None else f"{pasting:.0f}",
    ]


def _scaling(cells: Cells) -> list[str]:
    columns = ("devices", "batch of each", "precision", "XLA", "images/s", "to one", "peak memory, GiB")
    rows: list[list[Any]] = []
    for cell in _of_task(cells, "scaling"):
        base = _of_one(cell, cells)
        options = [base["batch"], _precision(base), "on" if base["xla"] else "off"]
        one = [1, *options, _images(base), "1", f"{base['peak_gib']:.1f}"]
        rows += [] if one in rows else [one]
        rate = base["images_per_second"]
        figures = _figures(
            cell, lambda c, rate=rate: [_images(c), f"{c['images_per_second'] / rate:.2f}", f"{c['peak_gib']:.1f}"]
        )
        rows.append([cell["replicas"], *options, *figures])
    return _table(columns, rows)


def _table(columns: Sequence[str], rows: list[list[Any]]) -> list[str]:
    """None without rows; those that are short get empty columns."""
    if not rows:
        return []
    filled = [[str(value) for value in row] + [""] * (len(columns) - len(row)) for row in rows]
    return [f"| {' | '.join(row)} |" for row in (list(columns), ["---"] * len(columns), *filled)]


def _images(cell: dict[str, Any]) -> str:
    return f"{cell['images_per_second']:.1f}"


def _common(cell: dict[str, Any]) -> list[str]:
    return [f"{1000 * cell['seconds']:.0f}", f"{cell['first_seconds']:.0f}", f"{cell['peak_gib']:.1f}"]


def _figures(cell: dict[str, Any], of: Callable[[dict[str, Any]], list[str]]) -> list[str]:
    return [cell["failed"].replace("|", "/")] if "failed" in cell else of(cell)


def _precision(cell: dict[str, Any]) -> str:
    return "float32 (TF32)" if cell["precision"] == "float32" and cell.get("tf32") else cell["precision"]


def _of_task(cells: Cells, task: str) -> list[dict[str, Any]]:
    return [cell for cell in cells.values() if cell["task"] == task]


def _measured(cells: Cells, task: str, **wanted: tuple[Any, ...]) -> list[dict[str, Any]]:
    found = [cell for cell in _of_task(cells, task) if "failed" not in cell]
    return [cell for cell in found if all(cell[key] in values for key, values in wanted.items())]


def _of_one(cell: dict[str, Any], cells: Cells) -> dict[str, Any]:
    options = {key: (cell[key],) for key in ("batch", "precision", "xla")}
    return _measured(cells, "training", **options)[0]


def _rate(cell: dict[str, Any] | None) -> str | None:
    return cell and f"{cell['images_per_second']:.1f} images/s ({_settings(cell)})"


def _settings(cell: dict[str, Any]) -> str:
    return short_name(cell["task"], cell).partition(": ")[2]


def _of_eight(cells: Cells) -> dict[str, Any] | None:
    return max(_measured(cells, "scaling", replicas=(8,)), key=lambda cell: cell["images_per_second"], default=None)


def _ratio_of_eight(cells: Cells) -> str | None:
    cell = _of_eight(cells)
    return cell and f"{cell['images_per_second'] / _of_one(cell, cells)['images_per_second']:.1f} ({_settings(cell)})"


def _latency(cells: Cells) -> str | None:
    found = _measured(cells, "inference", batch=(1,), precision=("float32",))
    cell = min(found, key=lambda one: one["milliseconds_per_image"], default=None)
    return cell and f"{cell['milliseconds_per_image']:.1f} ms ({_settings(cell)})"


PUBLISHED = (
    Published(
        "training, one GPU, float32 with TF32, batch 4",
        "18.4 images/s",
        "NVIDIA's for TensorFlow 2, A100 80 GB",
        _NVIDIA,
        lambda cells: _rate(best_training(cells, batch=(4,), precision=("float32",))),
    ),
    Published(
        "training, one GPU, mixed precision, batch 4",
        "28.6 images/s",
        "NVIDIA's for TensorFlow 2, A100 80 GB",
        _NVIDIA,
        lambda cells: _rate(best_training(cells, batch=(4,), precision=_MIXED)),
    ),
    Published(
        "training, eight GPUs to one, mixed precision, batch 4 of each",
        "4.0",
        "NVIDIA's for TensorFlow 2, 8 A100 80 GB",
        _NVIDIA,
        _ratio_of_eight,
    ),
    Published(
        "training, eight GPUs",
        "61 images/s",
        "detectron2, 8 V100, float32, batch 2 of each (0.261 s a step of 16)",
        _DETECTRON2,
        lambda cells: _rate(_of_eight(cells)),
    ),
    Published("inference, batch 1", "43 ms an image", "detectron2, V100, float32, on COCO's pictures", _DETECTRON2, _latency),
)
