"""What the training recipes cost the input pipeline, beside torchvision's transforms doing the same work.

    python benchmarks/recipes.py --images DIR --annotations FILE [--peer-python PATH] [--rounds 3] [--epochs 3] [--seconds 20]
        [--side 1024] [--batch 2] [--threads 2] [--recipes plain jitter paste] [--systems ours torchvision]

`plain` draws a shortest edge and flips; `jitter` is large-scale jitter (0.1 to 2.0 of `--side`), a crop, colour jitter and the
flip; `paste` pastes objects of a second picture, made likewise, besides. `ours` is `coco_dataset` without caches and with so
many threads; `torchvision` is `recipes_torchvision.py`, a DataLoader with so many worker processes, run by `--peer-python`.
Every run is a process of its own, the processes take turns, and medians over rounds are reported: images a second, images per
second of processor time (per busy core), and bytes an image takes on disk, decoded, and in a batch. Writes
`benchmarks/recipes.json`. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from epochs import measure_epochs

RECIPES = ("plain", "jitter", "paste")
SYSTEMS = ("ours", "torchvision")
SCALES, COLOURS = (0.1, 2.0), {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
_EDGES = (0.625, 0.78)
"""Shortest edges of `plain`, as parts of the side: 640 and 799 of 1024."""
_OUTPUT = Path(__file__).with_suffix(".json")


def main() -> None:
    """Run the systems in turn and write the table."""
    arguments = _arguments()
    if arguments.worker:
        print(json.dumps(_measure(arguments)))
        return
    runs: dict[str, list[dict]] = {f"{system}_{recipe}": [] for recipe in arguments.recipes for system in arguments.systems}
    for _ in range(arguments.rounds):
        for recipe in arguments.recipes:
            for system in arguments.systems:
                runs[f"{system}_{recipe}"].append(_run(system, recipe, arguments))
                print(system, recipe, runs[f"{system}_{recipe}"][-1], file=sys.stderr)
    medians = {name: _medians(found) for name, found in runs.items()}
    ratios = {
        recipe: round(medians[f"ours_{recipe}"]["per_core"] / medians[f"torchvision_{recipe}"]["per_core"], 2)
        for recipe in arguments.recipes
        if len(arguments.systems) == len(SYSTEMS)
    }
    written = {"medians": medians, "per_core_to_torchvision": ratios, "files": _file_bytes(arguments), "runs": runs}
    _OUTPUT.write_text(json.dumps(written, indent=1) + "\n")
    print(json.dumps({key: value for key, value in written.items() if key != "runs"}, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO JSON of the images, with masks")
    parser.add_argument("--peer-python", type=Path, help="Python with torch, torchvision and pycocotools; none: no peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="fewest epochs of a run")
    parser.add_argument("--seconds", type=float, default=20, help="shortest run")
    parser.add_argument("--side", type=int, default=1024, help="padded height and width, a multiple of 64")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="threads of ours, worker processes of torchvision (0: none)")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS)
    parser.add_argument("--worker", choices=RECIPES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.systems = arguments.systems or list(SYSTEMS if arguments.peer_python else SYSTEMS[:1])
    if "torchvision" in arguments.systems and not arguments.peer_python:
        parser.error("torchvision needs --peer-python")
    if arguments.epochs < 3:
        parser.error("--epochs must be at least 3")
    return arguments


def _run(system: str, recipe: str, arguments: argparse.Namespace) -> dict:
    script = Path(__file__) if system == "ours" else Path(__file__).with_name("recipes_torchvision.py")
    command = [sys.executable if system == "ours" else arguments.peer_python, script, "--worker", recipe]
    for name in ("images", "annotations", "epochs", "seconds", "side", "batch", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    if system == "torchvision":
        command += [
            "--scales",
            *map(str, SCALES),
            "--colours",
            *map(str, COLOURS.values()),
            "--edges",
            *map(str, _edges(arguments)),
        ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(f"{system} {recipe} failed:\n{finished.stderr[-4000:]}")
    figures = json.loads(finished.stdout.splitlines()[-1])
    return figures | {"per_core": round(1000 / figures["cpu_ms"], 1)}


def _medians(runs: list[dict]) -> dict[str, float]:
    numbers = [key for key, value in runs[0].items() if isinstance(value, int | float)]
    return {key: round(statistics.median(run[key] for run in runs), 3) for key in numbers}


def _edges(arguments: argparse.Namespace) -> list[int]:
    return [int(part * arguments.side) for part in _EDGES]


def _file_bytes(arguments: argparse.Namespace) -> dict[str, float]:
    """Mean bytes of an image on disk and decoded."""
    entries = json.loads(arguments.annotations.read_text())["images"]
    on_disk = [(arguments.images / entry["file_name"]).stat().st_size for entry in entries]
    return {"disk": statistics.mean(on_disk), "decoded": statistics.mean(3 * e["height"] * e["width"] for e in entries)}


def _measure(arguments: argparse.Namespace) -> dict:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from mrcnn_tf.config import load_config
    from mrcnn_tf.data import coco_dataset, pipeline

    pipeline.CACHE_BYTES = 0
    side = arguments.side
    overrides = [f"data.image_size=[{side}, {side}]", f"data.max_size={side}", f"data.min_sizes={_edges(arguments)}"]
    overrides += [f"data.num_workers={arguments.threads or 1}", f"train.batch_size={arguments.batch}"]
    if arguments.worker != "plain":
        overrides += [f"data.scale_jitter={list(SCALES)}", f"data.colour_jitter={json.dumps(COLOURS)}"]
        overrides += [f"data.copy_paste={json.dumps(arguments.worker == 'paste')}"]
    dataset = coco_dataset(arguments.images, arguments.annotations, load_config("mask_rcnn_r50_fpn_1x", overrides))

    def run_epoch() -> int:
        return sum(len(batch["images"]) for batch in dataset)

    of_batch = sum(spec.shape.num_elements() * spec.dtype.size for spec in dataset.element_spec.values())
    figures = measure_epochs(run_epoch, epochs=arguments.epochs, seconds=arguments.seconds)
    return figures | {"batch_bytes": round(of_batch / arguments.batch)}


if __name__ == "__main__":
    main()
