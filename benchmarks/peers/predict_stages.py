"""The model and the picture of `commands.py`, and how long the parts of `mrcnn-tf predict` take in a process of their own.

    python -m benchmarks.peers.predict_stages make MODEL PICTURE
    python -m benchmarks.peers.predict_stages stages MODEL PICTURE FOLDER

The second prints a line of JSON, seconds of each part.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

HEIGHT, WIDTH = 800, 1216


def make(model: str, picture: str) -> None:
    """Write both files."""
    from PIL import Image

    from benchmarks.peers import seeded
    from benchmarks.peers.ours import imported

    imported("torchvision_v1").save(model)
    Image.fromarray(seeded.pictures(1, HEIGHT, WIDTH)[0]).save(picture)


def stages(model: str, picture: str, folder: str) -> None:
    """What `mrcnn-tf predict` does, part by part."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began

    with timed("import_command"):
        from mrcnn_tf.cli import silence_tensorflow

        silence_tensorflow()
    with timed("import_tensorflow"):
        import tensorflow  # noqa: F401
    with timed("import_ours"):
        from mrcnn_tf.data.images import load_image
        from mrcnn_tf.modeling.mask_rcnn import load_model
        from mrcnn_tf.predict import Predictor, predict_files
    with timed("load_model"):
        predictor = Predictor(load_model(model))
    image = load_image(picture)
    with timed("first_picture"):
        predictor(image)
    with timed("second_picture"):
        found = predictor(image)
    with timed("read_draw_write"):
        predict_files(lambda _: found, [picture], folder, progress=False)
    print(json.dumps(seconds))


if __name__ == "__main__":
    {"make": make, "stages": stages}[sys.argv[1]](*sys.argv[2:])
