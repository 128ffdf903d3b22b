"""Warm-up requests: what TensorFlow Serving runs through a version before it takes requests of users.

The first run of a signature is slow: kernels are chosen, memory is got, XLA compiles. The server replays the records of
`assets.extra/tf_serving_warmup_requests`, a TFRecord file of `PredictionLog`, before it calls the version available.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from mrcnn_tf.data.images import encode_png, encoded_image, image_paths, load_image
from mrcnn_tf.data.shapes import draw_shapes

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
MAX_REQUESTS = 1000
"""TensorFlow Serving refuses a version with more."""
_DRAWN_SIZES = ((480, 640), (640, 480))


class Picture(NamedTuple):
    """A picture as a client sends it, and as it looks.

    Attributes:
        data: of a JPEG or PNG file.
        pixels: [h, w, 3] uint8 RGB, upright.
    """

    data: bytes
    pixels: NDArray[np.uint8]


def drawn_pictures() -> list[Picture]:
    """Two pictures of drawn shapes as PNG, 4 to 3 and 3 to 4, as cameras have them."""
    drawn = [draw_shapes(0, number, image_size=size)[0] for number, size in enumerate(_DRAWN_SIZES)]
    return [Picture(encode_png(image), image) for image in drawn]


def read_pictures(sources: Sequence[str | Path]) -> list[Picture]:
    """Pictures from files; those that are neither JPEG nor PNG become PNG.

    Args:
        sources: files, folders and patterns.

    Raises:
        ImageError: one cannot be read.
    """
    return [Picture(encoded_image(path), load_image(path)) for path in image_paths(sources)]


def batch_sizes(largest: int) -> list[int]:
    """Powers of two up to the largest size, and that size: what is warmed up, and what XLA compiles for."""
    powers = [2**i for i in range(largest.bit_length()) if 2**i < largest]
    return [*powers, largest]


def warmup_requests(pictures: Sequence[Picture], *, name: str, signatures: Collection[str], sizes: Sequence[int]) -> list[Any]:
    """A request for each picture, signature and batch size, the picture repeated to fill the batch.

    Args:
        pictures: of the sizes that users send.
        name: of the served model.
        signatures: of the SavedModel.
        sizes: of batches.

    Returns:
        `PredictionLog` records.

    Raises:
        ModuleNotFoundError: tensorflow-serving-api is not installed.
        ValueError: there would be more than `MAX_REQUESTS`.
    """
    count = len(pictures) * len(signatures) * len(sizes)
    if count > MAX_REQUESTS:
        raise ValueError(
            f"{len(pictures)} warm-up pictures make {count} requests ({len(signatures)} signatures, batches of "
            f"{', '.join(map(str, sizes))}), TensorFlow Serving takes at most {MAX_REQUESTS}"
        )
    return list(_requests(pictures, name, signatures, sizes))


def write_warmup(requests: Sequence[Any], path: Path) -> int:
    """Write records as TFRecord; gives their number."""
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            writer.write(request.SerializeToString())
    return len(requests)


def _requests(pictures: Sequence[Picture], name: str, signatures: Collection[str], sizes: Sequence[int]) -> Iterator[Any]:
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("warm-up requests need tensorflow-serving-api: pip install 'mrcnn-tf[serving]'") from error

    for picture in pictures:
        for signature in signatures:
            for size in sizes:
                log = prediction_log_pb2.PredictionLog()
                request = log.predict_log.request
                request.model_spec.name = name
                request.model_spec.signature_name = signature
                key, batch = (
                    ("images", np.stack([picture.pixels] * size))
                    if signature == "image"
                    else ("image_bytes", [picture.data] * size)
                )
                request.inputs[key].CopyFrom(tf.make_tensor_proto(batch))
                yield log
