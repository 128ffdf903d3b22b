"""Training and inference on your GPUs: by batch, XLA and precision, and over 1 to 8 of them.

    python benchmarks/gpu.py [--quick] [--only training inference scaling] [--output benchmarks/gpu_results.json]

What is measured, what to install and the published figures of others are in docs/gpu.md. Every cell is a process of its own. What
does not fit or breaks is a cell that says so. Results are written after each cell; the same command goes on where it was stopped,
and tries what broke again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu_report import best_training, report, short_name

ROOT = Path(__file__).parents[1]
TASKS = ("training", "inference", "scaling")
OUT_OF_MEMORY = "out of memory"
QUICK_MINUTES = 7.0
CPU_DEVICES = 2
"""Logical ones, for the scaling with `--device cpu`."""
_PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

Options = dict[str, Any]


@dataclass(frozen=True)
class Runner:
    """How a cell is measured.

    Attributes:
        device: "gpu" or "cpu".
        settings: of every cell: `size`, `config`, `steps`.
        timeout: seconds that a cell may take.
        worker: the module that measures a cell, found from the root of the repository.
    """

    device: str
    settings: Options = field(default_factory=dict)
    timeout: float = 1200.0
    worker: str = "benchmarks.gpu_cells"

    def run(self, task: str, options: Options) -> dict[str, Any]:
        """Measure in a process of its own; one that breaks gives `{"failed": why}`."""
        values = json.dumps({"task": task, "device": self.device, **options})
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            command = [sys.executable, "-m", self.worker, values]
            try:
                done = subprocess.run(
                    command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, check=False, timeout=self.timeout
                )
            except subprocess.TimeoutExpired:
                return {"failed": f"not done after {self.timeout:.0f} s"}
            if done.returncode == 0:
                return json.loads(done.stdout.splitlines()[-1])
            errors.seek(0)
            lines = [line.strip() for line in errors if line.strip()]
            return {"failed": f"status {done.returncode}: {lines[-1][:300] if lines else 'nothing written'}"}

    def measure(self, task: str, options: Options) -> dict[str, Any]:
        """A cell of the grid."""
        settings = dict(self.settings)
        if task == "agreement":
            del settings["steps"]  # nothing is timed
        # More devices are the same cell on more of them.
        return self.run("training" if task == "scaling" else task, {**settings, **options})


class Results:
    """The output file.

    Args:
        path: of it; made if it is not there.
        machine: that is measured on.
        settings: of every cell.

    Raises:
        SystemExit: the file has the figures of another machine or of other settings.
    """

    def __init__(self, path: Path, machine: dict[str, Any], settings: Options) -> None:
        self._path = path
        self.values: dict[str, Any] = {"machine": machine, "settings": settings, "cells": {}}
        if path.exists():
            there = json.loads(path.read_text())
            for name in ("machine", "settings"):
                if there[name] != self.values[name]:
                    raise SystemExit(
                        f"{path} was measured with another {name}: {there[name]}, now {self.values[name]}; name another file "
                        "with --output"
                    )
            self.values = there

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """By name."""
        return self.values["cells"]

    def is_done(self, name: str) -> bool:
        """Whether a cell need not be run: it was measured, or did not fit into the memory."""
        return name in self.cells and self.cells[name].get("failed") in (None, OUT_OF_MEMORY)

    def keep(self, name: str, cell: dict[str, Any]) -> None:
        """Write a cell; whoever is interrupted here leaves the old file whole."""
        self.cells[name] = cell
        temporary = self._path.with_suffix(".partial")
        temporary.write_text(json.dumps(self.values, indent=1) + "\n")
        temporary.replace(self._path)


def main() -> None:
    """Measure what is not there yet, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("gpu_results.json"))
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--quick", action="store_true", help=f"the few cells that tell most; --minutes {QUICK_MINUTES:.0f}")
    parser.add_argument("--minutes", type=float, help="start no cell after so many")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), metavar=("HEIGHT", "WIDTH"), help="multiples of 32")
    parser.add_argument("--steps", type=int, default=20, help="timed in a cell")
    parser.add_argument("--config", help="another network: name or path of a configuration; it gets random weights")
    parser.add_argument("--timeout", type=float, default=1200.0, metavar="SECONDS", help="that a cell may take")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="cpu: to try the command without a GPU")
    arguments = parser.parse_args()
    if any(side % 32 for side in arguments.size):
        parser.error(f"--size must be two multiples of 32, got {arguments.size}")
    config = arguments.config
    if config is not None and Path(config).exists():
        config = str(Path(config).resolve())  # cells run in another folder
    settings = {"size": list(arguments.size), "config": config, "steps": arguments.steps}
    runner = Runner(arguments.device, settings, arguments.timeout)
    machine = find_machine(runner)
    results = Results(arguments.output, machine, settings)
    minutes = arguments.minutes
    if minutes is None:
        minutes = QUICK_MINUTES if arguments.quick else math.inf
    measure(runner, results, only=arguments.only, quick=arguments.quick, until=time.monotonic() + 60 * minutes)
    print(report(results.values))
    agreement = results.cells.get("agreement", {})
    if not agreement.get("agrees", False):
        raise SystemExit(f"the device does not find what the CPU finds: {agreement}")


def find_machine(runner: Runner) -> dict[str, Any]:
    """What is measured on.

    Raises:
        SystemExit: TensorFlow fails, or sees no GPU.
    """
    machine = runner.run("machine", {})
    if "failed" in machine:
        raise SystemExit(f"TensorFlow cannot be asked for its devices: {machine['failed']}")
    if runner.device == "gpu" and not machine["gpus"]:
        raise SystemExit(
            "TensorFlow sees no GPU. Install its CUDA libraries with pip install 'tensorflow[and-cuda]==2.20.*' and see that "
            "nvidia-smi shows the driver; --device cpu tries this command without one."
        )
    return {"device": runner.device, **machine}


def measure(runner: Runner, results: Results, *, only: Iterable[str], quick: bool, until: float) -> None:
    """Run the cells that are not there yet.

    Args:
        runner: measures them.
        results: keeps them.
        only: of `TASKS`.
        quick: the short selection.
        until: time of the monotonic clock after which no cell is started.
    """
    grid: dict[str, list[Options]] = {"agreement": [{}], "training": training_cells(quick), "inference": inference_cells(quick)}
    for task in ("agreement", *TASKS):
        if task not in (*only, "agreement"):
            continue
        cells = scaling_cells(results) if task == "scaling" else grid[task]
        for options in cells:
            name = short_name(task, options)
            if results.is_done(name):
                continue
            if time.monotonic() > until:
                print(f"out of time, not measured: {name}", file=sys.stderr)
                continue
            print(name, end=": ", file=sys.stderr, flush=True)
            figures = runner.measure(task, options)
            results.keep(name, {"task": task, **options, **figures})
            print(figures.get("failed", "done"), file=sys.stderr)


def training_cells(quick: bool) -> list[Options]:
    """One GPU."""
    if quick:
        chosen = [("float32", False), ("mixed_bfloat16", False), ("mixed_bfloat16", True)]
        return [{"batch": 4, "precision": precision, "xla": xla} for precision, xla in chosen]
    grid = product(_PRECISIONS, (False, True), (1, 2, 4, 8, 16))
    return [{"batch": batch, "precision": precision, "xla": xla} for precision, xla, batch in grid]


def inference_cells(quick: bool) -> list[Options]:
    """One GPU."""
    if quick:
        chosen = [(1, "float32", "off"), (1, "mixed_bfloat16", "trunk"), (4, "mixed_bfloat16", "trunk")]
        return [{"batch": batch, "precision": precision, "xla": xla, "nms": "auto"} for batch, precision, xla in chosen]
    grid = product(("auto",), _PRECISIONS, ("off", "trunk", "whole"), (1, 2, 4, 8))
    on_cpu = product(("cpu",), ("float32", "mixed_bfloat16"), ("off", "trunk"), (1, 4))
    return [{"batch": batch, "precision": precision, "xla": xla, "nms": nms} for nms, precision, xla, batch in (*grid, *on_cpu)]


def scaling_cells(results: Results) -> list[Options]:
    """The quickest training cell on more devices, with as many pictures on each; none where none was measured."""
    best = best_training(results.cells)
    if best is None:
        print("no scaling: it is that of the quickest training cell, and none was measured", file=sys.stderr)
        return []
    machine = results.values["machine"]
    there = len(machine["gpus"]) if machine["device"] == "gpu" else CPU_DEVICES
    options = {key: best[key] for key in ("batch", "precision", "xla")}
    return [{**options, "replicas": count} for count in (2, 4, 8) if count <= there]


if __name__ == "__main__":
    main()
