"""What surrounds the network: import, `predict` from start to first drawing, evaluation, masks of large pictures.

    python benchmarks/commands.py [--torchvision PYTHON] [--rounds 5] [--only import predict evaluation masks] [--output FILE]

Prints JSON; in the file, parts that are not run stay as they were. The sides of a part are measured in turns, each in a process
of its own; seconds are medians, memory is the highest resident one. Without an interpreter that has torch, torchvision and
pycocotools, the sides that need them are left out.

* import: whole processes, beside one that does nothing. `loads_tensorflow` says whether `import mrcnn_tf` did.
* predict: `mrcnn-tf predict` of one picture of 800 x 1216 by R50-FPN (seeded weights, 100 detections), the process as a whole,
  and where its time goes; beside a script of torchvision that does the same (`benchmarks/peers/torchvision_predict.py`).
* evaluation: boxes and masks of drawn detections of 5,000 images. pycocotools alone reads both files and fills its tables;
  "tables" is what ours does for the same; "evaluate" is all of `mrcnn-tf evaluate` but the reading of pictures and the network:
  run lengths of 28 x 28 masks, the tables, and all files with their plots.
* masks: run lengths of 100 masks at 3000 x 4000. The boxes of "spread" have sides of 2 to 95 % of the picture's, those of
  "large" 50 to 100 %. pycocotools alone is given pasted masks; torchvision's side is `paste_masks_in_image` for ten objects at
  a time (for all 100 it holds 9.6 GB), the threshold, and pycocotools.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.peers.turns import ROOT, Side, WorkerError, measure, with_ratios

OURS = sys.executable
COMMAND = str(Path(OURS).with_name("mrcnn-tf"))


def main() -> None:
    """Measure, print, write."""
    parts: dict[str, Callable[[str | None, int], dict[str, Any]]] = {
        "import": imports,
        "predict": first_picture,
        "evaluation": evaluation,
        "masks": masks,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torchvision", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = {name: parts[name](arguments.torchvision, arguments.rounds) for name in arguments.only}
    print(json.dumps(found, indent=1))
    if arguments.output is not None:
        there = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
        arguments.output.write_text(json.dumps({**there, **found}, indent=1) + "\n")


def imports(torchvision: str | None, rounds: int) -> dict[str, Any]:
    """Imports, and the command's help."""
    commands = {
        "python": [OURS, "-c", "pass"],
        "import mrcnn_tf": [OURS, "-c", "import mrcnn_tf"],
        "mrcnn-tf --help": [COMMAND, "--help"],
        "import tensorflow": [OURS, "-c", "import tensorflow"],
    }
    if torchvision is not None:
        commands["import torchvision"] = [torchvision, "-c", "import torchvision"]
    answer = _output([OURS, "-c", "import sys, mrcnn_tf; print('tensorflow' in sys.modules)"])
    return {**in_turns(commands, rounds), "loads_tensorflow": answer.strip() == "True"}


def first_picture(torchvision: str | None, rounds: int) -> dict[str, Any]:
    """From the start of a process to the drawing of a picture."""
    with tempfile.TemporaryDirectory() as folder:
        model, state, picture = (str(Path(folder, name)) for name in ("model.keras", "state.pth", "picture.png"))
        ours = [OURS, "-m", "benchmarks.peers.predict_stages"]
        _output([*ours, "make", model, picture])
        commands = {"ours": [COMMAND, "predict", model, picture, "--output", f"{folder}/ours"]}
        if torchvision is not None:
            peer = [torchvision, "-m", "benchmarks.peers.torchvision_predict"]
            _output([*peer, "make", state])
            commands["torchvision"] = [*peer, "predict", state, picture, f"{folder}/torchvision.png"]
        sides = in_turns(commands, rounds)
        runs = [json.loads(_output([*ours, "stages", model, picture, f"{folder}/stages"])) for _ in range(rounds)]
        stages = {stage: round(statistics.median(run[stage] for run in runs), 3) for stage in runs[0]}
    return {**with_ratios(sides, "torchvision"), "stages": stages}


def evaluation(torchvision: str | None, rounds: int) -> dict[str, Any]:
    """COCO's figures of drawn detections of 5,000 images, 7 objects and 20 detections each."""
    del torchvision
    with tempfile.TemporaryDirectory() as folder:
        _output([OURS, "-m", "benchmarks.peers.coco_figures", folder])
        names = ("pycocotools", "tables", "evaluate")
        sides = {name: Side(OURS, "benchmarks.peers.coco_figures", {"task": name, "folder": folder}) for name in names}
        return with_ratios(measure(sides, rounds=rounds, report=_report), "pycocotools")


def masks(torchvision: str | None, rounds: int) -> dict[str, Any]:
    """Run lengths of 100 masks at 12 megapixels."""
    found = {}
    for boxes in ("spread", "large"):
        sides = {
            "ours": Side(OURS, "benchmarks.peers.mask_runs", {"task": "ours", "boxes": boxes}),
            "pycocotools": Side(OURS, "benchmarks.peers.mask_runs", {"task": "pycocotools", "boxes": boxes}),
        }
        if torchvision is not None:
            sides["torchvision"] = Side(torchvision, "benchmarks.peers.mask_runs", {"task": "torchvision", "boxes": boxes})
        found[boxes] = with_ratios(measure(sides, rounds=rounds, report=_report), "torchvision")
    return found


def in_turns(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, dict[str, Any]]:
    """Run each command `rounds` times, in turns, after one run that is not counted.

    Returns:
        By name `seconds`, the median of whole processes, `all_seconds`, and `peak_mib`, the highest resident memory.

    Raises:
        WorkerError: a command fails; with the last lines that it wrote.
    """
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            run = _run(command)
            if number:
                runs[name].append(run)
                _report(f"{name}: {run[0]:.3f} s")
    return {
        name: {
            "seconds": statistics.median(seconds for seconds, _ in found),
            "all_seconds": [seconds for seconds, _ in found],
            "peak_mib": max(peak for _, peak in found),
        }
        for name, found in runs.items()
    }


def _run(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and MiB of a process. Linux counts our own memory as a child's, too, so nothing large is loaded here."""
    with tempfile.TemporaryFile("w+", errors="replace") as written:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=written, stderr=written)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            written.seek(0)
            raise WorkerError(f"status {process.returncode}: {' '.join(command)}\n{''.join(written.readlines()[-15:])}")
    return seconds, round(usage.ru_maxrss / 1024, 1)


def _output(command: Sequence[str]) -> str:
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    if finished.returncode:
        raise WorkerError(f"status {finished.returncode}: {' '.join(command)}\n{finished.stderr[-2000:]}")
    return finished.stdout


def _report(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
