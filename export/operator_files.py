"""What the operator of a server finds beside the versions: configurations of TensorFlow Serving, and a compose file."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import jinja2

from mrcnn_tf.export.warmup import batch_sizes
from mrcnn_tf.files import replacing

FILES = ("models.config", "batching.config", "monitoring.config", "compose.yaml")


def write_operator_files(folder: Path, *, name: str, max_batch_size: int, fixed_sizes: bool) -> Iterator[tuple[Path, bool]]:
    """Write those files that are not there; what an operator has changed stays.

    Args:
        folder: of the served model.
        name: under which it is served.
        max_batch_size: most pictures in a batch.
        fixed_sizes: let the server fill batches up to a few sizes, each of which XLA compiles once.

    Yields:
        Each file's path, and whether it was written.
    """
    values = {"name": name, "max_batch_size": max_batch_size, "allowed_sizes": batch_sizes(max_batch_size) if fixed_sizes else []}
    templates = resources.files("mrcnn_tf.export") / "tf_serving"
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    for file in FILES:
        path = folder / file
        if path.exists():
            yield path, False
            continue
        template = environment.from_string((templates / f"{file}.j2").read_text(encoding="utf-8"))
        with replacing(path) as temporary:
            temporary.write_text(template.render(values), encoding="utf-8")
        yield path, True
