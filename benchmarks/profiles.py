"""Where the time of a picture and of a training step goes, by TensorFlow's profiler, beside the bare convolutions.

    python benchmarks/profiles.py [--tasks inference training] [--threads 2] [--output benchmarks/profiles.json]

R50-FPN with the seeded weights of `compare.py`: a picture of 800 x 1216, a step at 512 x 512. The profiler sees every operation
of the graph; they run one after the other here (one inter-op thread), so that their times add up. Each is counted to
the layer whose scope it stands in, its gradient too. Medians over the profiled repetitions. The bare convolutions of a part
are timed in the same process. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

TASKS = {"inference": (800, 1216), "training": (512, 512)}
PRODUCTS = ("Conv2D", "MatMul", "BackpropFilter", "BackpropInput")
PARTS = {
    "trunk": r"resnet\w*|backbone",
    "pyramid": r"fpn",
    "RPN head": r"rpn_head",
    "proposals": r"anchors|proposals|train_proposals|rpn_losses|roi_sampler|proposal_recall|roi_positives",
    "ROIAlign": r"box_pool|mask_pool",
    "box head": r"box_head|box_losses",
    "mask head": r"mask_head|mask_predictor|mask_loss|mask_targets|mask_probabilities",
    "detections": r"detect_boxes|box_scatter|mask_scatter|\w+_rows|\w+_classes|\w+_values|matched_boxes",
    "input": r"normalize|image_windows|input_windows",
}
"""The layers of each part, by the names of their scopes."""
_OUTPUT = Path(__file__).with_suffix(".json")
_TOP = 12


def main() -> None:
    """Profile each task in a process of its own and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    parser.add_argument("--worker", choices=TASKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(profile(arguments.worker, arguments.threads, arguments.repeats)))
        return
    found = {}
    for task in arguments.tasks:
        command = [sys.executable, __file__, "--worker", task]
        options = ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
        finished = subprocess.run(command + options, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        found[task] = json.loads(finished.stdout.splitlines()[-1])
        print(_tables(task, found[task]))
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")


def profile(task: str, threads: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of a repetition: in all, by part and by kind of operation, and of the bare convolutions by part."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from benchmarks.peers import ours

    height, width = TASKS[task]
    size = {"height": height, "width": width}
    if task == "inference":
        repeat, products = ours.inference(weights="torchvision_v1", **size), ours.inference_products("torchvision_v1", **size)
    else:
        repeat, products = ours.training(**size), ours.training_products(**size)
    for _ in range(2):
        repeat()
    walls, runs = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        repeat()
        walls.append(1000 * (time.perf_counter() - began))
        runs.append(_operations(repeat))
    names = {name for run in runs for name in run}
    operations = {name: statistics.median(run.get(name, 0.0) for run in runs) for name in names}
    return {
        "all_ms": round(statistics.median(walls), 1),
        "operations_ms": round(sum(operations.values()), 1),
        "parts": _parts(operations, products, training=task == "training", repeats=repeats),
        "kinds": _largest(operations, lambda name: name.rpartition(":")[2]),
    }


def part_of(name: str) -> str:
    """The part that an operation `scope/.../name:Kind` belongs to: that of the first scope which is a layer of one."""
    for scope in name.partition(":")[0].split("/"):
        layer = re.sub(r"(_\d+)+$", "", scope)
        for part, pattern in PARTS.items():
            if re.fullmatch(pattern, layer):
                return part
    return "others"


def _operations(repeat: Any) -> dict[str, float]:
    """Milliseconds of each operation `name:Kind` in one repetition."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            repeat()
        space = xplane_pb2.XSpace()
        space.ParseFromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    found: Counter[str] = Counter()
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            name = plane.event_metadata[event.metadata_id].name
            # Others are the runtime's own doings, and functions, whose operations are there as well.
            if re.fullmatch(r"[^: ]+:[A-Z_]\w+", name) and not name.endswith(("PartitionedCall", ":If", ":While")):
                found[name] += event.duration_ps / 1e9
    return dict(found)


def _parts(operations: dict[str, float], products: list, *, training: bool, repeats: int) -> dict[str, dict[str, float]]:
    totals = _largest(operations, part_of)
    of_products = _largest({name: value for name, value in operations.items() if _is_product(name)}, part_of)
    bare = {part: _bare(group, training, repeats) for part, group in _by_part(products).items()}
    return {
        part: {"ms": total, "products_ms": of_products.get(part, 0.0), "bare_ms": bare.get(part, 0.0)}
        for part, total in totals.items()
    }


def _is_product(name: str) -> bool:
    return any(kind in name.rpartition(":")[2] for kind in PRODUCTS) and "Sparse" not in name


def _by_part(products: list) -> dict[str, list]:
    found: dict[str, list] = {}
    for product in products:
        found.setdefault(part_of(product.scope), []).append(product)
    return found


def _bare(products: list, training: bool, repeats: int) -> float:
    from benchmarks.peers.convolutions import limit

    run = limit(products, training=training)
    run()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(taken), 1)


def _largest(operations: dict[str, float], key: Any) -> dict[str, float]:
    found: Counter[str] = Counter()
    for name, value in operations.items():
        found[key(name)] += value
    return {name: round(value, 1) for name, value in found.most_common()}


def _tables(task: str, found: dict[str, Any]) -> str:
    bare = sum(part["bare_ms"] for part in found["parts"].values())
    lines = [
        f"{task}: {found['all_ms']:.0f} ms without the profiler, {found['operations_ms']:.0f} ms in operations; "
        f"bare convolutions {bare:.0f} ms, ratio {found['all_ms'] / bare:.2f}",
        "",
        "| part | ms | of that convolutions and products | the same, bare | share |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, part in found["parts"].items():
        share = part["ms"] / found["operations_ms"]
        lines.append(f"| {name} | {part['ms']:.0f} | {part['products_ms']:.0f} | {part['bare_ms']:.0f} | {share:.0%} |")
    lines += ["", "| operation | ms |", "| --- | --- |"]
    lines += [f"| {kind} | {value:.0f} |" for kind, value in list(found["kinds"].items())[:_TOP]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
