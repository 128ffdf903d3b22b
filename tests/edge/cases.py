"""Files, pictures and expected results that the tests in other runtimes read: numpy and the standard library only.

A folder of cases holds `pictures/` and, of each model and precision, the bundle `<model>-<precision>/` and beside it an npz with

    <picture>/input/<name>                     image and image_size
    <picture>/model/<name>                     what the Keras model answers, as signature `full` does
    <picture>/<signature>/input|output/<name>  what LiteRT was given and answered, stage by stage
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Values = dict[str, np.ndarray]
Run = Callable[[str, Mapping[str, np.ndarray]], Values]

FOLDER_VARIABLE = "MRCNN_TF_EDGE_CASES"
"""Names a folder that `python -m tests.edge.make_cases FOLDER` has filled."""
FILES = ("lite-float32", "lite-float16", "lite-int8", "resnet-float32", "crop-float32")
STAGES = ("trunk", "propose", "box", "detect", "mask")


def run_stages(run: Run, signatures: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> dict[str, tuple[Values, Values]]:
    """Inputs and outputs of each stage on what the stages before it answer; of `mask`, those of its first call.

    Args:
        run: runs a signature.
        signatures: of model.json.
        inputs: image and image_size.
    """
    known, found = dict(inputs), {}
    for name in (name for name in STAGES if name in signatures):
        if name == "mask":
            rows = signatures[name]["inputs"]["classes"]["shape"][0]
            known["regions"] = known["mask_regions"][:rows]
            known["classes"] = known["detection_classes"][0, :rows].astype(np.int32)
        given = {key: known[key] for key in signatures[name]["inputs"]}
        found[name] = given, run(name, given)
        known.update(found[name][1])
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> Values:
    """Nested mappings as one, with keys joined by slashes."""
    found: Values = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: value}
    return found


class Case:
    """The npz of one file."""

    def __init__(self, path: Path) -> None:
        self._arrays = dict(np.load(path))
        self.pictures = sorted({key.split("/")[0] for key in self._arrays})

    def values(self, *where: str) -> Values:
        """Arrays under `picture, part..`."""
        prefix = "/".join(where) + "/"
        return {key.removeprefix(prefix): value for key, value in self._arrays.items() if key.startswith(prefix)}


def detections(outputs: Mapping[str, np.ndarray]) -> list[Values]:
    """The valid rows of the outputs of `full`, each with box, class, score and mask."""
    names = {name: f"detection_{name}" for name in ("boxes", "classes", "scores", "masks") if f"detection_{name}" in outputs}
    return [{name: outputs[key][0, row] for name, key in names.items()} for row in range(int(outputs["num_detections"][0]))]
