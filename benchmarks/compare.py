"""mrcnn_tf beside torchvision, Model Garden and detectron2: the same weights, pictures, thresholds and threads.

    make benchmark
    python benchmarks/compare.py --torchvision PYTHON [--model-garden PYTHON] [--detectron2 PYTHON] [--rounds 7] [--only NAME ...]

Each system is an interpreter of its own; one that is not named is left out. All sides of a comparison are loaded, then measured
in turns, so that whatever else the machine does hits all of them. Times are medians; memory is the highest resident one since
loading. The results are written after each comparison, so that an interrupted run goes on with `--only`; those of comparisons
that are not run stay. At the end the table and the plots of the documentation are written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.comparisons import Comparison, Interpreters, comparisons
from benchmarks.peers.turns import ROOT, WorkerError, measure, with_ratios
from benchmarks.report import write_report

GARDEN = "inference_model_garden"
RESULTS = Path(__file__).with_name("results.json")
DISTRIBUTIONS = ("tensorflow", "keras", "tf-models-official", "tf-keras", "torch", "torchvision", "detectron2", "numpy")


def main() -> None:
    """Measure, write, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torchvision", metavar="PYTHON")
    parser.add_argument("--model-garden", metavar="PYTHON")
    parser.add_argument("--detectron2", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", metavar="NAME", help="comparisons, or groups of them")
    parser.add_argument("--report", action="store_true", help="write table and plots from the results there are; measure nothing")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    if not arguments.report:
        systems = {name: getattr(arguments, name) for name in ("torchvision", "model_garden", "detectron2")}
        systems = {"ours": sys.executable, **{name: python for name, python in systems.items() if python}}
        machine = _machine(systems, arguments.threads)
        with tempfile.TemporaryDirectory() as folder:
            where = Interpreters(**systems, garden_weights=f"{folder}/plain/ckpt")
            chosen = _chosen(comparisons(where, arguments.threads), arguments.only)
            if any(one.name == GARDEN for one in chosen):
                _write_garden_weights(systems["model_garden"], folder)
            for number, comparison in enumerate(chosen, start=1):
                print(f"{number} of {len(chosen)}: {comparison.title}", file=sys.stderr)
                _keep(arguments.output, comparison, {**_measured(comparison, arguments.rounds), "machine": machine})
    write_report(json.loads(arguments.output.read_text()), arguments.docs)


def _chosen(found: list[Comparison], only: list[str] | None) -> list[Comparison]:
    if only is None:
        return found
    known = {one.name for one in found} | {one.group for one in found if one.group}
    if unknown := set(only) - known:
        raise SystemExit(f"no such comparison here: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return [one for one in found if one.name in only or one.group in only]


def _measured(comparison: Comparison, rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"title": comparison.title, "base": comparison.base}
    if comparison.group:
        figures |= {"group": comparison.group, "at": comparison.at}
    try:
        sides = measure(comparison.present(), rounds=rounds, report=lambda line: print(f"  {line}", file=sys.stderr))
    except WorkerError as error:
        print(error, file=sys.stderr)
        return {**figures, "error": str(error).splitlines()[0]}
    return {**figures, "sides": with_ratios(sides, comparison.base)}


def _keep(path: Path, comparison: Comparison, figures: dict[str, Any]) -> None:
    results = json.loads(path.read_text()) if path.exists() else {}
    results[comparison.name] = figures
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def _write_garden_weights(python: str, folder: str) -> None:
    command = [python, "-m", "tests.weights.model_garden_original", folder]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _machine(systems: dict[str, str], threads: int) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(found.get("flags", "").split())
    return {
        "processor": found.get("model name", platform.processor()),
        "instructions": [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if name in flags],
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": threads,
        "versions": {system: _versions(python) for system, python in systems.items()},
    }


def _versions(python: str) -> dict[str, str]:
    code = f"""
import importlib.metadata as found, json
names = {DISTRIBUTIONS}
print(json.dumps({{d.name: d.version for d in found.distributions() if d.name in names}}))
"""
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
