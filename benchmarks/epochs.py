"""Speed and memory of whole epochs, measured alike in every environment: this file needs the standard library and Linux only."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def measure_epochs(run_epoch: Callable[[], int], *, epochs: int, seconds: float) -> dict:
    """Run epochs until there are enough of them and enough time has passed.

    Args:
        run_epoch: runs one epoch and returns its number of images.
        epochs: fewest epochs, at least 2.
        seconds: shortest time.

    Returns:
        images: of an epoch; first_epoch and images_per_second: images a second of the first epoch and the median of the others;
        cpu_ms: median processor time of an image in them, milliseconds, all processes; memory_mib: allocated before the first
        epoch and after each; growth: memory after the last epoch by that after the second; peak_mib: the processes' peaks of
        resident memory, mapped files included, added up.
    """
    images: list[int] = []
    rates, cpu, memory = [], [], [_memory_mib()]
    began = time.perf_counter()
    while len(rates) < epochs or time.perf_counter() - began < seconds:
        start, processor = time.perf_counter(), _cpu_seconds()
        images.append(run_epoch())
        rates.append(images[-1] / (time.perf_counter() - start))
        cpu.append((_cpu_seconds() - processor) / images[-1] * 1000)
        memory.append(_memory_mib())
    return {
        "images": images[-1],
        "first_epoch": round(rates[0], 1),
        "images_per_second": round(statistics.median(rates[1:]), 1),
        "cpu_ms": round(statistics.median(cpu[1:]), 1),
        "memory_mib": [round(value) for value in memory],
        "growth": round(memory[-1] / memory[2], 3),
        "peak_mib": round(sum(_kib(Path(f"/proc/{pid}/status"), "VmHWM:") for pid in _processes()) / 1024),
    }


def _processes() -> list[int]:
    """This process and its living descendants."""
    found = [os.getpid()]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


def _memory_mib() -> float:
    """Memory that the processes hold between them, without mapped files: other programs' share of those comes and goes."""
    files = (Path(f"/proc/{pid}/smaps_rollup") for pid in _processes())
    return sum(_kib(path, "Pss_Anon:") + _kib(path, "Pss_Shmem:") for path in files) / 1024


def _cpu_seconds() -> float:
    own = os.times()
    # User and system time are the 14th and 15th fields; the second, the name in brackets, may hold blanks.
    others = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in _processes()[1:]]
    ended = own.children_user + own.children_system
    return own.user + own.system + ended + sum(int(ticks) for pair in others for ticks in pair) / _TICKS


def _kib(path: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(key))
