"""What TensorBoard shows of a run: its figures over training steps, its configuration, and pictures of the validation set.

The events are written by TensorBoard's own `EventFileWriter`, which also takes the mark that a run has gone on from an earlier
step; `keras.callbacks.TensorBoard` counts epochs and knows no such mark.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mrcnn_tf.data.images import ImageFolder, as_folder, load_image
from mrcnn_tf.detections import Detector
from mrcnn_tf.evaluate import read_ground_truth
from mrcnn_tf.modeling.loss_scale import steps_made
from mrcnn_tf.optimizers import averaged_weights
from mrcnn_tf.visualize import draw_detections, draw_ground_truth

WRITE_EVERY = 20
"""Steps between two values of a curve within an epoch, as in detectron2."""
LONGEST_EDGE = 640
"""Pixels of a drawing, of which a picture has two side by side."""

_SCORE_THRESHOLD = 0.5
_GAP = 8
_AXES = ("epoch", "step")
_OF_THE_RUN = ("learning_rate", "train_seconds")

Pictures = Callable[[], Iterable[tuple[str, NDArray[np.uint8]]]]
"""Makes (name, uint8 RGB [h, w, 3]) of each picture anew."""
_Item = TypeVar("_Item")


class TensorBoardLog(keras.callbacks.Callback):
    """Writes the logs every few steps and at the end of an epoch, and pictures after an evaluation, each at the step of the run.

    `loss` becomes `train/loss`, `val_bbox_AP` becomes `val/bbox_AP`; `learning_rate` and `train_seconds` keep their names.
    """

    def __init__(
        self,
        folder: str | Path,
        config: str,
        *,
        steps: int = 0,
        pictures: Pictures | None = None,
        write_every: int = WRITE_EVERY,
    ) -> None:
        """Prepare; nothing is written before the first step.

        Args:
            folder: of the event files, made if it is not there.
            config: YAML, shown as text; written where a run begins.
            steps: that a resumed run has behind it. Readers drop what the folder has of later ones, as a killed run leaves it.
            pictures: drawn after each evaluation, that is when the logs of an epoch have a `val_` figure; None: none.
            write_every: steps between two values within an epoch.
        """
        super().__init__()
        self.folder = Path(folder)
        self.config = config
        self.steps = steps
        self.pictures = pictures
        self.write_every = write_every
        self._written: set[str] = set()

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Open a file and write the configuration."""
        self._last = self.steps
        self._writer = EventFileWriter(str(self.folder))
        # The mark drops what stands at its own step, too.
        self._write(self.steps + 1 if self.steps else 0, session_log=SessionLog(status=SessionLog.START))
        if not self.steps:
            self._write(0, summary=Summary(value=[_text("config", f"```yaml\n{self.config.rstrip()}\n```")]))

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Write the logs when it is time."""
        step = self._step()
        if step // self.write_every > self._last // self.write_every:
            self._write_scalars(logs or {}, step)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write the logs, and the pictures after an evaluation."""
        logs, step = logs or {}, self._step()
        self._write_scalars(logs, step)
        if self.pictures and any(name.startswith("val_") for name in logs):
            with averaged_weights(self.model):
                for name, picture in self.pictures():
                    self._write(step, summary=Summary(value=[_image(f"pictures/{name}", picture)]))

    def on_train_end(self, logs: dict | None = None) -> None:
        """Close the file."""
        self._writer.close()

    def _step(self) -> int:
        return int(keras.ops.convert_to_numpy(steps_made(self.model.optimizer)))

    def _write_scalars(self, logs: Mapping[str, Any], step: int) -> None:
        values = {_tag(name): float(value) for name, value in logs.items() if name not in _AXES}
        # The last step of an epoch may have been written already; what the end of the epoch adds is new.
        new = {tag: value for tag, value in values.items() if step > self._last or tag not in self._written}
        self._write(step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in new.items()]))
        self._last, self._written = step, set(values)

    def _write(self, step: int, **what: Any) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, **what))
        # A run may be killed at any moment.
        self._writer.flush()


def validation_pictures(
    detector: Detector, images_dir: str | ImageFolder, annotations: str | Path | Mapping[str, Any], count: int
) -> Pictures:
    """Targets (left) and what is found with a score of at least 0.5 (right) on a few pictures of a data set.

    They are spread over the data set, the same each time; those without objects only serve where there are not enough others.

    Args:
        detector: any callable from a uint8 RGB picture [h, w, 3] to `Detections`.
        images_dir: the folder that the annotations' `file_name`s start from; or what is read like one.
        annotations: COCO JSON, as a file or as its content; read now, and what is not drawn is not kept.
        count: of the pictures; fewer where the data set has fewer.

    Returns:
        A function that detects and draws; the names are the `file_name`s, the edges at most `2 * LONGEST_EDGE` and a gap wide.
        It raises ImageError where a picture is missing or broken.

    Raises:
        EvaluationError: not COCO ground truth, or without images; says which file.
    """
    truth = read_ground_truth(annotations)
    occupied = {record["image_id"] for record in truth["annotations"]}
    chosen = _spread([image for image in truth["images"] if image["id"] in occupied], count)
    chosen += _spread([image for image in truth["images"] if image["id"] not in occupied], count - len(chosen))
    targets: dict[Any, list[Mapping[str, Any]]] = {image["id"]: [] for image in chosen}
    for record in truth["annotations"]:
        if record["image_id"] in targets:
            targets[record["image_id"]].append(record)
    names = {category["id"]: str(category["name"]) for category in truth["categories"]}
    scenes = [(str(image["file_name"]), targets[image["id"]]) for image in chosen]
    return partial(_draw_pictures, detector, as_folder(images_dir), scenes, names)


def _draw_pictures(
    detector: Detector,
    folder: ImageFolder,
    scenes: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
    category_names: Mapping[int, str],
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for file_name, records in scenes:
        image = load_image(folder / file_name)
        left = _shrunk(draw_ground_truth(image, records, category_names))
        right = _shrunk(draw_detections(image, detector(image), score_threshold=_SCORE_THRESHOLD))
        gap = np.full((left.shape[0], _GAP, 3), 255, np.uint8)
        yield file_name, np.concatenate([left, gap, right], axis=1)


def _shrunk(drawing: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = Image.fromarray(drawing)
    picture.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
    return np.array(picture)


def _spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """At most `count` of the items, evenly from the first to the last."""
    rows = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[row] for row in rows]


def _tag(name: str) -> str:
    if name.startswith("val_"):
        return f"val/{name.removeprefix('val_')}"
    return name if name in _OF_THE_RUN else f"train/{name}"


def _text(tag: str, markdown: str) -> Summary.Value:
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(tag=tag, metadata=metadata, tensor=TensorProto(dtype=DT_STRING, string_val=[markdown.encode()]))


def _image(tag: str, picture: NDArray[np.uint8]) -> Summary.Value:
    buffer = io.BytesIO()
    # A photograph as PNG would take several times the space, after every evaluation.
    Image.fromarray(picture).save(buffer, format="JPEG", quality=90)
    height, width = picture.shape[:2]
    content = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue())
    return Summary.Value(tag=tag, image=content)
