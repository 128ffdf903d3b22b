"""What several machines must move: bytes of gradients a step and a ring's time for them, bytes and seconds of a checkpoint.

    python benchmarks/scale.py

builds the published baselines with random weights and COCO's 80 classes, and writes benchmarks/scale.json.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

CONFIGS = ("mask_rcnn_r50_fpn_1x", "mask_rcnn_r101_fpn_3x", "mask_rcnn_x101_32x8d_fpn_3x")
GBITS = (10, 25, 100, 400)
MACHINES = (2, 8, 100)
_OUTPUT = Path(__file__).with_suffix(".json")


def main() -> None:
    """Measure the models one after the other and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS))
    found = {name: measure(name) for name in parser.parse_args().configs}
    _OUTPUT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def measure(name: str) -> dict:
    """Bytes of gradients (float32), of a checkpoint with its momenta, seconds to write and read it, a ring's milliseconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np

    from mrcnn_tf.callbacks import save_checkpoint
    from mrcnn_tf.config import load_config
    from mrcnn_tf.resume import restore
    from mrcnn_tf.train import build_model

    categories = [{"id": number, "name": str(number)} for number in range(1, 81)]
    config = load_config(name, ["model.backbone.weights=null", "train.strategy=none"]).with_categories(categories)
    model = build_model(config)
    count = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        save_checkpoint(model, Path(folder))
        saved = time.monotonic()
        size = (Path(folder) / "last.keras").stat().st_size
        restore(model, Path(folder))
        restored = time.monotonic()
    print(name, "done", file=sys.stderr)
    return {
        "trainable_parameters": count,
        "gradient_bytes": 4 * count,
        "checkpoint_bytes": size,
        "save_seconds": round(saved - began, 2),
        "restore_seconds": round(restored - saved, 2),
        "ring_ms": {str(n): {str(g): round(1000 * ring_seconds(4 * count, n, g), 1) for g in GBITS} for n in MACHINES},
    }


def ring_seconds(size: int, machines: int, gbits: float) -> float:
    """A ring all-reduce sends and receives 2 (n - 1) / n of the bytes at each machine (Patarasu and Yuan, 2009); no latency."""
    return 2 * (machines - 1) / machines * 8 * size / (gbits * 1e9)


if __name__ == "__main__":
    main()
