"""Making our classes known to Keras without loading them.

Keras finds a class of a `.keras` file by its registered name only, and the registration runs when the class's module is
imported. `import mrcnn_tf` must not load TensorFlow, so it leaves stand-ins under those names, which load the class when a
file asks for it.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import wrapt

_CLASSES = {
    "MaskRCNN": "mrcnn_tf.modeling.mask_rcnn",
    "AdamW": "mrcnn_tf.optimizers",
    "CoupledSGD": "mrcnn_tf.optimizers",
    "DynamicLossScale": "mrcnn_tf.modeling.loss_scale",
    "StagedRate": "mrcnn_tf.schedules",
    "WarmupCosine": "mrcnn_tf.schedules",
    "WarmupMultiStep": "mrcnn_tf.schedules",
}


class _StandIn:
    """Has the one method that Keras calls to make an object from a file."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def from_config(self, config: dict, **kwargs: Any) -> Any:
        """Load the class, whose own registration then replaces this stand-in, and let it do the work."""
        return getattr(importlib.import_module(_CLASSES[self.__name__]), self.__name__).from_config(config, **kwargs)


def register() -> None:
    """Leave the stand-ins now if Keras is loaded, otherwise as soon as it is."""
    wrapt.register_post_import_hook(_leave_stand_ins, "keras")


def _leave_stand_ins(keras: ModuleType) -> None:
    for name in _CLASSES:
        keras.saving.get_custom_objects().setdefault(f"mrcnn_tf>{name}", _StandIn(name))
