"""Which versions are there, and which of them a model's policy wants."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tensorflow_serving.config.model_server_config_pb2 import ModelConfig


def version_folders(base: Path) -> dict[int, Path]:
    """The versions below a model's folder: what is named by a number; anything else there is ignored."""
    return {int(child.name): child for child in sorted(base.iterdir()) if re.fullmatch(r"\d+", child.name)}


def aspired_versions(config: ModelConfig, present: Iterable[int]) -> list[int]:
    """The versions that a model's policy wants of those present, newest first; the default policy wants the newest."""
    newest_first = sorted(present, reverse=True)
    policy = config.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return newest_first
        case "specific":
            return [version for version in newest_first if version in policy.specific.versions]
        case _:
            return newest_first[: max(policy.latest.num_versions, 1)]
