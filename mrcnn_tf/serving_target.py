"""One model on a TensorFlow Serving server, and what can go wrong with it, the same for gRPC and REST."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

SCHEMES = ("grpc", "grpcs", "http", "https")
SIGNATURE = "serving_default"
IMAGE_INPUT = "image_bytes"
LONGEST_WAIT = 5.0
"""No wait between two attempts is longer, seconds."""
LONGEST_TIMEOUT = 86400
"""A day, seconds: sockets do not take just any number."""
LARGEST_ANSWER_MB = 2000
"""A message of gRPC has at most 2**31 - 1 bytes."""

_MESSAGE_LENGTH = 300


class ServingError(OSError):
    """A server that cannot be used as asked; the message is one line that names the server."""


@dataclass(frozen=True)
class Target:
    """Which model is asked, and how patiently.

    Attributes:
        url: `grpc://HOST:PORT`, `grpcs://HOST:PORT`, `http://HOST:PORT[/PREFIX]` or `https://HOST:PORT[/PREFIX]`.
        model_name: the server's name of the model.
        version: None: the one that the server prefers, which is the newest unless its `models.config` says otherwise.
        timeout: seconds for one picture.
        retries: further attempts where the server cannot be reached or says that it is not available.
        max_answer_mb: the largest answer that is read, in millions of bytes.
        first_wait: seconds between the first attempts; from one to the next it doubles, up to `LONGEST_WAIT`.

    Raises:
        ValueError: one of these cannot be; the message says what was expected.
    """

    url: str
    model_name: str
    version: int | None
    timeout: float
    retries: int
    max_answer_mb: float
    first_wait: float

    def __post_init__(self) -> None:
        _check_url(self.url)
        if not self.model_name or set(self.model_name) & set("/:"):
            raise ValueError(f"expected the name of a model, without / and :, got {self.model_name!r}")
        if self.version is not None and self.version < 0:
            raise ValueError(f"the version of a model is a whole number from 0, got {self.version}")
        if not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise ValueError(f"timeout must be above 0 and at most {LONGEST_TIMEOUT} seconds, got {self.timeout}")
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, got {self.retries}")
        if not 0 < self.max_answer_mb <= LARGEST_ANSWER_MB:
            raise ValueError(f"max_answer_mb must be above 0 and at most {LARGEST_ANSWER_MB}, got {self.max_answer_mb}")
        if not 0 < self.first_wait <= LONGEST_WAIT:
            raise ValueError(f"first_wait must be above 0 and at most {LONGEST_WAIT} seconds, got {self.first_wait}")

    @property
    def parts(self) -> SplitResult:
        """The parts of the url."""
        return urlsplit(self.url)

    @property
    def is_grpc(self) -> bool:
        """The server is asked by gRPC, not by REST."""
        return self.parts.scheme in ("grpc", "grpcs")

    @property
    def max_answer_bytes(self) -> int:
        """The largest answer that is read."""
        return int(self.max_answer_mb * 1e6)

    def error(self, message: str) -> ServingError:
        """The error with this message about this server."""
        return ServingError(f"{self.url}: {one_line(message)}")

    def no_answer(self, seconds: float, reason: str) -> ServingError:
        """The server cannot be reached, or is not available, after `seconds`."""
        return self.error(f"no answer after {seconds:.1f} s and up to {self.retries} retries: {one_line(reason)}")

    def timed_out(self) -> ServingError:
        """The picture's time is over."""
        return self.error(f"no answer within {self.timeout:g} s (--timeout)")

    def too_large(self) -> ServingError:
        """The answer is larger than it may be."""
        return self.error(f"the answer is larger than {self.max_answer_mb:g} MB (--max-answer-mb)")

    def no_server(self, answer: str) -> ServingError:
        """What answers is no TensorFlow Serving."""
        return self.error(f"expected an answer of TensorFlow Serving, got {one_line(answer)}; is the address right?")

    def wrong_protocol(self) -> ServingError:
        """REST was spoken to the port of gRPC, or gRPC to that of REST."""
        this, other = ("gRPC", "http") if self.is_grpc else ("REST", "grpc")
        return self.error(
            f"what listens there does not speak {this}; TensorFlow Serving has gRPC (grpc://) on port 8500 and REST (http://) "
            f"on port 8501 unless it is told otherwise: try {other}://"
        )

    def refused(self, message: str) -> ServingError:
        """The model does not take the request of a model of `mrcnn-tf export`."""
        return self.error(
            f"model {self.model_name!r} does not take {IMAGE_INPUT} at signature {SIGNATURE}, as one of `mrcnn-tf export "
            f"saved-model` does: {one_line(message)}"
        )

    def foreign_answer(self, message: str) -> ServingError:
        """The model does not answer as a model of `mrcnn-tf export` does."""
        return self.error(
            f"model {self.model_name!r} does not answer as one of `mrcnn-tf export saved-model` does: {one_line(message)}"
        )

    def not_found(self, states: Mapping[int, str] | None, message: str) -> ServingError:
        """The server has no such model, or not this version of it.

        Args:
            states: of each version of the model that the server knows, such as `AVAILABLE`; None where it could not be asked.
            message: the server's own.
        """
        name = repr(self.model_name)
        origin = "the name (--model-name) must be one of the server's models.config, or its own --model_name"
        if states is None:
            wanted = name if self.version is None else f"{name}, or no version {self.version} of it"
            return self.error(f"no model {wanted}; {origin}: {one_line(message)}")
        if not states:
            return self.error(f"no model {name} there; {origin}")
        known = ", ".join(f"{version} ({state})" for version, state in sorted(states.items()))
        if self.version is not None and self.version not in states:
            return self.error(f"no version {self.version} of model {name} there (--version); there are: {known}")
        return self.error(f"model {name} cannot be used now; its versions: {known}")


def one_line(message: str) -> str:
    """A message of a server, which may have lines, and hold all that was sent."""
    text = " ".join(message.split())
    return text if len(text) <= _MESSAGE_LENGTH else text[:_MESSAGE_LENGTH] + "…"


def _check_url(url: str) -> None:
    expected = "expected grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST:PORT[/PREFIX] or https://HOST:PORT[/PREFIX]"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url}: {error}; {expected}") from error
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise ValueError(f"{url}: {expected}")
    if not port:
        raise ValueError(f"{url}: no port; {expected} (TensorFlow Serving: 8500 for gRPC, 8501 for REST)")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"{url.replace(parts.netloc, parts.netloc.rpartition('@')[2])}: {expected}, and nothing else")
    if parts.scheme.startswith("grpc") and parts.path.strip("/"):
        raise ValueError(f"{url}: gRPC has no path; {expected}")
    if "/v1/models" in parts.path:
        raise ValueError(f"{url}: leave /v1/models out, the model is named by --model-name; {expected}")
