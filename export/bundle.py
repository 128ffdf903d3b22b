"""A bundle as a detector: `mrcnn-tf evaluate BUNDLE` measures what `detect.py` does on a device. Needs no TensorFlow."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.detections import Detections
from mrcnn_tf.paste import PasteRule


class Bundle:
    """The `Detector` of `detect.py` as a function from a picture to `mrcnn_tf.Detections`.

    The script is this package's own, not the copy in the folder.

    Args:
        folder: what `mrcnn-tf export tflite` has written.
        runtime: "litert", "tflite-runtime" or "auto", the first of these that is installed.
        threads: of the runtime.

    Raises:
        ValueError: the folder is no bundle, or no such runtime is installed; the message says which.
    """

    def __init__(self, folder: str | Path, *, runtime: str = "auto", threads: int = 1) -> None:
        script = _script()
        try:
            self._detector = script.Detector(folder, threads=threads, runtime=runtime)
        except script.DetectError as error:
            raise ValueError(str(error)) from error
        info = script.read_info(folder)
        self.categories = tuple(info["categories"])
        self._paste: PasteRule = info["paste"] or "centred"

    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        """Find the objects of one picture, uint8 RGB [h, w, 3]."""
        found = self._detector(image)
        return Detections(
            boxes=found.boxes.astype(np.float32),
            classes=found.classes.astype(np.int32),
            scores=found.scores.astype(np.float32),
            mask_probs=None if found.mask_probs is None else found.mask_probs.astype(np.float32),
            image_size=(int(found.image_size[0]), int(found.image_size[1])),
            categories=self.categories,
            paste=self._paste,
        )


@cache
def _script() -> ModuleType:
    """`detect.py`, which lies in a folder that is no package since it is copied from there."""
    path = resources.files("mrcnn_tf.export") / "edge" / "detect.py"
    spec = importlib.util.spec_from_file_location("mrcnn_tf_detect", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
