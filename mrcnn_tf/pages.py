"""HTML pages from the templates of this package, each a single file without references to others or to the network."""

from __future__ import annotations

import base64
import importlib.resources
from pathlib import Path
from typing import Any

import jinja2

from mrcnn_tf.files import replacing


def write_page(path: str | Path, template: str, **values: Any) -> None:
    """Fill in a template.

    Args:
        path: the HTML file; it appears complete or not at all.
        template: file name, in this package.
        values: of the template's variables; all it names must be given. Text is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(**values)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def data_url(content: bytes, suffix: str) -> str:
    """A PNG or JPEG as a `data:` URL; `suffix` is that of its file name."""
    kind = "jpeg" if suffix.lower() in (".jpg", ".jpeg") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _source(name: str) -> str:
    return importlib.resources.files("mrcnn_tf").joinpath(name).read_text(encoding="utf-8")
