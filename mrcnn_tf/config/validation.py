"""Sections of the configuration, and errors about them that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says which key and what was expected."""


class Section(BaseModel):
    """A frozen part of the configuration that knows its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SectionT = TypeVar("SectionT", bound=BaseModel)


def parse(section: type[SectionT], values: Mapping[str, Any], origin: str) -> SectionT:
    """Validate `values` as `section`, with errors a user can act on.

    Raises:
        ConfigError: says `origin`, the key, what was expected and what came.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = [_explain(section, item) for item in error.errors()]
        raise ConfigError("\n".join([f"{origin}:", *(f"  {line}" for line in lines)])) from error


def _explain(section: type[BaseModel], item: Mapping[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location) or "(top)"
    if item["type"] != "extra_forbidden":
        return f"{key}: {item['msg']} (got {item['input']!r})"
    fields = _fields_at(section, location[:-1])
    near = difflib.get_close_matches(location[-1], fields, n=1)
    hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else f"known keys: {', '.join(fields)}"
    return f"{key}: unknown key; {hint}"


def _fields_at(section: type[BaseModel], location: list[str]) -> list[str]:
    for name in location:
        if name.isdigit():  # a row of a tuple of sections, whose type the name before it has led to
            continue
        annotation = section.model_fields[name].annotation if name in section.model_fields else None
        annotation = next(iter(get_args(annotation)), annotation)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return list(section.model_fields)
