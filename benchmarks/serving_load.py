"""Load on an exported SavedModel: clients at once, with and without batching, latency, throughput and memory.

    python benchmarks/serving_load.py [--config coco_open_effnet_lite0] [--requests 500] [--clients 1 2 4 8] [--variants ...]

The server is the stand-in of `tests/serving` for TensorFlow Serving: the SavedModel runs in the session loader of the C
API, behind gRPC and a batching queue written in Python, so the figures are of the graph, not of the real server. It shares the
machine's cores with the clients. The model has random weights and four classes, so that every picture has as many detections,
with masks, as the model gives at most: the dearest case. Pictures are drawn, 512 x 512, JPEG. `predictor` is `mrcnn_tf.Predictor`
in a process of its own, decoding included, and what the others are compared with. Every variant is exported by itself. Writes
`benchmarks/serving_load.json`. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {
    "one_by_one": ((), False),
    "batching": ((), True),
    "batching_xla": (("xla",), True),
    "one_by_one_xla": (("xla",), False),
    "one_by_one_bfloat16": (("bfloat16",), False),
}
SIDE, PICTURES, WARMING = 512, 8, 20
_OUTPUT = Path(__file__).with_suffix(".json")


def main() -> None:
    """Measure the predictor, then each variant, and write the table."""
    arguments = _arguments()
    if arguments.worker:
        print(json.dumps(_predictor(arguments.worker, arguments.pictures)))
        return
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        model, pictures = _prepare(Path(folder), arguments.config)
        found = {"config": arguments.config, "predictor": [], "variants": {}}
        worker = [sys.executable, __file__, "--worker", str(model), "--pictures", str(pictures)]
        for name in arguments.variants:
            # In turns with the variants, for what else the machine may be doing.
            found["predictor"].append(json.loads(subprocess.run(worker, check=True, capture_output=True, text=True).stdout))
            print("predictor", found["predictor"][-1], file=sys.stderr)
            found["variants"][name] = _variant(name, model, pictures, Path(folder) / name, arguments)
    base = statistics.median(run["pictures_per_second"] for run in found["predictor"])
    for runs in found["variants"].values():
        for run in runs["runs"]:
            run["to_predictor"] = round(run["pictures_per_second"] / base, 2)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="coco_open_effnet_lite0")
    parser.add_argument("--requests", type=int, default=500, help="of each variant, spread over the numbers of clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["one_by_one", "batching"])
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _prepare(folder: Path, config: str) -> tuple[Path, Path]:
    import keras
    from PIL import Image

    import mrcnn_tf
    from mrcnn_tf.data.shapes import CATEGORIES, draw_shapes

    keras.utils.set_random_seed(0)
    sizes = [f"model.preprocessing.min_size={SIDE}", f"model.preprocessing.max_size={SIDE}", "model.backbone.weights=null"]
    resolved = mrcnn_tf.load_config(config, sizes).with_categories(CATEGORIES)
    mrcnn_tf.MaskRCNN(resolved).save(folder / "model.keras")
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(PICTURES):
        image, _ = draw_shapes(0, number, image_size=(SIDE, SIDE))
        Image.fromarray(image).save(pictures / f"{number}.jpg", quality=90)
    return folder / "model.keras", pictures


def _predictor(model: Path, pictures: Path) -> dict:
    sys.path.insert(0, str(ROOT))
    import mrcnn_tf
    from mrcnn_tf.modeling.mask_rcnn import load_model

    predict = mrcnn_tf.Predictor(load_model(model))
    paths = sorted(pictures.iterdir())
    seconds = []
    for number in range(WARMING + 5 * PICTURES):
        started = time.perf_counter()
        found = predict(mrcnn_tf.data.load_image(paths[number % PICTURES]))
        seconds.append(time.perf_counter() - started)
    measured = seconds[WARMING:]
    return {"detections": len(found), "pictures_per_second": round(len(measured) / sum(measured), 2), **_percentiles(measured)}


def _variant(name: str, model: Path, pictures: Path, served: Path, arguments: argparse.Namespace) -> dict:
    from mrcnn_tf.export.saved_model import export_saved_model
    from mrcnn_tf.modeling.mask_rcnn import load_model
    from tests.serving.model_server import serve

    options, is_batching = VARIANTS[name]
    export_saved_model(
        load_model(model),
        served,
        xla="xla" in options,
        precision="bfloat16" if "bfloat16" in options else None,
        max_batch_size=4,
        warmup=[pictures / "0.jpg"],
    )
    data = [path.read_bytes() for path in sorted(pictures.iterdir())]
    flags = ["--enable_batching=true", f"--batching_parameters_file={served / 'batching.config'}"] if is_batching else []
    started = time.perf_counter()
    with serve(served, log=served / "server.log", flags=flags, timeout=1200) as server:
        loaded = time.perf_counter() - started
        runs, memory = [], [_resident(server.pid)]
        for clients in arguments.clients:
            runs.append(_run(server.grpc_port, data, clients, arguments.requests // len(arguments.clients)))
            memory.append(_resident(server.pid))
            print(name, runs[-1], memory[-1], file=sys.stderr)
    return {"seconds_to_load_and_warm_up": round(loaded, 1), "resident_mib": memory, "runs": runs}


def _run(port: int, pictures: list[bytes], clients: int, requests: int) -> dict:
    share = requests // clients
    seconds: list[float] = []
    threads = [
        threading.Thread(
            target=_client, args=(port, pictures[number % PICTURES :] + pictures[: number % PICTURES], share, seconds)
        )
        for number in range(clients)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = len(seconds) / (time.perf_counter() - started)
    if len(seconds) != share * clients:
        sys.exit("a client failed")
    return {"clients": clients, "requests": len(seconds), "pictures_per_second": round(rate, 2), **_percentiles(seconds)}


def _client(port: int, pictures: list[bytes], requests: int, seconds: list[float]) -> None:
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", 1 << 26)]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for number in range(requests):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "mask_rcnn"
            request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([pictures[number % len(pictures)]]))
            started = time.perf_counter()
            answer = stub.Predict(request, timeout=300)
            seconds.append(time.perf_counter() - started)
            if tf.make_ndarray(answer.outputs["image_errors"])[0]:
                raise RuntimeError("a picture was not read")


def _percentiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"p{number}_ms": round(1000 * cuts[number - 1], 1) for number in (50, 90, 99)}


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    raise RuntimeError(f"no VmRSS of process {pid}")


if __name__ == "__main__":
    main()
