"""Size and latency of TFLite files: float16 and int8 as ratios to float32, and where the time of a picture goes.

    python benchmarks/edge.py [--rounds 5] [--networks lite0 r50] [--output benchmarks/edge.json]

One thread, ai-edge-litert, signature `full`; the files of a network in turns, medians over rounds. ROIAlign is in the stages
`propose` and `detect`, beside decoding and suppression; its own time is that of two more files, which hold nothing else and are
given the features and boxes of the picture. 100 proposals and 50 detections for EfficientNet-Lite0, 300 and 100 for
ResNet-50. The weights are random and there are four classes, so that all rows of
detections are taken; what is found means nothing here, and the files are written with `allow_mismatch`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

NETWORKS = {"lite0": ("coco_open_effnet_lite0", 320), "r50": ("mask_rcnn_r50_fpn_1x", 512)}
PRECISIONS = ("float32", "float16", "int8")
CALIBRATION = 16
PROPOSALS, DETECTIONS = {"lite0": 100, "r50": 300}, {"lite0": 50, "r50": 100}
_OUTPUT = Path(__file__).with_suffix(".json")


def main() -> None:
    """Export, measure in turns, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {name: _network(name, Path(folder), arguments.rounds) for name in arguments.networks}
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def _network(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    import keras
    from PIL import Image

    import mrcnn_tf
    from mrcnn_tf.data.shapes import CATEGORIES, draw_shapes
    from mrcnn_tf.export.edge_inputs import edge_input
    from mrcnn_tf.export.edge_runtimes import EdgeRunner
    from mrcnn_tf.export.tflite import export_tflite

    config, side = NETWORKS[name]
    keras.utils.set_random_seed(0)
    sizes = [f"model.preprocessing.min_size={side}", f"model.preprocessing.max_size={side}", "model.backbone.weights=null"]
    model = mrcnn_tf.MaskRCNN(mrcnn_tf.load_config(config, sizes).with_categories(CATEGORIES))
    pictures = folder / name / "pictures"
    pictures.mkdir(parents=True)
    for number in range(CALIBRATION):
        Image.fromarray(draw_shapes(0, number, image_size=(side, side))[0]).save(pictures / f"{number}.png")
    image = draw_shapes(1, 0, image_size=(side, side))[0]
    sizes_of, runners = {}, {}
    for precision in PRECISIONS:
        bundle = export_tflite(
            model,
            folder / name / precision,
            image_size=(side, side),
            precision=precision,
            calibration=[pictures],
            proposals=PROPOSALS[name],
            max_detections=DETECTIONS[name],
            allow_mismatch=True,
            report=lambda line: print(line, file=sys.stderr),
        )
        content = (bundle / "model.tflite").read_bytes()
        sizes_of[precision] = len(content)
        runners[precision] = EdgeRunner(content)
    picture = edge_input(image, model.config, (side, side))._asdict()
    aligns = _roi_aligns(model, runners["float32"], picture)
    align_seconds: dict[str, list[float]] = {pool: [] for pool in aligns}
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    stages: dict[str, list[dict[str, float]]] = {precision: [] for precision in PRECISIONS}
    for number in range(rounds + 1):
        for precision, run in runners.items():
            started = time.perf_counter()
            run("full", picture)
            taken = time.perf_counter() - started
            parts = _stages(run, picture)
            if number:
                seconds[precision].append(taken)
                stages[precision].append(parts)
        for pool, align in aligns.items():
            started = time.perf_counter()
            align()
            if number:
                align_seconds[pool].append(time.perf_counter() - started)
    align_ms = {pool: round(1000 * statistics.median(values), 1) for pool, values in align_seconds.items()}
    milliseconds = {precision: round(1000 * statistics.median(values), 1) for precision, values in seconds.items()}
    return {
        "config": config,
        "image_size": side,
        "bytes": sizes_of,
        "size_ratio": {key: round(value / sizes_of["float32"], 3) for key, value in sizes_of.items()},
        "full_ms": milliseconds,
        "latency_ratio": {key: round(value / milliseconds["float32"], 3) for key, value in milliseconds.items()},
        "stages_ms": {
            precision: {stage: round(1000 * statistics.median(run[stage] for run in runs), 1) for stage in runs[0]}
            for precision, runs in stages.items()
        },
        "roi_align_ms": align_ms,
        "roi_align_share": {key: round(sum(align_ms.values()) / value, 3) for key, value in milliseconds.items()},
    }


def _roi_aligns(model: Any, run: Any, picture: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """ROIAlign of the box head and of the mask head alone, on what the file finds in the picture."""
    import tensorflow as tf

    from mrcnn_tf.export.edge_runtimes import EdgeRunner
    from mrcnn_tf.ops.static_graph import static_graph

    size = {"image_size": picture["image_size"]}
    seen = run("trunk", picture)
    features = {name: value for name, value in seen.items() if name.startswith("p")}
    pools = {
        "box_pool": (model.get_layer("box_pool"), run("propose", {**size, **seen})["rois"]),
        "mask_pool": (model.get_layer("mask_pool"), run("full", picture)["detection_boxes"]),
    }
    found: dict[str, Callable[[], Any]] = {}
    for name, (pool, boxes) in pools.items():

        def align(boxes: Any, pool: Any = pool, **maps: Any) -> dict[str, Any]:
            with static_graph():
                return {"regions": pool(list(maps.values()), boxes, tf.range(boxes.shape[1]))}

        inputs = {**features, "boxes": boxes}
        specs = {key: tf.TensorSpec(value.shape, value.dtype, name=key) for key, value in inputs.items()}
        function = tf.function(align, autograph=False).get_concrete_function(**specs)
        module = tf.Module()
        with tempfile.TemporaryDirectory() as folder:
            options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
            tf.saved_model.save(module, folder, signatures={name: function}, options=options)
            content = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[name]).convert()
        found[name] = partial(EdgeRunner(bytes(content)), name, inputs)
    return found


def _stages(run: Any, picture: dict[str, Any]) -> dict[str, float]:
    """Seconds of each signature of a picture, `mask` as often as all rows of detections need it."""
    import numpy as np

    times: dict[str, float] = {}

    def timed(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        outputs = run(name, inputs)
        times[name] = times.get(name, 0.0) + time.perf_counter() - started
        return outputs

    size = {"image_size": picture["image_size"]}
    seen = timed("trunk", picture)
    proposed = timed("propose", {**size, **seen})
    answered = timed("box", {"regions": proposed.pop("regions")})
    features = {name: value for name, value in seen.items() if name.startswith("p")}
    found = timed("detect", {**size, **features, **proposed, **answered})
    regions, classes = found["mask_regions"], found["detection_classes"][0].astype(np.int32)
    for start in range(0, len(regions) - 7, 8):
        timed("mask", {"regions": regions[start : start + 8], "classes": classes[start : start + 8]})
    return times


if __name__ == "__main__":
    main()
