"""ImageNet trunks of Caffe2 (`conv1_w`, `res2_0_branch2a_bn_s`, ...) by the names that detectron2 gave them."""

from __future__ import annotations

import re

import numpy as np

from mrcnn_tf.weights.found import Arrays

_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_PARTS = {
    "w": "weight",
    "b": "bias",
    **{f"{norm}_{part}": "norm.weight" for norm in ("bn", "gn") for part in ("s", "gamma")},
    **{f"{norm}_{part}": "norm.bias" for norm in ("bn", "gn") for part in ("b", "beta")},
    **{f"bn_{part}": "norm.running_mean" for part in ("rm", "running_mean")},
    **{f"bn_{part}": "norm.running_var" for part in ("riv", "running_var")},
}
_NAME = re.compile(
    r"^(?:(?:res_)?conv1|res(?P<stage>\d)_(?P<block>\d+)_branch(?P<branch>1|2a|2b|2c))_(?P<part>" + "|".join(_PARTS) + ")$"
)


def caffe2_trunk(arrays: Arrays, epsilon: float) -> dict[str, np.ndarray]:
    """A trunk of Caffe2 by detectron2's names.

    Args:
        arrays: of the file; momenta are dropped, names that are no trunk's stay.
        epsilon: of the batch norms. Detectron's files hold them folded into scale and bias; they get statistics that change
            nothing with this epsilon.

    Returns:
        Name to array.
    """
    named = {_named(name): array for name, array in arrays.items() if not name.endswith("_momentum")}
    if any("_gn_" in name for name in arrays) or "stem.conv1.norm.running_mean" in named:
        return named
    scales = {name: array for name, array in named.items() if name.endswith(".norm.weight")}
    for name, scale in scales.items():
        norm = name.removesuffix("weight")
        named[f"{norm}running_mean"] = np.zeros_like(scale)
        named[f"{norm}running_var"] = np.full_like(scale, 1 - epsilon)
    return named


def _named(name: str) -> str:
    found = _NAME.match(name)
    if found is None:
        return name
    part = _PARTS[found["part"]]
    if found["stage"] is None:
        return f"stem.conv1.{part}"
    return f"res{found['stage']}.{found['block']}.{_BRANCHES[found['branch']]}.{part}"
