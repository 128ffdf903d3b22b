"""A client of models of `mrcnn-tf export saved-model` on TensorFlow Serving. TensorFlow is loaded for gRPC only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.data.images import ImageError, encoded_image, load_image
from mrcnn_tf.detections import Detections
from mrcnn_tf.paste import PasteRule
from mrcnn_tf.prediction_files import write_predictions
from mrcnn_tf.serving_target import ServingError, Target

_OUTPUTS = (
    "image_errors",
    "num_detections",
    "image_size",
    "detection_boxes",
    "detection_classes",
    "detection_scores",
    "detection_class_names",
    "detection_category_ids",
)
_MASK_OUTPUTS = ("detection_masks", "mask_paste")
_NO_CATEGORY = {"id": 0, "name": ""}


class ServingClient:
    """A model on TensorFlow Serving as a function from a picture to `Detections`.

    Use it as a context manager, or call `close`; and each from one thread at a time.

    Args:
        url: `grpc://HOST:PORT`, `grpcs://HOST:PORT`, `http://HOST:PORT[/PREFIX]` or `https://HOST:PORT[/PREFIX]`.
        model_name: the name in the server's `models.config` (or its `--model_name`).
        version: None: the one that the server prefers, by default the newest.
        timeout: seconds for one picture. With REST no attempt starts later, and each has that long.
        retries: further attempts where the server cannot be reached or is not available; gRPC makes at most 4.
        max_answer_mb: the largest answer that is read, in millions of bytes.
        first_wait: seconds between the first attempts; from one to the next it doubles, up to 5.

    Raises:
        ValueError: an argument that cannot be.
        ServingError: gRPC is asked for, and the packages for it are not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        model_name: str = "mask_rcnn",
        version: int | None = None,
        timeout: float = 60,
        retries: int = 4,
        max_answer_mb: float = 64,
        first_wait: float = 0.5,
    ) -> None:
        self._target = Target(url, model_name, version, timeout, retries, max_answer_mb, first_wait)
        self._transport = _open_transport(self._target)

    def __enter__(self) -> ServingClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def detect_file(self, path: str | Path) -> Detections:
        """Find the objects of a picture.

        Args:
            path: what `load_image` reads. JPEG and PNG are sent as they are, anything else as a PNG of what `load_image` reads.

        Returns:
            Detections in pixels of the picture as `load_image` reads it. `categories` knows the classes that were found; the
            others have the id 0 and no name.

        Raises:
            ImageError: the picture cannot be read, here or there.
            ServingError: the server cannot be used.
        """
        data = encoded_image(path)
        try:
            return self.detect_bytes(data)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error

    def detect_bytes(self, data: bytes) -> Detections:
        """Find the objects of an encoded JPEG or PNG, as `detect_file` does.

        Raises:
            ImageError: the server cannot read the picture.
            ServingError: the server cannot be used.
        """
        answer = self._transport.predict(data)
        try:
            return read_answer(answer)
        except ImageError:
            raise
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise self._target.foreign_answer(str(error)) from error


def detect_files(
    client: ServingClient,
    paths: Sequence[str | Path],
    output_dir: str | Path,
    *,
    score_threshold: float = 0.5,
    progress: bool = True,
) -> dict[str, Any]:
    """Draw what a server finds in pictures, and write it down, as `write_predictions` does.

    Args:
        client: of the server.
        paths: the pictures.
        output_dir: made if it is not there.
        score_threshold: detections with a lower score are neither drawn nor written.
        progress: show a progress bar on stderr.

    Returns:
        What `write_predictions` returns.

    Raises:
        ServingError: the server cannot be used; no `detections.json` is written.
    """

    def find(path: Path) -> tuple[NDArray[np.uint8], Detections]:
        image = load_image(path)
        found = client.detect_file(path)
        if found.image_size != image.shape[:2]:
            raise ImageError(
                f"{path}: the server reads it as a picture of {found.image_size} (height, width), here it is one of "
                f"{image.shape[:2]}"
            )
        return image, found

    return write_predictions(find, paths, output_dir, score_threshold=score_threshold, progress=progress)


def read_answer(answer: Mapping[str, Any]) -> Detections:
    """The outputs of signature `serving_default` for one picture as `Detections`.

    Args:
        answer: the outputs without the batch axis (docs/serving.md), arrays or lists, strings as str or as UTF-8.

    Returns:
        Detections; see `ServingClient.detect_file` about `categories`.

    Raises:
        ImageError: the model could not read the picture.
        ValueError: an output is missing, or is not what it should be. TypeError, IndexError and OverflowError say the same.
    """
    expected = _OUTPUTS + (_MASK_OUTPUTS if any(name in answer for name in _MASK_OUTPUTS) else ())
    missing = [name for name in expected if name not in answer]
    if missing:
        raise ValueError(f"outputs are missing: {', '.join(missing)}")
    if fault := _text(answer["image_errors"]):
        raise ImageError(fault)
    count = int(answer["num_detections"])
    height, width = (int(side) for side in answer["image_size"])
    boxes = np.asarray(answer["detection_boxes"], np.float32)[:count]
    if len(boxes) != count:
        raise ValueError(f"num_detections is {count}, but there are {len(boxes)} boxes")
    classes = np.asarray(answer["detection_classes"], np.int32)[:count]
    has_masks = "detection_masks" in answer
    return Detections(
        boxes=boxes,
        classes=classes,
        scores=np.asarray(answer["detection_scores"], np.float32)[:count],
        mask_probs=np.asarray(answer["detection_masks"], np.float32)[:count] if has_masks else None,
        image_size=(height, width),
        categories=_categories(
            classes.tolist(), answer["detection_category_ids"][:count], answer["detection_class_names"][:count]
        ),
        paste=cast(PasteRule, _text(answer["mask_paste"])) if has_masks else "centred",
    )


def _categories(classes: Sequence[int], ids: Sequence[Any], names: Sequence[Any]) -> tuple[Mapping[str, Any], ...]:
    found = {
        number: {"id": int(category), "name": _text(name)} for number, category, name in zip(classes, ids, names, strict=True)
    }
    return tuple(found.get(number, _NO_CATEGORY) for number in range(1, max(found, default=0) + 1))


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


class _Transport(Protocol):
    def predict(self, image: bytes) -> dict[str, Any]: ...

    def close(self) -> None: ...


def _open_transport(target: Target) -> _Transport:
    if not target.is_grpc:
        from mrcnn_tf.serving_rest import RestTransport

        return RestTransport(target)
    try:
        from mrcnn_tf.serving_grpc import GrpcTransport
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("grpc", "tensorflow_serving"):
            raise
        raise ServingError(
            f"{target.url}: gRPC needs the package {error.name}. Run: pip install 'mrcnn-tf[serving]' (or use REST, http://)"
        ) from error
    return GrpcTransport(target)
