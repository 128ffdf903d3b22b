"""Reads the names of a model's classes from a text file or from a COCO JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrcnn_tf.data.coco import DataError, read_categories


def read_class_names(path: str | Path) -> tuple[dict[str, Any], ...]:
    """Read the categories of a model.

    Args:
        path: of a text file (UTF-8) with one name per line, which get the ids 1..K; or of a COCO JSON file, whose categories are
            taken sorted by id.

    Returns:
        `{"id": int, "name": str}`; position i is class i + 1.

    Raises:
        DataError: the file is missing, empty or not text; a line is empty; a name comes twice; the JSON's categories are broken.
    """
    path = Path(path)
    text = _read_text(path)
    if text.lstrip().startswith("{"):
        return read_categories(path)
    if text.lstrip().startswith("["):
        raise DataError(f"{path}: expected one name per line or a COCO JSON object with categories, got a JSON list")
    if not text.strip():
        raise DataError(f"{path}: expected one class name per line, the file is empty")
    names = [line.strip() for line in text.removesuffix("\n").split("\n")]
    _check_names(names, path)
    return tuple({"id": number, "name": name} for number, name in enumerate(names, 1))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file of class names") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as text: {error}") from error


def _check_names(names: list[str], path: Path) -> None:
    first_lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if not name:
            raise DataError(f"{path}, line {line}: expected a class name, the line is empty")
        if name in first_lines:
            raise DataError(f"{path}, line {line}: class name {name!r} stands already in line {first_lines[name]}")
        first_lines[name] = line
