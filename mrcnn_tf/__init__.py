"""Mask R-CNN (He et al., ICCV 2017) for TensorFlow and Keras 3.

The public names are loaded when first used: `import mrcnn_tf` neither loads TensorFlow nor prints anything. Importing the
package makes `MaskRCNN` known to `keras.saving.load_model` as soon as Keras asks for it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from mrcnn_tf import _keras_names

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

_keras_names.register()

__version__ = "0.1.0"

_PUBLIC = {
    "Config": "mrcnn_tf.config",
    "ConfigError": "mrcnn_tf.config",
    "Detections": "mrcnn_tf.detections",
    "MaskRCNN": "mrcnn_tf.modeling.mask_rcnn",
    "Predictor": "mrcnn_tf.predict",
    "load_config": "mrcnn_tf.config",
    "shipped_configs": "mrcnn_tf.config",
}
_SUBMODULES = {"data", "ops", "modeling", "optimizers", "train", "evaluate", "predict"}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from mrcnn_tf.config import Config, ConfigError, load_config, shipped_configs
    from mrcnn_tf.detections import Detections
    from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
    from mrcnn_tf.predict import Predictor


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"mrcnn_tf.{name}")
    raise AttributeError(f"module 'mrcnn_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
