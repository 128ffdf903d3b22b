"""`mrcnn-tf prepare-data`: from the kind of a data set and a folder to shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

from mrcnn_tf.check import fault_lines
from mrcnn_tf.data.prepare import Prepared, prepare_split, skipped_path
from mrcnn_tf.data.sources import KINDS, Source, coco_source
from mrcnn_tf.data.voc import ImageSet

ANY = "coco"
"""The kind of a data set that `--images` and `--annotations` name."""
NAMES = {ANY: "coco_format", "coco2017": "coco_2017", "lvis": "lvis_v1", "voc2007": "voc_2007", "voc2012": "voc_2012"}
"""Of the data sets, for TensorFlow Datasets."""
SPLITS = ("train", "val")


def prepare_data(
    kind: str,
    output: str,
    *,
    source: Path | None = None,
    images: Path | None = None,
    annotations: Path | None = None,
    splits: Sequence[str] = (),
    image_set: str | None = None,
    shards: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    report: Callable[[str], None] = print,
) -> bool:
    """Prepare the splits of a data set, one after the other.

    Args:
        kind: coco for any set in COCO format, or one of `mrcnn_tf.data.sources.KINDS`.
        output: folder of the shards, which may be in a bucket.
        source: folder with what the publisher hands out; not for coco.
        images: folder of the images, for coco.
        annotations: COCO JSON, for coco.
        splits: their names; for coco one, the name to give. Empty: train and val, of coco train.
        image_set: Segmentation or Main, for VOC. None: Segmentation.
        shards: of each split; None: one for every 500 images.
        workers: processes; None: as many as there are processors.
        skip_bad: leave out what is faulty.
        report: gets lines for the user.

    Returns:
        Whether all splits are there. A split with faults is not, unless `skip_bad`; what was found is reported.

    Raises:
        ValueError: options that do not go together; or as `mrcnn_tf.data.prepare.prepare_split` and `mrcnn_tf.data.sources`.
    """
    output = output if "://" in output else str(Path(output).expanduser())
    opened = _opener(kind, source, images, annotations, splits, image_set)
    for split, open_source in opened.items():
        done = prepare_split(
            open_source(),
            output,
            split,
            name=NAMES[kind],
            num_shards=shards,
            num_workers=workers,
            skip_bad=skip_bad,
            progress=True,
        )
        _report(done, output, split, report)
        if done.index is None:
            return False
    return True


def _opener(
    kind: str,
    source: Path | None,
    images: Path | None,
    annotations: Path | None,
    splits: Sequence[str],
    image_set: str | None,
) -> dict[str, Callable[[], Source]]:
    if kind not in NAMES:
        raise ValueError(f"the kind of a data set must be {' or '.join(NAMES)}, got {kind!r}")
    if image_set not in (None, "Segmentation", "Main") or (image_set is not None and not kind.startswith("voc")):
        raise ValueError(f"--image-set is Segmentation or Main, and for VOC only; got {image_set!r} for {kind}")
    if kind == ANY:
        if images is None or annotations is None or source is not None or len(splits) > 1:
            raise ValueError(
                f"{ANY} needs --images and --annotations, at most one --split, which names the split, and no --source"
            )
        return {splits[0] if splits else SPLITS[0]: partial(coco_source, images, annotations)}
    if source is None or images is not None or annotations is not None:
        raise ValueError(f"{kind} needs --source, the folder with its archives, and neither --images nor --annotations")
    if not source.is_dir():
        raise NotADirectoryError(f"{source}: no such folder")
    chosen = {} if image_set is None else {"image_set": cast(ImageSet, image_set)}
    return {split: partial(KINDS[kind], source, split, **chosen) for split in splits or SPLITS}


def _report(done: Prepared, output: str, split: str, report: Callable[[str], None]) -> None:
    errors, warnings = ([fault for fault in done.faults if fault.is_error == wanted] for wanted in (True, False))
    if errors or warnings:
        report("\n".join(fault_lines(errors, warnings)))
    if done.index is None:
        report(f"{split}: not finished; mend the data, or leave out what is faulty with --skip-bad. Finished shards are kept")
        return
    shards = done.index.shards
    num_images, num_bytes = sum(map(len, shards)), sum(shard.num_bytes for shard in shards)
    line = f"{split}: {num_images} images in {len(shards)} shards, {num_bytes / num_images / 1000:.0f} kB an image"
    line += f"; {done.reused} shards were there already" if done.reused else ""
    line += f"; left out {len(done.skipped)} faulty records, see {skipped_path(output, split)}" if done.skipped else ""
    report(line)
