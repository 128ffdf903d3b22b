"""Runs the sides of a comparison in turns, each in a process of its own, and sums up what they took."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Side:
    """A system under one set of options.

    Attributes:
        python: the interpreter that has it.
        worker: the module that serves it, found from the root of the repository.
        options: for the worker.
    """

    python: str
    worker: str
    options: dict[str, Any] = field(default_factory=dict)


class WorkerError(RuntimeError):
    """A worker has ended before it answered."""


def measure(sides: Mapping[str, Side], *, rounds: int, report: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Measure each side `rounds` times, in turns, after one repetition that is not counted.

    Args:
        sides: by name.
        rounds: counted repetitions of each.
        report: told of each repetition.

    Returns:
        By name of the side: `seconds`, the median; `all_seconds`; `first_seconds`, of the repetition before, with tracing and
        compiling; `peak_mib`, the highest resident memory since the system was loaded; and the worker's facts.

    Raises:
        WorkerError: a worker has ended; with the last lines that it wrote.
    """
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_Worker(name, side)) for name, side in sides.items()}
        firsts = {name: worker.answer() for name, worker in workers.items()}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, worker in workers.items():
                runs[name].append(worker.repeat())
                report(f"{name}: {runs[name][-1]['seconds']:.3f} s")
        return {name: _summed_up(firsts[name], found) for name, found in runs.items()}


def with_ratios(sides: dict[str, dict[str, Any]], base: str) -> dict[str, dict[str, Any]]:
    """Sides with `ratio` and `memory_ratio` to one of them; as they are where that one is not here."""
    if base not in sides:
        return sides
    return {
        name: {
            **side,
            "ratio": round(side["seconds"] / sides[base]["seconds"], 3),
            "memory_ratio": round(side["peak_mib"] / sides[base]["peak_mib"], 3),
        }
        for name, side in sides.items()
    }


def _summed_up(first: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    return {
        **runs[-1],
        **first,
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "peak_mib": max(run["peak_mib"] for run in runs),
    }


class _Worker:
    """A process of `worker.serve`."""

    def __init__(self, name: str, side: Side) -> None:
        self._name = name
        self._command = [side.python, "-m", side.worker, json.dumps(side.options)]

    def __enter__(self) -> _Worker:
        self._errors: IO[str] = tempfile.TemporaryFile("w+", errors="replace")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen(self._command, cwd=ROOT, text=True, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._errors.close()

    def repeat(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` says what has happened
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            last = "".join(self._errors.readlines()[-15:])
            raise WorkerError(f"{self._name} ended with status {status}\n{' '.join(self._command)}\n{last}")
        return json.loads(line)
