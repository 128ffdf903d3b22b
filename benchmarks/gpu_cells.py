"""One cell of `gpu.py`, measured in a process of its own: `python -m benchmarks.gpu_cells '{"task": "training", ...}'`.

The last line of its output is JSON. What does not fit into the device's memory gives `{"failed": "out of memory"}`; any other
error ends the process.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mrcnn_tf
from benchmarks.gpu_detectors import DETECTORS, DRAWN, agreement, devices, inputs_of, network, placed
from benchmarks.peers import ours
from mrcnn_tf.config import load_config
from mrcnn_tf.ops.nms import nms_on
from mrcnn_tf.optimizers import build_optimizer
from mrcnn_tf.paste import paste_masks

RECIPE = "mask_rcnn_r50_fpn_1x"
WARM_UP = 3
OBJECTS = 10


def main() -> None:
    """Measure the cell of the last argument."""
    options = json.loads(sys.argv[-1])
    task, device, replicas = options.pop("task"), options.pop("device"), options.get("replicas", 1)
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * max(replicas, 2)
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    elif task != "machine":
        # TensorFlow would take the memory of all of them.
        tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:replicas], "GPU")
    tasks = {"machine": machine, "agreement": agreement, "training": training, "inference": inference}
    try:
        found = tasks[task](**options)
    except tf.errors.OpError as error:
        if not isinstance(error, tf.errors.ResourceExhaustedError) and "out of memory" not in str(error).lower():
            raise
        found = {"failed": "out of memory"}
    print(json.dumps(found))


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.get_visible_devices("GPU")]
    built = tf.sysconfig.get_build_info()
    return {
        "gpus": [gpu.get("device_name", "unknown") for gpu in gpus],
        "compute_capability": [".".join(map(str, gpu.get("compute_capability", ()))) for gpu in gpus],
        "cpu_cores": os.cpu_count(),
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__, "mrcnn_tf": mrcnn_tf.__version__}
        | {name: built[key] for name, key in (("cuda", "cuda_version"), ("cudnn", "cudnn_version")) if key in built},
    }


def training(
    *, size: Sequence[int], config: str | None, steps: int, batch: int, precision: str, xla: bool, replicas: int = 1
) -> dict[str, Any]:
    """Steps as `fit` makes them, on a batch that lies on the devices.

    Args:
        size: height and width.
        config: of the network, see `network`.
        steps: that are timed, after those that warm up.
        batch: pictures of each device.
        precision: the dtype policy.
        xla: compile the forward and backward pass.
        replicas: devices; more than one under `MirroredStrategy`.

    Returns:
        Figures; `images_per_second` over all devices.
    """
    keras.config.set_dtype_policy(precision)
    places = devices()[:replicas]
    strategy = tf.distribute.MirroredStrategy(places) if replicas > 1 else tf.distribute.get_strategy()
    recipe = load_config(RECIPE, [f"train.batch_size={batch * replicas}"])
    with strategy.scope():
        model = network(config)
        model.compile(build_optimizer(recipe.train), jit_compile=xla)
    drawn = ours.batch_of(model, min(batch, DRAWN), *size, OBJECTS)
    rows = np.arange(batch) % DRAWN
    values = {name: value.numpy()[rows] for name, value in drawn.items()}
    data = strategy.experimental_distribute_values_from_function(
        lambda context: placed(values, places[context.replica_id_in_sync_group])
    )
    # Given anything but a dataset, it makes a step of what the iterator gives.
    step, batches = model.make_train_function(), repeat(data)
    figures = _timed(lambda: float(step(batches)["loss"]), steps)
    return {**figures, "images_per_second": round(batch * replicas / figures["seconds"], 2)}


def inference(
    *, size: Sequence[int], config: str | None, steps: int, batch: int, precision: str, xla: str, nms: str
) -> dict[str, Any]:
    """Pictures on the device to detections in memory, masks as probabilities; pasting is timed for itself.

    Args:
        size: height and width.
        config: of the network, see `network`.
        steps: repetitions that are timed, after those that warm up.
        batch: pictures.
        precision: the dtype policy.
        xla: a key of `DETECTORS`.
        nms: "cpu", or "auto": wherever TensorFlow has it.
    """
    keras.config.set_dtype_policy(precision)
    model = network(config)
    detect, inputs = DETECTORS[xla](model), inputs_of(batch, size, devices()[0])

    def run() -> dict[str, np.ndarray]:
        with nms_on({"auto": "", "cpu": "/device:CPU:0"}[nms]):
            return {name: value.numpy() for name, value in detect(inputs).items()}

    figures = _timed(run, steps)
    found = run()
    counts = found["num_detections"]
    figures |= {"milliseconds_per_image": round(1000 * figures["seconds"] / batch, 2), "detections": int(counts.sum())}
    if model.config.mask_head.enabled:
        masks, boxes = (found[f"detection_{name}"][0, : counts[0]] for name in ("masks", "boxes"))
        pasting = statistics.median(_seconds(lambda: paste_masks(masks, boxes, tuple(size))) for _ in range(3))
        figures["paste_milliseconds_per_image"] = round(1000 * pasting, 2)
    return figures


def _timed(run: Callable[[], Any], steps: int) -> dict[str, Any]:
    """`run` must wait for the device. Memory is that of the timed repetitions; what compiling takes is told apart."""
    first = _seconds(run)
    first_peak = _peak_gib()
    for _ in range(WARM_UP):
        run()
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    for gpu in gpus:
        tf.config.experimental.reset_memory_stats(gpu)
    seconds = [_seconds(run) for _ in range(steps)]
    return {
        "seconds": statistics.median(seconds),
        "least_and_most_seconds": [min(seconds), max(seconds)],
        "first_seconds": round(first, 2),
        "peak_gib": _peak_gib(),
        "first_peak_gib": first_peak,
        "tf32": _has_tf32(),
    }


def _has_tf32() -> bool:
    """Whether float32 is computed in TF32: TensorFlow allows it unless told otherwise, GPUs have it from Ampere on."""
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.get_visible_devices("GPU")]
    allowed = tf.config.experimental.tensor_float_32_execution_enabled()
    return allowed and any(gpu.get("compute_capability", (0,))[0] >= 8 for gpu in gpus)


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _peak_gib() -> float:
    """Of the fullest GPU; without one, of the process."""
    gpus = tf.config.list_logical_devices("GPU")
    if not gpus:
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
    return round(max(tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus) / 2**30, 3)


if __name__ == "__main__":
    main()
