"""The `mrcnn-tf` command. TensorFlow is loaded by the commands that compute, not by `--help`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from mrcnn_tf.quiet import silence_tensorflow

app = typer.Typer(
    name="mrcnn-tf",
    help="Mask R-CNN for TensorFlow and Keras 3.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
export_app = typer.Typer(help="Turn a model into what a server or a device runs.", no_args_is_help=True)
app.add_typer(export_app, name="export")

_MISTAKES = (ValueError, OSError, ModuleNotFoundError)

Model = Annotated[Path, typer.Argument(help="A .keras file.", metavar="MODEL")]
ModelOrBundle = Annotated[Path, typer.Argument(help="A .keras file, or a bundle of `export tflite`.", metavar="MODEL")]
Runtime = Annotated[str | None, typer.Option(help="Of a bundle: auto, litert or tflite-runtime.")]
MinSize = Annotated[int | None, typer.Option(help="Shortest edge, pixels. Default: the model's own.", min=1)]
MaxSize = Annotated[int | None, typer.Option(help="Upper bound of the longest edge, pixels. Default: the model's own.", min=1)]
TtaScales = Annotated[
    list[int] | None,
    typer.Option("--tta-scale", min=1, help="Look at each picture with this shortest edge, too, and merge; may be repeated."),
]
TtaFlip = Annotated[bool, typer.Option("--tta-flip", help="Look at each picture mirrored, too, and merge.")]


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped configuration (see `mrcnn-tf configs`).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...", metavar="[KEY=VALUE]...")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the run.")] = ...,  # type: ignore[assignment]
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint, if there is one.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Read all data first, and go on without what is faulty (data.skip_bad=true).")
    ] = False,
    interrupted_status: Annotated[
        int, typer.Option(min=0, max=255, help="Exit status of a run that SIGTERM has ended; 75 for one that is started again.")
    ] = 0,
) -> None:
    """Train a model as a configuration says. SIGTERM saves and ends the run; --resume goes on with it."""
    with _readable_errors():
        from mrcnn_tf.config import load_config

        resolved = load_config(config, [*(overrides or []), *(["data.skip_bad=true"] if skip_bad else [])])
        silence_tensorflow()
        from mrcnn_tf.train import train as run

        with _leaving_at_once():
            finished = run(resolved, output, resume=resume)
        how = "interrupted, go on with --resume; " if finished.interrupted else ""
        where = f"{output / 'last.keras'}, {output / 'metrics.csv'}" if finished.is_chief else "the chief has the files"
        typer.echo(f"{how}{finished.steps} steps, {finished.seconds:.0f} s in steps; {where}")
        if finished.interrupted:
            raise typer.Exit(interrupted_status)


@app.command("check-data")
def check_data(
    images: Annotated[Path, typer.Option(help="Folder of the images.")],
    annotations: Annotated[Path, typer.Option(help="COCO JSON.")],
    output: Annotated[Path | None, typer.Option(help="Gets faults.json and index.html with pictures of faults.")] = None,
) -> None:
    """Read a whole data set and list every fault in it."""
    with _readable_errors():
        from mrcnn_tf.check import summary_lines, write_check
        from mrcnn_tf.data.check import check_data as check

        found = check(images, annotations, progress=True)
        typer.echo("\n".join(summary_lines(found)))
        if output is not None:
            write_check(found, images, output, title=str(annotations))
            typer.echo(f"{output / 'index.html'}, {output / 'faults.json'}")
        if found.errors:
            raise typer.Exit(1)


@app.command("prepare-data")
def prepare_data(
    kind: Annotated[str, typer.Argument(help="coco (any such set), coco2017, lvis, voc2007 or voc2012.", metavar="KIND")],
    output: Annotated[str, typer.Option(help="Folder of the shards; may be in a bucket (gs://...).")],
    source: Annotated[Path | None, typer.Option(help="Folder with the set's archives, or what they hold. Not for coco.")] = None,
    images: Annotated[Path | None, typer.Option(help="For coco: folder of the images.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="For coco: COCO JSON.")] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="May be repeated; for coco the name to give. Default: train and val, for coco train.")
    ] = None,
    image_set: Annotated[str | None, typer.Option(help="Of VOC: Segmentation (with masks, the default) or Main (boxes).")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Of each split. Default: one for every 500 images.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: as many as there are processors.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out what is faulty, and list it.")] = False,
) -> None:
    """Check a data set and write it as shards that are streamed in training. Interrupted, the same command goes on."""
    with _readable_errors():
        silence_tensorflow()
        from mrcnn_tf.splits import require_tfds

        require_tfds()
        from mrcnn_tf.prepare_data import prepare_data as prepare

        finished = prepare(
            kind,
            output,
            source=source,
            images=images,
            annotations=annotations,
            splits=split or (),
            image_set=image_set,
            shards=shards,
            workers=workers,
            skip_bad=skip_bad,
            report=typer.echo,
        )
        if not finished:
            raise typer.Exit(1)


@app.command()
def evaluate(
    model: ModelOrBundle,
    output: Annotated[Path, typer.Option(help="Gets metrics.json, detections.json and plots.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO JSON.")] = None,
    tfds: Annotated[str | None, typer.Option(help="Instead of the two: a folder that prepare-data has written.")] = None,
    split: Annotated[str, typer.Option(help="Of --tfds.")] = "val",
    score_threshold: Annotated[float, typer.Option(min=0, max=1)] = 0.05,
    max_detections: Annotated[int, typer.Option(min=1, help="Detections of an image that count, the best first.")] = 100,
    min_size: MinSize = None,
    max_size: MaxSize = None,
    runtime: Runtime = None,
    tta_scales: TtaScales = None,
    tta_flip: TtaFlip = False,
    backend: Annotated[
        str, typer.Option(help="pycocotools, faster-coco-eval or hotcoco: what computes COCO's figures.")
    ] = "pycocotools",
    boundary: Annotated[bool, typer.Option("--boundary", help="Measure boundary AP of masks, too.")] = False,
    voc: Annotated[bool, typer.Option("--voc", help="Measure PASCAL VOC's AP, too.")] = False,
    errors: Annotated[bool, typer.Option("--errors", help="Find what kinds of errors cost how much AP, too.")] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="Print the figures of each class.")] = False,
) -> None:
    """COCO box and mask AP of a model on a data set."""
    with _readable_errors():
        pictures, truth = _evaluated(images, annotations, tfds, split)
        from mrcnn_tf.metrics.backends import Backend, check_backend

        check_backend(backend, boundary=boundary)
        predictor = _load_predictor(model, min_size, max_size, runtime, tta_scales or (), tta_flip)
        from mrcnn_tf.evaluate import evaluate as measure

        metrics = measure(
            predictor,
            pictures,
            truth,
            output,
            score_threshold=score_threshold,
            max_detections=max_detections,
            backend=cast(Backend, backend),
            boundary=boundary,
            voc=voc,
            errors=errors,
        )
        _print_metrics(metrics)
        if per_class:
            _print_classes(metrics["classes"])
        typer.echo(f"{output / 'metrics.json'}, {output / 'detections.json'}")


@app.command()
def predict(
    model: ModelOrBundle,
    images: Annotated[list[str], typer.Argument(help="Pictures, folders or globs.", metavar="IMAGE...")],
    output: Annotated[Path, typer.Option(help="Gets the drawings and detections.json.")],
    score_threshold: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    min_size: MinSize = None,
    max_size: MaxSize = None,
    runtime: Runtime = None,
    tta_scales: TtaScales = None,
    tta_flip: TtaFlip = False,
) -> None:
    """Find and draw the objects of pictures."""
    with _readable_errors():
        from mrcnn_tf.data.images import image_paths

        paths = image_paths(images)
        predictor = _load_predictor(model, min_size, max_size, runtime, tta_scales or (), tta_flip)
        from mrcnn_tf.predict import predict_files

        _print_predictions(predict_files(predictor, paths, output, score_threshold=score_threshold), output)


@app.command("serve-client")
def serve_client(
    images: Annotated[list[str], typer.Argument(help="Pictures, folders or globs.", metavar="IMAGE...")],
    url: Annotated[str, typer.Option(help="grpc://HOST:PORT or http://HOST:PORT[/PREFIX]; grpcs:// and https:// with TLS.")],
    output: Annotated[Path, typer.Option(help="Gets the drawings and detections.json.")],
    model_name: Annotated[str, typer.Option(help="The server's name of the model.")] = "mask_rcnn",
    version: Annotated[int | None, typer.Option(min=0, help="Default: the one the server prefers, the newest.")] = None,
    score_threshold: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    timeout: Annotated[float, typer.Option(help="Seconds for one picture.")] = 60,
    retries: Annotated[int, typer.Option(min=0, help="Further attempts where no server answers; with gRPC at most 4.")] = 4,
    max_answer_mb: Annotated[float, typer.Option(help="Largest answer that is read, MB.")] = 64,
) -> None:
    """Find and draw the objects of pictures with an exported model on a TensorFlow Serving server."""
    with _readable_errors():
        from mrcnn_tf.data.images import image_paths

        paths = image_paths(images)
        silence_tensorflow()
        from mrcnn_tf.serving_client import ServingClient, detect_files

        with ServingClient(
            url, model_name=model_name, version=version, timeout=timeout, retries=retries, max_answer_mb=max_answer_mb
        ) as client:
            _print_predictions(detect_files(client, paths, output, score_threshold=score_threshold), output)


@app.command("import-weights")
def import_weights(
    source: Annotated[Path, typer.Argument(help="A checkpoint of torchvision, detectron2, Model Garden or matterport.")],
    output: Annotated[Path, typer.Option(help="The .keras file to write.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="model.section.key=value ..., for what the parameters cannot tell.", metavar="[KEY=VALUE]..."),
    ] = None,
    format: Annotated[str, typer.Option(help="auto, torchvision, detectron2, model-garden or matterport.")] = "auto",
    part: Annotated[str, typer.Option(help="all, or backbone: an ImageNet trunk, or that of a whole model.")] = "all",
    class_names: Annotated[
        Path | None, typer.Option(help="One class name per line, or a COCO JSON whose categories are taken.")
    ] = None,
    norm_eps: Annotated[float | None, typer.Option(min=0, help="eps of the norms. Default: the architecture's own.")] = None,
) -> None:
    """Turn a checkpoint of another system into a .keras file that computes what the original computes."""
    with _readable_errors():
        if part not in ("all", "backbone"):
            raise ValueError(f"--part must be all or backbone, got {part!r}")
        if output.suffix != ".keras":
            raise ValueError(f"--output must be a .keras file, got {output}")
        silence_tensorflow()
        from mrcnn_tf.weights.importer import write_model, write_trunk

        if part == "backbone":
            lines = write_trunk(source, output)
        else:
            names = None if class_names is None else _class_names(class_names)
            lines = write_model(source, output, format=format, norm_epsilon=norm_eps, categories=names, overrides=overrides or [])
        typer.echo("\n".join(lines))


@export_app.command("saved-model")
def export_saved_model(
    model: Model,
    output: Annotated[Path, typer.Option(help="Folder of the served model; gets a folder for the version, and configurations.")],
    version: Annotated[int | None, typer.Option(min=1, help="Default: one more than the highest there.")] = None,
    name: Annotated[str, typer.Option(help="Under which the server knows the model.")] = "mask_rcnn",
    min_size: MinSize = None,
    max_size: MaxSize = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: what the model was trained in.")] = None,
    xla: Annotated[bool, typer.Option("--xla", help="Compile the convolutions, once for each padded size of a batch.")] = False,
    nms_device: Annotated[str, typer.Option(help="auto, or cpu: keep non-maximum suppression off a GPU.")] = "auto",
    max_batch_size: Annotated[int, typer.Option(min=1, help="Most pictures that the server puts together.")] = 4,
    warmup: Annotated[
        list[str] | None,
        typer.Option(help="Picture, folder or glob for warm-up requests, may be repeated. Default: two drawn ones."),
    ] = None,
) -> None:
    """Write a version of a SavedModel that TensorFlow Serving serves, with what its operator needs."""
    with _readable_errors():
        _one_of("--precision", precision, (None, "float32", "bfloat16"))
        _one_of("--nms-device", nms_device, ("auto", "cpu"))
        loaded = _load_model(model)
        from mrcnn_tf.export.saved_model import export_saved_model as write

        folder = write(
            loaded,
            output,
            version=version,
            name=name,
            min_size=min_size,
            max_size=max_size,
            precision=precision,
            xla=xla,
            nms_device=nms_device,
            max_batch_size=max_batch_size,
            warmup=warmup or (),
            report=typer.echo,
        )
        typer.echo(str(folder))


@export_app.command("tflite")
def export_tflite(
    model: Model,
    output: Annotated[Path, typer.Option(help="The bundle, a folder to copy to a device; must not be there.")],
    image_size: Annotated[tuple[int, int], typer.Option(help="Height and width of the padded input, multiples of 64.")],
    precision: Annotated[str, typer.Option(help="float32, float16 or int8.")] = "float32",
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="Folder, picture or glob of real pictures: int8 measures its ranges on them; may be repeated."),
    ] = None,
    proposals: Annotated[
        int | None, typer.Option(min=1, help="Regions that the box head looks at. Default: the model's.")
    ] = None,
    max_detections: Annotated[int | None, typer.Option(min=1, help="Rows of detections. Default: the model's.")] = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Write a file that does not find what the model finds, too.")
    ] = False,
    target: Annotated[str, typer.Option(help="any, or edgetpu: add the trunk as its compiler takes it.")] = "any",
    web: Annotated[bool, typer.Option("--web", help="Add a page that runs the file in a browser.")] = False,
    litertjs: Annotated[
        Path | None, typer.Option(help="Folder with node_modules/@litertjs, for --web. Default: npm gets it.")
    ] = None,
) -> None:
    """Write a TFLite file that runs complete on a device, with the script that runs it."""
    with _readable_errors():
        _one_of("--precision", precision, ("float32", "float16", "int8"))
        _one_of("--target", target, ("any", "edgetpu"))
        loaded = _load_model(model)
        from mrcnn_tf.export.tflite import export_tflite as write

        folder = write(
            loaded,
            output,
            image_size=image_size,
            precision=precision,
            calibration=calibration or (),
            proposals=proposals,
            max_detections=max_detections,
            allow_mismatch=allow_mismatch,
            target=target,
            web=web,
            litertjs=litertjs,
            report=typer.echo,
        )
        typer.echo(str(folder))


@app.command()
def shapes(
    output: Annotated[Path, typer.Option(help="Gets images/ and instances_<split>.json.")],
    num_images: Annotated[int, typer.Option(min=1)] = 200,
    split: Annotated[str, typer.Option(help="Name of the split; splits share no picture.")] = "train",
    size: Annotated[int, typer.Option(min=128, help="Side of the pictures, pixels.")] = 160,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw the embedded synthetic data set as COCO JSON."""
    with _readable_errors():
        from mrcnn_tf.data.shapes import write_shapes

        path = write_shapes(output, num_images=num_images, seed=seed, image_size=(size, size), split=split, progress=True)
        typer.echo(str(path))


@app.command()
def configs(name: Annotated[str | None, typer.Argument(help="Show this one in full, defaults included.")] = None) -> None:
    """List the shipped configurations, or show one."""
    with _readable_errors():
        from mrcnn_tf.config import load_config, shipped_configs

        typer.echo("\n".join(shipped_configs()) if name is None else load_config(name).to_yaml(), nl=name is None)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the demonstration.")] = Path("runs/demo"),
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...", metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Train on drawn shapes, evaluate, predict, and write a report: the whole way in a few minutes."""
    with _readable_errors():
        silence_tensorflow()
        from mrcnn_tf.demo import run_demo

        metrics = run_demo(output, overrides or [])
        _print_metrics(metrics)
        typer.echo(f"{output / 'report.html'}")


def main() -> None:
    """Entry point of the `mrcnn-tf` command."""
    app()


@contextmanager
def _readable_errors() -> Iterator[None]:
    """A user's mistake is one message, not a traceback."""
    try:
        yield
    except _MISTAKES as error:
        if os.environ.get("MRCNN_TF_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


@contextmanager
def _leaving_at_once() -> Iterator[None]:
    """Where several machines train, an error ends the process at once: TensorFlow's shutdown may wait for the others for ever."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        from mrcnn_tf.strategies import has_joined

        if not has_joined():
            raise
        is_mistake = isinstance(error, _MISTAKES) and not os.environ.get("MRCNN_TF_TRACEBACK")
        print(f"error: {error}" if is_mistake else traceback.format_exc(), file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)


def _class_names(path: Path) -> Any:
    from mrcnn_tf.data.class_names import read_class_names

    return read_class_names(path)


def _evaluated(images: Path | None, annotations: Path | None, tfds: str | None, split: str) -> tuple[Any, Any]:
    """Folder of the images and annotations, of files or of prepared data."""
    if tfds is None:
        if images is None or annotations is None:
            raise ValueError("give --images and --annotations, or --tfds")
        return images, annotations
    if images is not None or annotations is not None:
        raise ValueError("give --images and --annotations, or --tfds, not both")
    silence_tensorflow()
    from mrcnn_tf.splits import prepared_split

    prepared = prepared_split(tfds, split)
    return prepared.images, prepared.content


def _one_of(option: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{option} must be {' or '.join(choice for choice in choices if choice)}, got {value!r}")


def _load_model(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no model at {path}")
    silence_tensorflow()
    from mrcnn_tf.modeling.mask_rcnn import load_model

    return load_model(path)


def _load_predictor(
    path: Path, min_size: int | None, max_size: int | None, runtime: str | None, scales: Sequence[int], flip: bool
) -> Any:
    if scales and min_size is not None:
        raise ValueError("give --min-size or --tta-scale, not both")
    if path.is_dir():
        if min_size is not None or max_size is not None or scales or flip:
            options = "--min-size, --max-size, --tta-scale and --tta-flip"
            raise ValueError(f"{path}: a bundle looks at a picture once, in one size; {options} are for .keras files")
        from mrcnn_tf.export.bundle import Bundle

        return Bundle(path, runtime=runtime or "auto")
    if runtime is not None:
        raise ValueError(f"{path}: --runtime is for bundles of `mrcnn-tf export tflite`")
    model = _load_model(path)
    if scales or flip:
        from mrcnn_tf.tta import AugmentedPredictor

        # A single size keeps the model's bound, so that --tta-flip adds mirrored pictures and changes nothing else.
        how = model.config.preprocessing
        bound = max_size if scales else max_size or how.max_size
        return AugmentedPredictor(model, scales=scales or [min_size or how.min_size], flip=flip, max_size=bound)
    from mrcnn_tf.predict import Predictor

    return Predictor(model, min_size=min_size, max_size=max_size)


def _print_predictions(summary: dict[str, Any], output: Path) -> None:
    typer.echo(f"{summary['detections']} objects in {summary['images']} pictures; {output / 'detections.json'}")
    if summary["errors"]:
        raise typer.Exit(1)


def _print_metrics(metrics: dict[str, Any]) -> None:
    for kind in ("bbox", "segm", "boundary"):
        if kind in metrics:
            _print_figures(kind, metrics[kind])
    for kind, section in metrics.get("voc", {}).items():
        _print_figures(f"voc {kind}", section)
    for kind, section in metrics.get("errors", {}).items():
        _print_figures(f"AP50 lost, {kind}", section["cost"])


def _print_figures(heading: str, section: dict[str, Any]) -> None:
    figures = "  ".join(f"{name} {_figure(value)}" for name, value in section.items() if name != "per_class")
    typer.echo(f"{heading}: {figures}")


def _print_classes(classes: dict[str, Any]) -> None:
    from rich.console import Console

    from mrcnn_tf.class_tables import class_table

    for kind, rows in classes.items():
        Console().print(class_table(kind, rows))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
