"""Running a TFLite file in the runtimes that are installed: ai-edge-litert, tflite-runtime."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

RUNTIMES = {"ai-edge-litert": "ai_edge_litert.interpreter", "tflite-runtime": "tflite_runtime.interpreter"}
"""Packages, and the module of each with an `Interpreter`."""

Values = dict[str, NDArray[Any]]


class EdgeRunner:
    """Signatures of a TFLite file as functions on numpy arrays.

    Args:
        content: the file.
        runtime: a key of `RUNTIMES`.
        threads: of the interpreter.

    Raises:
        ModuleNotFoundError: that package is not installed.
        ValueError: the runtime refuses the file.
    """

    def __init__(self, content: bytes, runtime: str = "ai-edge-litert", *, threads: int = 1) -> None:
        module = importlib.import_module(RUNTIMES[runtime])
        self._interpreter = module.Interpreter(model_content=content, num_threads=threads)
        # Before a runner is asked for: else tflite-runtime leaves its fast kernels out.
        self._interpreter.allocate_tensors()
        self._runners: dict[str, Any] = {}

    def __call__(self, signature: str, inputs: Mapping[str, NDArray[Any]]) -> Values:
        """Run a signature; the outputs are copies."""
        if signature not in self._runners:
            self._runners[signature] = self._interpreter.get_signature_runner(signature)
        return {name: value.copy() for name, value in self._runners[signature](**inputs).items()}


def installed_runtimes() -> list[str]:
    """Those of `RUNTIMES` that can be imported."""
    found = []
    for name, module in RUNTIMES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        found.append(name)
    return found
