"""One side of a comparison: a process that loads a system once and makes a measured repetition whenever it is asked to.

The driver (`benchmarks.peers.turns`) writes a line for each repetition and reads a line of JSON for it, so that systems which
do not fit into one process are measured in turns. Needs nothing but numpy; it runs in the environments of the peers too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Repetition = Callable[[], dict[str, Any]]
"""Does the work once; returns facts to be kept (number of detections, losses), which must not take time to find."""


def serve(prepare: Callable[..., Repetition]) -> None:
    """Answer the driver until it closes our input.

    Args:
        prepare: called with the options, a JSON object in the last argument of the command; gives what is repeated.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print
    repeat = prepare(**json.loads(sys.argv[-1]))
    _forget_peak()
    began = time.perf_counter()
    repeat()
    _answer(answers, {"first_seconds": time.perf_counter() - began})
    for _ in sys.stdin:
        began = time.perf_counter()
        facts = repeat()
        seconds = time.perf_counter() - began
        _answer(answers, {"seconds": seconds, "peak_mib": _peak_mib(), **facts})


def _answer(answers: Any, values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def _forget_peak() -> None:
    """From here on the peak of resident memory counts anew: what loading took is no part of it."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024, 1)
