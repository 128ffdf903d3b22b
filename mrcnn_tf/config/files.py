"""Configurations from YAML files, from those that come with the package, and from `.keras` files."""

from __future__ import annotations

import copy
import difflib
import importlib.resources
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mrcnn_tf.config.run import Config
from mrcnn_tf.config.validation import ConfigError, parse
from mrcnn_tf.presets import merge


def shipped_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    folder = importlib.resources.files("mrcnn_tf.configs")
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration.

    Args:
        source: path of a YAML file, or the name of a shipped configuration (`shipped_configs()`).
        overrides: `section.key=value` strings; values are YAML (`train.batch_size=4`, `data.min_sizes=[256]`).

    Returns:
        The validated, frozen configuration.

    Raises:
        ConfigError: no such file or name, broken YAML, an unknown key (the nearest valid one is named) or a wrong value.
    """
    text, origin = _read_source(source)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} must hold a mapping of sections, got {type(values).__name__}")
    return parse(Config, _on_top_of_weights(overridden(values, overrides), origin), origin)


def overridden(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Nested values, changed by `section.key=value` strings.

    Args:
        values: left as they are.
        overrides: the values are YAML.

    Returns:
        The changed values.

    Raises:
        ConfigError: a string of another form, broken YAML, or a section that is a value.
    """
    changed = copy.deepcopy(dict(values))
    for override in overrides:
        _apply_override(changed, override)
    return changed


def stored_model_config(path: str | Path, where: str) -> dict[str, Any]:
    """The `model` section that a `.keras` file holds, read without TensorFlow.

    Args:
        path: of the file.
        where: what names it, for messages.

    Returns:
        Nested values.

    Raises:
        ConfigError: no such file, or not of a `MaskRCNN`.
    """
    try:
        with zipfile.ZipFile(Path(path).expanduser()) as archive:
            return json.loads(archive.read("config.json"))["config"]["config"]
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: there is no file {path}") from error
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{where}: {path} is no .keras file of a mrcnn_tf.MaskRCNN (see mrcnn-tf import-weights)") from error


def _on_top_of_weights(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """Where `model.weights` names a model, its own configuration below the values of `model`, but for the categories."""
    model = values.get("model")
    path = model.get("weights") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(path, str):
        return values
    base = stored_model_config(path, f"{origin}: model.weights")
    return {**values, "model": merge({key: value for key, value in base.items() if key not in ("categories", "weights")}, model)}


def _read_source(source: str | Path) -> tuple[str, str]:
    path = Path(source).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8"), str(path)
    name = str(source)
    if name in shipped_configs():
        return importlib.resources.files("mrcnn_tf.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8"), name
    near = difflib.get_close_matches(name, shipped_configs(), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"No configuration file {name}, and no shipped one of that name: {', '.join(shipped_configs())}.{hint}")


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"An override is written section.key=value, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of {key} is not valid YAML: {text!r}") from error
    *sections, last = key.split(".")
    node = values
    for section in sections:
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {section} is a value, not a section")
        node = child
    node[last] = value
