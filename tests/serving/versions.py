"""Which versions of which models are served: folders watched, versions loaded and let go, requests directed to them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig

from tests.serving.policies import aspired_versions, version_folders
from tests.serving.servable import Servable
from tests.serving.status import Code, StatusError

States: Any = get_model_status_pb2.ModelVersionStatus
"""States of a version: START, LOADING, AVAILABLE, UNLOADING, END."""


@dataclass
class Version:
    """A version as the status API tells of it, and the servable while it is available."""

    state: int = States.START
    error: StatusError | None = None
    servable: Servable | None = None


class Versions:
    """The versions of all models.

    Args:
        configs: the models.
        load: makes a servable of a model's name, a version and its folder.
        any_labels: a new label may name a version that is not available yet.
    """

    def __init__(self, configs: Sequence[ModelConfig], load: Callable[[str, int, Path], Servable], *, any_labels: bool = False):
        self._configs = configs
        self._load, self._any_labels = load, any_labels
        self._pending: Sequence[ModelConfig] | None = None
        self._lock = threading.Lock()
        self._versions: dict[str, dict[int, Version]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._stopped = threading.Event()
        self._poller: threading.Thread | None = None

    def start(self, poll_seconds: float) -> None:
        """Return when every model has a version that is available; watch the folders from then on, if `poll_seconds` > 0.

        Raises:
            StatusError: a model's folder is not there, a version cannot be loaded, or a label names one that is not available:
                before any is loaded, none is, so that labels need `any_labels` here, as with TensorFlow Serving.
        """
        self._configure(self._configs)
        while True:
            self._poll()
            self._check_started()
            if all(self._available(config.name) for config in self._configs):
                break
            self._stopped.wait(poll_seconds or 1)
        if poll_seconds > 0:
            self._poller = threading.Thread(target=self._watch, args=(poll_seconds,), name="versions", daemon=True)
            self._poller.start()

    def reconfigure(self, configs: Sequence[ModelConfig]) -> None:
        """Serve these models instead, from the next look at the folders on, unless a label cannot be given."""
        self._pending = configs

    def close(self) -> None:
        """Stop watching and let every version go; requests under way are waited for."""
        self._stopped.set()
        if self._poller is not None:
            self._poller.join()
        for name in self._versions:
            self._unload(name, self._available(name))

    @contextmanager
    def use(self, spec: ModelSpec) -> Iterator[Servable]:
        """The servable that a request asks for; it is not let go before the end of the block.

        Raises:
            StatusError: NOT_FOUND: no such model or version; INVALID_ARGUMENT: no name, or an unknown label.
        """
        with self._lock:
            servable = self._find(spec)
            servable.enter()
        try:
            yield servable
        finally:
            servable.leave()

    def statuses(self, spec: ModelSpec) -> dict[int, Version]:
        """The versions of a model that have been seen, or the one asked for; labels count for nothing here, as in the real one.

        Raises:
            StatusError: NOT_FOUND: there is none.
        """
        with self._lock:
            versions = dict(sorted(self._versions.get(spec.name, {}).items()))
        if not spec.HasField("version"):
            if not versions:
                raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
            return versions
        wanted = spec.version.value
        if wanted not in versions:
            raise StatusError(Code.NOT_FOUND, f"Could not find version {wanted} of model {spec.name}")
        return {wanted: versions[wanted]}

    def _find(self, spec: ModelSpec) -> Servable:
        if not spec.name:
            raise StatusError(Code.INVALID_ARGUMENT, "ModelSpec has no name specified.")
        available = self._available(spec.name)
        match spec.WhichOneof("version_choice"):
            case "version":
                wanted = spec.version.value
            case "version_label":
                labels = self._labels.get(spec.name, {})
                if spec.version_label not in labels:
                    raise StatusError(Code.INVALID_ARGUMENT, f"Unrecognized servable version label: {spec.version_label}")
                wanted = labels[spec.version_label]
            case _:
                if not available:
                    raise StatusError(Code.NOT_FOUND, f"Servable not found for request: Latest({spec.name})")
                wanted = max(available)
        if wanted not in available:
            raise StatusError(Code.NOT_FOUND, f"Servable not found for request: Specific({spec.name}, {wanted})")
        return available[wanted]

    def _available(self, name: str) -> dict[int, Servable]:
        return {
            number: version.servable
            for number, version in self._versions.get(name, {}).items()
            if version.servable is not None and version.state == States.AVAILABLE
        }

    def _check_started(self) -> None:
        failed = [
            f"{{{{name: {name} version: {number}}} due to error: {version.error}}}, "
            for name, versions in self._versions.items()
            for number, version in versions.items()
            if version.error
        ]
        if failed:
            raise StatusError(Code.UNKNOWN, f"{len(failed)} model(s) did not become available: {{{''.join(failed)}}}")

    def _watch(self, seconds: float) -> None:
        while not self._stopped.wait(seconds):
            try:
                pending, self._pending = self._pending, None
                if pending is not None:
                    self._configure(pending)
                self._poll()
            except (StatusError, OSError) as error:
                print(f"looking for versions: {error}", file=sys.stderr, flush=True)

    def _configure(self, configs: Sequence[ModelConfig]) -> None:
        """Take over models and labels; nothing of them if a label cannot be given."""
        for config in configs:
            known, available = self._labels.get(config.name, {}), self._available(config.name)
            for label, version in config.version_labels.items():
                is_free = self._any_labels and known.get(label, version) == version
                if version not in available and not is_free:
                    message = (
                        f"Request to assign label to version {version} of model {config.name}, "
                        "which is not currently available for inference"
                    )
                    raise StatusError(Code.FAILED_PRECONDITION, message)
        self._configs = configs
        with self._lock:
            self._labels = {config.name: dict(config.version_labels) for config in configs}

    def _poll(self) -> None:
        """Load what has come; then, if one of the wanted versions is available, let go what is not wanted any more."""
        for config in self._configs:
            name, base = config.name, Path(config.base_path)
            if not base.is_dir():
                raise StatusError(Code.INVALID_ARGUMENT, f"Could not find base path {base} for servable {name}")
            folders = version_folders(base)
            aspired = aspired_versions(config, folders)
            for number in aspired:
                seen = self._versions.get(name, {}).get(number)
                if seen is None or (seen.state == States.END and seen.error is None):
                    self._load_version(name, number, folders[number])
            available = self._available(name)
            if not aspired or set(aspired) & set(available):
                self._unload(name, set(available) - set(aspired))
        for name in set(self._versions) - {config.name for config in self._configs}:
            self._unload(name, self._available(name))

    def _load_version(self, name: str, number: int, folder: Path) -> None:
        version = Version(States.LOADING)
        with self._lock:
            self._versions.setdefault(name, {})[number] = version
        try:
            version.servable = self._load(name, number, folder)
            version.state = States.AVAILABLE
        except Exception as error:
            known = isinstance(error, StatusError)
            version.error = error if known else StatusError(Code.INTERNAL, f"{type(error).__name__}: {error}")
            version.state = States.END
            print(f"Loading servable: {{name: {name} version: {number}}} failed: {version.error}", file=sys.stderr, flush=True)

    def _unload(self, name: str, numbers: Iterable[int]) -> None:
        for number in sorted(numbers):
            version = self._versions[name][number]
            with self._lock:
                servable, version.servable, version.state = version.servable, None, States.UNLOADING
            if servable is not None:
                servable.close()
            version.state = States.END
