"""The network that `gpu.py` measures, how it detects with and without XLA, and whether a device finds what the CPU finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.peers import ours, seeded
from mrcnn_tf.config import ModelConfig, load_config
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.ops.static_graph import static_graph
from tests.parity.stages import match_detections

NETWORK = "torchvision_v1"
"""Whose seeded weights the network has where no configuration is named."""
DRAWN = 4
"""Different pictures in a batch; drawing them takes longer than a step."""
LEAST_IOU, LEAST_SAME, MOST_SCORE_DIFFERENCE = 0.99, 0.99, 1e-3

Detect = Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]


def network(config: str | None) -> MaskRCNN:
    """The network under the current policy and strategy.

    Args:
        config: name or path of a configuration, whose network gets random weights and keeps detections of any score; 80
            classes unless it names them. None: R50-FPN of torchvision with seeded weights, with which all 100 detections come
            out; stem and first stage frozen.
    """
    if config is None:
        return ours.imported(NETWORK, backbone={"frozen_stages": 2})
    model = load_config(config).model
    changes: dict[str, Any] = {"box_head": model.box_head.model_copy(update={"score_threshold": 0.0})}
    if not model.categories:
        changes["categories"] = [{"id": number, "name": str(number)} for number in range(1, 81)]
    return MaskRCNN(ModelConfig.model_validate({**model.model_dump(), **changes}), pretrained=False)


def _plain(model: MaskRCNN) -> Detect:
    return tf.function(lambda inputs: model(inputs, training=False), autograph=False)


def _trunk_compiled(model: MaskRCNN) -> Detect:
    trunk, rest = model.split()
    compiled = tf.function(lambda inputs: trunk(inputs, training=False), jit_compile=True, autograph=False)
    return tf.function(lambda inputs: rest({**inputs, "trunk": compiled(inputs)}, training=False), autograph=False)


def _compiled(model: MaskRCNN) -> Detect:
    @tf.function(jit_compile=True, autograph=False)
    def detect(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with static_graph():
            return model(inputs, training=False)

    return detect


DETECTORS: dict[str, Callable[[MaskRCNN], Detect]] = {"off": _plain, "trunk": _trunk_compiled, "whole": _compiled}
"""What XLA compiles: nothing, the convolutions before the proposals (as `mrcnn-tf export saved-model --xla`), everything."""


def agreement(*, size: Sequence[int], config: str | None) -> dict[str, Any]:
    """Whether the device finds what the CPU finds in a picture, in float32 without TF32, for each of `DETECTORS`.

    Returns:
        `agrees`, of all; and for each how many are found on both, the part of the CPU's whose box is found (same class, IoU above
        0.99), and the largest difference of score and mask probability between those. Where nothing is found, nothing agrees.
    """
    tf.config.experimental.enable_tensor_float_32_execution(False)
    with tf.device("/CPU:0"):
        reference = network(config)
        expected = _rows(DETECTORS["off"](reference)(inputs_of(1, size, "/CPU:0")))
    model = network(config)
    model.set_weights(reference.get_weights())
    inputs = inputs_of(1, size, devices()[0])
    found = {name: _compared(_rows(make(model)(inputs)), expected) for name, make in DETECTORS.items()}
    return {"agrees": all(one["agrees"] for one in found.values()), **found}


def inputs_of(count: int, size: Sequence[int], device: str) -> dict[str, tf.Tensor]:
    """What the network takes, on a device.

    Args:
        count: pictures.
        size: height and width.
        device: its name.
    """
    drawn = seeded.pictures(min(count, DRAWN), *size)
    pictures = np.stack([drawn[number % DRAWN] for number in range(count)]).astype(np.float32)
    return placed({"images": pictures, "image_sizes": np.array([size] * count, np.int32)}, device)


def placed(values: dict[str, np.ndarray], device: str) -> dict[str, tf.Tensor]:
    """Arrays as tensors on a device. A constant alone may stay in the host's memory, to be copied at every call."""
    with tf.device(device):
        return {name: tf.identity(tf.constant(value)) for name, value in values.items()}


def devices() -> list[str]:
    """Names of the GPUs; without any, of the CPUs."""
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name for device in found]


def _rows(outputs: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
    count = int(outputs["num_detections"][0])
    return {name: value.numpy()[0, :count] for name, value in outputs.items() if name != "num_detections"}


def _compared(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, Any]:
    boxes, classes, scores = "detection_boxes", "detection_classes", "detection_scores"
    counts = [len(side[scores]) for side in (found, expected)]
    if not all(counts):
        return {"agrees": False, "detections": counts}
    rows, overlaps = match_detections((found[boxes], found[classes]), (expected[boxes], expected[classes]))
    same = overlaps > LEAST_IOU

    def difference(name: str) -> float:
        return round(float(np.abs(found[name][rows][same] - expected[name][same]).max(initial=0)), 6)

    differences = {"score_difference": difference(scores)}
    agrees = counts[0] == counts[1] and same.mean() >= LEAST_SAME and differences["score_difference"] <= MOST_SCORE_DIFFERENCE
    if "detection_masks" in found:
        differences["mask_difference"] = difference("detection_masks")
    return {"agrees": bool(agrees), "detections": counts, "same": round(float(same.mean()), 4), **differences}
