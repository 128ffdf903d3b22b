"""`python -m tests.edge.make_cases FOLDER`: export small models, and write down what they find (see `tests.edge.cases`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mrcnn_tf.data.images import load_image
from mrcnn_tf.data.shapes import write_shapes
from mrcnn_tf.export.edge_inputs import edge_input
from mrcnn_tf.export.edge_parity import reference
from mrcnn_tf.export.edge_runtimes import EdgeRunner
from mrcnn_tf.export.tflite import export_tflite
from mrcnn_tf.files import replacing
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from tests.edge.cases import FILES, flat, run_stages
from tests.edge.models import small_model

SIZE = (128, 128)
NUM_SHAPES = 4


def make_cases(folder: Path) -> Path:
    """Fill a folder, which must not be there."""
    folder.mkdir(parents=True)
    write_shapes(folder / "data", num_images=NUM_SHAPES, seed=0, image_size=SIZE, split="val")
    pictures = _pictures(folder / "data" / "images", folder / "pictures")
    models: dict[str, MaskRCNN] = {}
    for name in FILES:
        kind, precision = name.split("-")
        if kind not in models:
            models[kind] = small_model(kind, folder / "data")
        bundle = export_tflite(
            models[kind],
            folder / name,
            image_size=SIZE,
            precision=precision,
            calibration=list(pictures.values()),
            # Random weights do not bear it that their ranges are cut into 256 steps.
            allow_mismatch=precision == "int8",
            report=print,
        )
        _write_case(models[kind], bundle, pictures)
    return folder


def _pictures(shapes: Path, folder: Path) -> dict[str, Path]:
    """Drawn shapes; noise; black; and two of which the most anchors lie outside, so that proposals have no area."""
    folder.mkdir()
    found = {f"shapes{number}": np.asarray(Image.open(path)) for number, path in enumerate(sorted(shapes.iterdir()))}
    random = np.random.default_rng(5)
    found["noise"] = random.integers(0, 256, (100, 128, 3), dtype=np.uint8)
    found["black"] = np.zeros((128, 96, 3), np.uint8)
    found["flat"] = found["shapes0"][40:46]
    found["narrow"] = found["shapes1"][:, 60:63]
    paths = {name: folder / f"{name}.png" for name in found}
    for name, path in paths.items():
        Image.fromarray(found[name]).save(path)
    return paths


def _write_case(model: MaskRCNN, bundle: Path, pictures: dict[str, Path]) -> None:
    run, expected_of = EdgeRunner((bundle / "model.tflite").read_bytes()), reference(model)
    signatures = json.loads((bundle / "model.json").read_text(encoding="utf-8"))["signatures"]
    arrays = {}
    for name, path in pictures.items():
        picture = edge_input(load_image(path), model.config, SIZE)
        inputs = picture._asdict()
        stages = run_stages(run, signatures, inputs)
        named = {stage: {"input": given, "output": answered} for stage, (given, answered) in stages.items()}
        arrays |= flat({name: {"input": inputs, "model": expected_of(picture), **named}})
    with replacing(bundle.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


if __name__ == "__main__":
    make_cases(Path(sys.argv[1]))
