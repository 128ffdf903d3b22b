"""Speed and memory of the input pipeline, beside a torchvision pipeline doing the same work and the training steps it feeds.

    python benchmarks/input_pipeline.py [--images DIR --annotations FILE] [--peer-python PATH] [--rounds 3] [--epochs 5]
        [--seconds 10] [--systems ...]

Images of a shortest edge of 480 or 512, flipped at random, padded to 512 x 512 and normalised, with boxes and masks; without
`--images` shapes are drawn. Every system runs in a process of its own, the processes alternate, and what is reported are medians
over rounds. `ours_*` are `coco_dataset` with two threads: without its caches, with them, with caches too small for the data, and
without caches but resizing as torchvision does. `torchvision_N` is `input_pipeline_torchvision.py` with N worker processes, run
by the Python of `--peer-python`. `step_*` are training steps of two models, on one batch held in memory and, in turns, fed by
the pipeline without caches. Writes `benchmarks/input_pipeline.json`. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from epochs import measure_epochs

OURS = ("ours_uncached", "ours_cached", "ours_small_cache", "ours_as_torchvision")
PEERS = {"torchvision_0": 0, "torchvision_2": 2}
STEPS = {"step_r50_fpn": "mask_rcnn_r50_fpn_1x", "step_lite0": "coco_open_effnet_lite0"}
SYSTEMS = (*OURS, *PEERS, *STEPS)
SIDE, MIN_SIZES, BATCH = 512, (480, 512), 2
_SMALL_CACHE_BYTES = 32 * 2**20
_DRAWN = 100
_STEPS = 10
_OUTPUT = Path(__file__).with_suffix(".json")


def main() -> None:
    """Run the systems in turn and write the table."""
    arguments = _arguments()
    if arguments.worker:
        print(json.dumps(_measure(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images is None:
            arguments.images, arguments.annotations = _draw(Path(folder))
        runs: dict[str, list[dict]] = {system: [] for system in arguments.systems}
        for _ in range(arguments.rounds):
            for system in arguments.systems:
                runs[system].append(_run(system, arguments))
                print(system, runs[system][-1], file=sys.stderr)
    if len({run["images"] for found in runs.values() for run in found if "images" in run}) > 1:
        sys.exit(f"the systems disagree about the images of an epoch: {runs}")
    medians = {system: _medians(found) for system, found in runs.items()}
    ratios = _ratios(medians)
    _OUTPUT.write_text(json.dumps({"medians": medians, "ratios": ratios, "runs": runs}, indent=1) + "\n")
    print(json.dumps({"medians": medians, "ratios": ratios}, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of the images; none: shapes are drawn")
    parser.add_argument("--annotations", type=Path, help="COCO JSON of the images")
    parser.add_argument("--peer-python", type=Path, help="Python with torch, torchvision and pycocotools; none: no peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5, help="fewest epochs of a round")
    parser.add_argument("--seconds", type=float, default=10, help="shortest round of a pipeline")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS)
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if (arguments.images is None) != (arguments.annotations is None):
        parser.error("--images and --annotations belong together")
    if arguments.epochs < 3:
        parser.error("--epochs must be at least 3: the first fills the caches, and memory is compared with that after the second")
    available = [system for system in SYSTEMS if arguments.peer_python or system not in PEERS]
    arguments.systems = arguments.systems or available
    if not set(arguments.systems) <= set(available):
        parser.error("the torchvision systems need --peer-python")
    return arguments


def _draw(folder: Path) -> tuple[Path, Path]:
    from mrcnn_tf.data.shapes import write_shapes

    annotations = write_shapes(folder, num_images=_DRAWN, seed=0, image_size=(480, 640))
    return folder / "images", annotations


def _run(system: str, arguments: argparse.Namespace) -> dict:
    measured = ["--epochs", str(arguments.epochs), "--seconds", str(arguments.seconds)]
    if system in PEERS:
        script = Path(__file__).with_name("input_pipeline_torchvision.py")
        command = [arguments.peer_python, script, arguments.images, arguments.annotations, *measured]
        command += ["--workers", str(PEERS[system]), "--batch", str(BATCH), "--side", str(SIDE)]
        command += ["--min-sizes", *map(str, MIN_SIZES)]
    else:
        command = [sys.executable, __file__, "--worker", system, *measured]
        command += ["--images", arguments.images, "--annotations", arguments.annotations]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(f"{system} failed:\n{finished.stderr[-4000:]}")
    return json.loads(finished.stdout.splitlines()[-1])


def _medians(runs: list[dict]) -> dict[str, float]:
    numbers = [key for key, value in runs[0].items() if isinstance(value, int | float)]
    return {key: round(statistics.median(run[key] for run in runs), 3) for key in numbers}


def _ratios(medians: dict[str, dict]) -> dict[str, float]:
    """Images a second of every pipeline by those of every peer and every training step; wherever both were run."""
    speeds = {system: figures["images_per_second"] for system, figures in medians.items()}
    return {
        f"{pipeline} / {other}": round(speeds[pipeline] / speeds[other], 2)
        for pipeline in OURS
        for other in (*PEERS, *STEPS)
        if pipeline in speeds and other in speeds
    }


def _measure(arguments: argparse.Namespace) -> dict:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if arguments.worker in STEPS:
        return _measure_step(STEPS[arguments.worker], arguments)
    return _measure_pipeline(arguments)


def _measure_pipeline(arguments: argparse.Namespace) -> dict:
    import tensorflow as tf

    how = {"antialias": False, "quantize": False, "resize_rounding": "floor"}
    as_torchvision = arguments.worker == "ours_as_torchvision"
    config = _config("mask_rcnn_r50_fpn_1x", how if as_torchvision else {})
    preprocessing = config.model.preprocessing

    @tf.function
    def normalise(images: tf.Tensor) -> tf.Tensor:
        return (tf.cast(images, tf.float32) - preprocessing.pixel_mean) / preprocessing.pixel_std

    cache_bytes = {"ours_cached": None, "ours_small_cache": _SMALL_CACHE_BYTES}.get(arguments.worker, 0)
    dataset = _dataset(config, arguments, cache_bytes)

    def run_epoch() -> int:
        images = 0
        for batch in dataset:
            pixels = normalise(batch["images"])
            assert pixels.shape == (BATCH, SIDE, SIDE, 3), pixels.shape
            images += len(pixels)
        return images

    return measure_epochs(run_epoch, epochs=arguments.epochs, seconds=arguments.seconds)


def _measure_step(name: str, arguments: argparse.Namespace) -> dict:
    """Seconds of a step on one batch held in memory, of a step fed by the pipeline, and of the wait for its batch."""
    import tensorflow as tf

    from mrcnn_tf.data import read_annotations
    from mrcnn_tf.train import build_model

    config = _config(name, {})
    categories = read_annotations(arguments.annotations).categories
    model = build_model(config.with_categories(categories))
    batches = iter(_dataset(config, arguments, 0).repeat())
    held = next(batches)
    step = tf.function(model.train_step)
    float(step(held)["loss"])
    alone, fed, waits = [], [], []
    # In turns, so that a slower minute of the machine strikes both; the pipeline fills its buffers and rests in between.
    for _ in range(_STEPS):
        alone.append(_seconds(lambda: float(step(held)["loss"])))
        began = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - began)
        fed.append(waits[-1] + _seconds(lambda batch=batch: float(step(batch)["loss"])))
    return {
        "images_per_second": round(BATCH / statistics.median(alone), 2),
        "step_seconds": round(statistics.median(alone), 3),
        "fed_step_seconds": round(statistics.median(fed), 3),
        "wait_ms": round(statistics.median(waits) * 1000, 2),
    }


def _seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _config(name: str, preprocessing: dict):
    from mrcnn_tf.config import load_config

    overrides = [f"data.min_sizes={list(MIN_SIZES)}", f"data.max_size={SIDE}", f"data.image_size={[SIDE, SIDE]}"]
    overrides += ["data.num_workers=2", f"train.batch_size={BATCH}", "train.strategy=none", "train.xla=off"]
    overrides += ["model.backbone.weights=null", *(f"model.preprocessing.{key}={value}" for key, value in preprocessing.items())]
    return load_config(name, overrides)


def _dataset(config, arguments: argparse.Namespace, cache_bytes: int | None):
    """The training data set with caches of so many bytes; None: as they are."""
    from mrcnn_tf.data import coco_dataset, pipeline

    pipeline.CACHE_BYTES = pipeline.CACHE_BYTES if cache_bytes is None else cache_bytes
    return coco_dataset(arguments.images, arguments.annotations, config)


if __name__ == "__main__":
    main()
