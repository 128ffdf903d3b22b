"""Parts that are frozen and thawed between steps."""

from __future__ import annotations

import pytest

from mrcnn_tf.modeling.freezing import freeze
from mrcnn_tf.optimizers import CoupledSGD
from tests.batches import make_batch, with_model
from tests.modeling.steps import (
    PARTS,
    build,
    dataset_of,
    named,
    numpy,
    one_device,
    two_devices,
    weights,
)

STRATEGIES = pytest.mark.parametrize("strategy", [one_device, pytest.param(two_devices, marks=pytest.mark.slow)])


@STRATEGIES
def test_freezing_and_thawing_parts_between_steps(tiny_config, strategy):
    config = with_model(tiny_config, backbone={"frozen_stages": 1})
    model = build(config, strategy(), optimizer=lambda: CoupledSGD(0.05, average_momentum=0.1))
    dataset = dataset_of([make_batch(2)])

    def moved():
        before = {name: numpy(variable) for name, variable in named(model).items()}
        model.fit(dataset, verbose=0, shuffle=False)
        return {name for name, variable in named(model).items() if (numpy(variable) != before[name]).any()}

    kernels = {name for name in weights(model) if name.endswith("kernel")}
    freeze(model, frozen_stages=5, parts=["fpn", "rpn_head", "mask_head"])
    found = moved()
    assert {name for name in kernels if name.startswith("box_head/")} <= found
    assert {name.split("/")[0] for name in found} == {"box_head"}
    freeze(model, frozen_stages=4)
    found = moved()
    blocks = {name.split("/")[1].split("_")[0] for name in found if name.startswith("backbone/")}
    assert blocks == {"block11", "block12", "block13", "block14", "block15"}
    assert {name.split("/")[0] for name in found} == set(PARTS)
    freeze(model, frozen_stages=1)
    assert kernels <= moved()
    with pytest.raises(ValueError, match="at least the 1"):
        freeze(model, frozen_stages=0)
