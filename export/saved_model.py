"""`mrcnn-tf export saved-model`: a version folder that TensorFlow Serving loads as it is, and what its operator needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

import mrcnn_tf
from mrcnn_tf.export.agreement import Agreement, agreement
from mrcnn_tf.export.folders import ExportError, new_folder
from mrcnn_tf.export.operator_files import write_operator_files
from mrcnn_tf.export.quiet import without_warnings
from mrcnn_tf.export.serving_graph import ServingGraph
from mrcnn_tf.export.warmup import WARMUP_FILE, Picture, batch_sizes, drawn_pictures, read_pictures, warmup_requests, write_warmup
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.predict import Predictor
from mrcnn_tf.serving_client import read_answer

Precision = Literal["float32", "bfloat16"]
MODEL_FILE = "assets/model.json"
FORMAT = 1
_POLICIES: dict[Precision, str] = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
_NMS_DEVICES = {"auto": "", "cpu": "/device:CPU:0"}
LEAST_MATCHED, BOX_TOLERANCE, SCORE_TOLERANCE = 0.985, 0.05, 1e-4
"""How far the export may be from the model: part of the objects, pixels of the picture, probability."""
_LOOSER = {"float32": 1.0, "mixed_bfloat16": 40.0}
"""A step of bfloat16 near 1 is 2**-8."""


def export_saved_model(
    model: MaskRCNN,
    output: str | Path,
    *,
    version: int | None = None,
    name: str = "mask_rcnn",
    min_size: int | None = None,
    max_size: int | None = None,
    precision: Precision | None = None,
    xla: bool = False,
    nms_device: Literal["auto", "cpu"] = "auto",
    max_batch_size: int = 4,
    warmup: Sequence[str | Path] = (),
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write `output/<version>/`, and beside it the operator's files that are not there yet.

    The version is written under another name, loaded, run and compared with the model, and only then gets its own: a server that
    watches the folder never meets half of it, and other versions are never touched.

    Args:
        model: the network.
        output: folder of the served model; its versions are folders in it whose names are whole numbers.
        version: of this export, from 1; None: one more than the highest there.
        name: under which the model is served, in the operator's files.
        min_size: shortest edge of the resized pictures, pixels; None: that of the model's configuration.
        max_size: bound of the longest edge, pixels; None: that of the model's configuration.
        precision: what the network computes in; None: what it was saved with.
        xla: compile the convolutions before the proposals with XLA.
        nms_device: "cpu" pins non-maximum suppression to the CPU, "auto" leaves it with its inputs.
        max_batch_size: most pictures that the server's batching puts together; warm-up requests go up to it.
        warmup: pictures for the warm-up requests, files or folders; none: two drawn ones, landscape and portrait.
        report: gets a line for each thing done.

    Returns:
        The version folder.

    Raises:
        ExportError: the version exists, or the export disagrees with the model.
        ImageError: a warm-up picture cannot be read.
        ModuleNotFoundError: tensorflow-serving-api is not installed.
    """
    output = Path(output)
    version = _free_version(output, version)
    pictures = read_pictures(warmup) if warmup else drawn_pictures()
    if precision is not None and model.dtype_policy.name != _POLICIES[precision]:
        model = model.with_policy(_POLICIES[precision])
    graph = ServingGraph(model, min_size=min_size, max_size=max_size, xla=xla, nms_device=_NMS_DEVICES[nms_device])
    signatures = graph.signatures()
    requests = warmup_requests(pictures, name=name, signatures=signatures, sizes=batch_sizes(max_batch_size))
    with new_folder(output / str(version)) as folder:
        # The gradients of ROIAlign are of no use in a server, and TensorFlow cannot read what it writes of them.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(graph, str(folder), signatures=signatures, options=options)
        report("graph and weights written")
        compared = compare(folder, Predictor(model, min_size=min_size, max_size=max_size), pictures, model.dtype_policy.name)
        report(f"loaded and compared with the model: {compared}")
        described = {"xla": xla, "nms_device": nms_device, "max_batch_size": max_batch_size, "compared": asdict(compared)}
        _write_description(folder / MODEL_FILE, model, min_size=min_size, max_size=max_size, **described)
        report(f"{write_warmup(requests, folder / WARMUP_FILE)} warm-up requests for batches of up to {max_batch_size}")
    for path, was_written in write_operator_files(output, name=name, max_batch_size=max_batch_size, fixed_sizes=xla):
        report(f"{path} {'written' if was_written else 'was there, left as it is'}")
    return output / str(version)


def compare(folder: Path, predictor: Predictor, pictures: Sequence[Picture], policy: str) -> Agreement:
    """Run `serving_default` of an export on pictures and compare with a predictor.

    Raises:
        ExportError: the export finds other objects, or differs by more than the tolerance.
    """
    with without_warnings():
        serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
    answer = serve(image_bytes=tf.constant([picture.data for picture in pictures]))
    outputs = {key: value.numpy() for key, value in answer.items()}
    found = [read_answer({key: value[number] for key, value in outputs.items()}) for number in range(len(pictures))]
    compared = agreement(zip((predictor(picture.pixels) for picture in pictures), found, strict=True))
    looser = _LOOSER.get(policy, 1.0)
    if compared.matched < LEAST_MATCHED or compared.boxes > BOX_TOLERANCE * looser or compared.scores > SCORE_TOLERANCE * looser:
        raise ExportError(f"the export does not compute what the model computes: {compared}")
    return compared


def _free_version(output: Path, version: int | None) -> int:
    there = sorted(int(path.name) for path in output.glob("*") if path.name.isdecimal()) if output.is_dir() else []
    if version is None:
        return there[-1] + 1 if there else 1
    if version < 1:
        raise ExportError(f"a version is a whole number from 1, got {version}")
    if version in there:
        raise ExportError(
            f"{output / str(version)} exists; versions there are {', '.join(map(str, there))}, and none is replaced"
        )
    return version


def _write_description(path: Path, model: MaskRCNN, *, min_size: int | None, max_size: int | None, **more: Any) -> None:
    preprocessing = model.config.preprocessing
    content = {
        "format": FORMAT,
        "mrcnn_tf": mrcnn_tf.__version__,
        "categories": [{"id": category.id, "name": category.name} for category in model.config.categories],
        "paste": model.config.mask_head.paste if model.config.mask_head.enabled else None,
        "min_size": min_size or preprocessing.min_size,
        "max_size": max_size or preprocessing.max_size,
        "max_detections": model.config.box_head.max_detections,
        "dtype_policy": model.dtype_policy.name,
        **more,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
