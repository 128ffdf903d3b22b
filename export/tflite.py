"""`mrcnn-tf export tflite`: a folder to copy to a device, compared with the model before it is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

import mrcnn_tf
from mrcnn_tf.config import ModelConfig
from mrcnn_tf.data.images import image_paths
from mrcnn_tf.export.agreement import Agreement
from mrcnn_tf.export.edge_graph import MASK_ROWS, EdgeGraph
from mrcnn_tf.export.edge_inputs import EdgeInput, edge_input
from mrcnn_tf.export.edge_parity import TOLERANCES, compare_with_model, reference
from mrcnn_tf.export.edge_runtimes import EdgeRunner, installed_runtimes
from mrcnn_tf.export.edge_signatures import described
from mrcnn_tf.export.edgetpu import FILE as EDGETPU_FILE
from mrcnn_tf.export.edgetpu import write_edgetpu_trunk
from mrcnn_tf.export.folders import ExportError, new_folder
from mrcnn_tf.export.tflite_convert import LABELS, convert, with_labels
from mrcnn_tf.export.tflite_pack import pack_shared
from mrcnn_tf.export.tflite_quantize import halve, quantize
from mrcnn_tf.export.warmup import drawn_pictures, read_pictures
from mrcnn_tf.export.web_files import write_web
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN

Precision = Literal["float32", "float16", "int8"]
FORMAT = 1
MODEL, DESCRIPTION, SCRIPT, README = "model.tflite", "model.json", "detect.py", "README.md"
MOST_CALIBRATION_PICTURES = 64
"""More change the ranges little; see docs/devices.md."""
_STATIC_SAMPLES = 2
_SURE = 0.5
"""Score from which an object counts where two networks are compared that are not the same."""
_QUANTISED = ("full", "trunk", "box", "mask")


def export_tflite(
    model: MaskRCNN,
    output: str | Path,
    *,
    image_size: tuple[int, int],
    precision: Precision = "float32",
    calibration: Sequence[str | Path] = (),
    proposals: int | None = None,
    max_detections: int | None = None,
    allow_mismatch: bool = False,
    target: Literal["any", "edgetpu"] = "any",
    web: bool = False,
    litertjs: str | Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write a bundle.

    Args:
        model: the network.
        output: the folder, which must not be there.
        image_size: (height, width) of the padded input, multiples of 64.
        precision: of weights and, with int8, of the convolutions and the box head; geometry is always float.
        calibration: pictures, folders or patterns: real ones, such as the model will see. int8 needs them for its ranges; any
            precision is compared on them. None: two drawn ones.
        proposals: how many regions the box head looks at; None: as many as the model. Fewer are quicker and may miss objects.
        max_detections: rows of detections; None: as many as the model's.
        allow_mismatch: write a file that does not find what the model finds, too.
        target: "edgetpu" adds the trunk as an Edge TPU takes it.
        web: add a page for browsers, `web/`.
        litertjs: folder with the `node_modules` that the page needs; None: npm gets them.
        report: gets a line for each thing done.

    Returns:
        The folder.

    Raises:
        ExportError: the folder is there, int8 without calibration pictures, a model without a static graph, no runtime to compare
            in, or a file that disagrees.
        ImageError: a calibration picture cannot be read.
    """
    output = Path(output)
    if (precision == "int8" or target == "edgetpu") and not calibration:
        raise ExportError("int8 needs pictures to measure its ranges on: --calibration DIR, 16 or more like those it will see")
    if not installed_runtimes():
        raise ExportError("no TFLite runtime to compare the file in: pip install 'mrcnn-tf[edge]'")
    pictures = read_pictures(image_paths(calibration)[:MOST_CALIBRATION_PICTURES]) if calibration else drawn_pictures()
    if model.dtype_policy.name != "float32":
        model = model.with_policy("float32")
    if proposals or max_detections:
        model = _limited(model, proposals, max_detections)
    inputs = [edge_input(picture.pixels, model.config, image_size) for picture in pictures]
    static, substituted = _with_static_pooling(model, inputs)
    with new_folder(output) as folder:
        graph = EdgeGraph(static, image_size)
        signatures = graph.signatures()
        content = convert(graph, signatures)
        report(f"converted: {len(content) / 1e6:.1f} MB")
        if precision == "float16":
            content = pack_shared(halve(content))
            report(f"weights in float16: {len(content) / 1e6:.1f} MB")
        if precision == "int8":
            content = pack_shared(quantize(content, _samples(content, inputs, static)))
            report(f"quantised on {len(inputs)} pictures: {len(content) / 1e6:.1f} MB")
        names = [category.name for category in model.config.categories]
        content = with_labels(content, names)
        parity = _compared(content, inputs, static, precision, allow_mismatch, report)
        (folder / MODEL).write_bytes(content)
        (folder / LABELS).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        description = _description(static.config, signatures, precision, image_size)
        description |= {"compared_on": len(inputs), "parity": {name: asdict(found) for name, found in parity.items()}}
        description |= substituted
        if target == "edgetpu":
            description["edgetpu"] = write_edgetpu_trunk(static, folder, image_size, inputs)
            report(f"{EDGETPU_FILE}: edgetpu_compiler {EDGETPU_FILE}")
        text = json.dumps(description, indent=1, ensure_ascii=False)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        _write_texts(folder, description)
        if web:
            write_web(folder, None if litertjs is None else Path(litertjs))
            report("page for browsers: python -m http.server in the bundle, then http://localhost:8000/web/")
    return output


def _with_static_pooling(model: MaskRCNN, inputs: Sequence[EdgeInput]) -> tuple[MaskRCNN, dict[str, Any]]:
    """The model itself, or one that samples two by two where it samples as often as a region is large; and the effect."""
    align = model.config.roi_align
    if align.kind == "pool":
        raise ExportError(
            "roi_align.kind pool has shapes that depend on the boxes, which no TFLite file can have; train with align"
        )
    if align.kind != "align" or align.sampling_ratio != 0:
        return model, {}
    static = _changed(model, roi_align={"sampling_ratio": _STATIC_SAMPLES})
    effect = compare_with_model(reference(static), reference(model), inputs, model.config, _SURE)
    what = f"roi_align.sampling_ratio 0 (adaptive) by {_STATIC_SAMPLES}"
    return static, {"substituted": {"what": what, "effect": asdict(effect)}}


def _limited(model: MaskRCNN, proposals: int | None, max_detections: int | None) -> MaskRCNN:
    return _changed(
        model,
        rpn={} if proposals is None else {"post_nms_top_k_test": proposals},
        box_head={} if max_detections is None else {"max_detections": max_detections},
    )


def _changed(model: MaskRCNN, **sections: dict[str, Any]) -> MaskRCNN:
    """The same weights under a configuration of which some keys are others."""
    content = model.config.model_dump(mode="json")
    for name, changes in sections.items():
        content[name] = {**content[name], **changes}
    changed = MaskRCNN(ModelConfig.model_validate(content), pretrained=False)
    changed.set_weights(model.get_weights())
    return changed


def _samples(content: bytes, inputs: Sequence[EdgeInput], model: MaskRCNN) -> dict[str, list[dict[str, Any]]]:
    """What the quantised signatures are given, made by running the stages in float."""
    run = EdgeRunner(content)
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in _QUANTISED}
    for picture in track([_with_extremes(picture, model.config) for picture in inputs], "calibrating"):
        size = {"image_size": picture.image_size}
        image = {"image": picture.image, **size}
        seen = run("trunk", image)
        proposed = run("propose", {**size, **seen})
        regions = {"regions": proposed.pop("regions")}
        features = {name: value for name, value in seen.items() if name.startswith("p")}
        found = run("detect", {**size, **features, **proposed, **run("box", regions)})
        samples["full"].append(image)
        samples["trunk"].append(image)
        samples["box"].append(regions)
        if model.mask_head is not None:
            classes = found["detection_classes"][0].astype(np.int32)
            samples["mask"].append({"regions": _mask_call(found["mask_regions"]), "classes": _mask_call(classes)})
    return {name: values for name, values in samples.items() if values}


def _mask_call(rows: NDArray[Any]) -> NDArray[Any]:
    """As many rows as a call of `mask` has: the first ones [D, ...], again from the start where there are fewer."""
    return np.resize(rows, (MASK_ROWS, *rows.shape[1:]))


def _with_extremes(picture: EdgeInput, config: ModelConfig) -> EdgeInput:
    """With a black and a white pixel, so that the range of the input, a mean over pictures, is that of all pixels there are.

    Whole levels, normalised by whole numbers, then lie on the steps of int8 and not in the middle between two of them, where
    processors round differently.
    """
    image, (height, width) = picture.image.copy(), picture.image_size[0]
    is_centred = config.preprocessing.placement == "centre"
    top, left = ((image.shape[1] - height) // 2, (image.shape[2] - width) // 2) if is_centred else (0, 0)
    image[0, top, left] = 0
    image[0, top + height - 1, left + width - 1] = 255
    return EdgeInput(image, picture.image_size)


def _compared(
    content: bytes,
    inputs: Sequence[EdgeInput],
    model: MaskRCNN,
    precision: Precision,
    allow_mismatch: bool,
    report: Callable[[str], None],
) -> dict[str, Agreement]:
    """Agreement with the model in each runtime that is installed."""
    tolerance, expected_of = TOLERANCES[precision], reference(model)
    found = {}
    for runtime in installed_runtimes():
        run = EdgeRunner(content, runtime)

        def full(picture: EdgeInput, run: EdgeRunner = run) -> dict[str, NDArray[Any]]:
            return run("full", picture._asdict())

        found[runtime] = compare_with_model(full, expected_of, inputs, model.config, tolerance.score_threshold)
        report(f"compared with the model in {runtime} on {len(inputs)} pictures: {found[runtime]}")
        if not tolerance.holds(found[runtime]) and not allow_mismatch:
            raise ExportError(
                f"the file does not find what the model finds in {runtime}: {found[runtime]}; expected are {tolerance}. "
                "--allow-mismatch writes it all the same"
            )
    return found


def _description(
    config: ModelConfig, signatures: dict[str, Any], precision: Precision, image_size: tuple[int, int]
) -> dict[str, Any]:
    how = config.preprocessing
    return {
        "format": FORMAT,
        "mrcnn_tf": mrcnn_tf.__version__,
        "image_size": list(image_size),
        "precision": precision,
        "max_detections": config.box_head.max_detections,
        "mask_rows": MASK_ROWS,
        "categories": [{"id": category.id, "name": category.name} for category in config.categories],
        "preprocessing": {
            key: getattr(how, key)
            for key in ("min_size", "max_size", "resize_rounding", "enlarge_only", "antialias", "quantize", "placement")
        },
        "paste": config.mask_head.paste if config.mask_head.enabled else None,
        "box_ends": config.box_ends,
        "clip_to": config.box_head.clip_to,
        "signatures": described(signatures),
    }


def _write_texts(folder: Path, description: dict[str, Any]) -> None:
    """The device's script, and what to do with it."""
    files = resources.files("mrcnn_tf.export")
    (folder / SCRIPT).write_bytes((files / "edge" / SCRIPT).read_bytes())
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files / "edge" / f"{README}.j2").read_text(encoding="utf-8"))
    (folder / README).write_text(template.render(description) + "\n", encoding="utf-8")
