"""Asking TensorFlow Serving by REST. TensorFlow is not needed."""

from __future__ import annotations

import base64
import http.client
import json
import time
from types import TracebackType
from typing import Any
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import MaxRetryError
from urllib3.util.retry import Retry

from mrcnn_tf.serving_target import IMAGE_INPUT, LONGEST_WAIT, SIGNATURE, ServingError, Target

_CONNECT_SECONDS = 10.0
_UNAVAILABLE = (502, 503, 504)
_CHUNK = 1 << 13
"""Bytes read between two looks at the clock and at the size."""


class RestTransport:
    """A connection to a server by REST (https://www.tensorflow.org/tfx/serving/api_rest), for one thread."""

    def __init__(self, target: Target) -> None:
        self._target = target
        model = f"{target.parts.path.rstrip('/')}/v1/models/{quote(target.model_name, safe='')}"
        self._model_url = f"{target.parts.scheme}://{target.parts.netloc}{model}"
        self._adapter = HTTPAdapter()
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, self._adapter)

    def predict(self, image: bytes) -> dict[str, Any]:
        """Send one picture.

        Args:
            image: an encoded JPEG or PNG.

        Returns:
            The outputs of the signature without the batch axis, as JSON has them.

        Raises:
            ServingError: no such answer was had.
        """
        request = {
            "signature_name": SIGNATURE,
            "instances": [{IMAGE_INPUT: {"b64": base64.b64encode(image).decode("ascii")}}],
        }
        version = "" if self._target.version is None else f"/versions/{self._target.version}"
        status, answer = self._ask("POST", f"{self._model_url}{version}:predict", request)
        if status == http.client.OK and "predictions" in answer:
            return self._only(answer["predictions"])
        if "error" not in answer:
            raise self._target.no_server(f"HTTP {status} with the keys {sorted(answer)}")
        if status == http.client.NOT_FOUND:
            raise self._target.not_found(self._states(), str(answer["error"]))
        if status == http.client.BAD_REQUEST:
            raise self._target.refused(str(answer["error"]))
        raise self._target.error(f"HTTP {status}: {answer['error']}")

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def _only(self, predictions: Any) -> dict[str, Any]:
        if not (isinstance(predictions, list) and len(predictions) == 1 and isinstance(predictions[0], dict)):
            raise self._target.foreign_answer("expected one prediction with named outputs")
        return predictions[0]

    def _states(self) -> dict[int, str] | None:
        try:
            status, answer = self._ask("GET", self._model_url, None)
            if status == http.client.NOT_FOUND:
                return {}
            return {int(found["version"]): str(found["state"]) for found in answer["model_version_status"]}
        except (ServingError, KeyError, TypeError, ValueError):
            return None

    def _ask(self, method: str, url: str, request: Any) -> tuple[int, dict[str, Any]]:
        """The status and the JSON object of the answer."""
        target, started = self._target, time.monotonic()
        deadline = started + target.timeout
        # The first retry of urllib3 comes at once, which is what a connection needs that has been idle for too long.
        self._adapter.max_retries = _Retry(
            deadline=deadline,
            total=target.retries,
            other=0,
            allowed_methods=None,
            status_forcelist=_UNAVAILABLE,
            raise_on_status=False,
            backoff_factor=target.first_wait,
            backoff_max=LONGEST_WAIT,
            respect_retry_after_header=False,
        )
        try:
            with self._session.request(
                method,
                url,
                json=request,
                timeout=(min(target.timeout, _CONNECT_SECONDS), target.timeout),
                stream=True,
                allow_redirects=False,
            ) as response:
                content = self._read(response, deadline)
        except requests.RequestException as error:
            raise self._failure(error, time.monotonic() - started) from error
        answer = _json_object(content)
        if response.status_code in _UNAVAILABLE:
            message = f"HTTP {response.status_code} {(answer or {}).get('error', response.reason)}"
            raise target.no_answer(time.monotonic() - started, message)
        if answer is None:
            kind = response.headers.get("Content-Type", "no type")
            place = f", moved to {response.headers['Location']}" if response.is_redirect else ""
            raise target.no_server(f"HTTP {response.status_code} with {kind}{place}")
        return response.status_code, answer

    def _read(self, response: requests.Response, deadline: float) -> bytes:
        content = bytearray()
        for chunk in response.iter_content(_CHUNK):
            content += chunk
            if len(content) > self._target.max_answer_bytes:
                raise self._target.too_large()
            if time.monotonic() > deadline:
                raise self._target.timed_out()
        return bytes(content)

    def _failure(self, error: requests.RequestException, seconds: float) -> ServingError:
        if seconds >= self._target.timeout:
            return self._target.timed_out()
        if _speaks_otherwise(error):
            return self._target.wrong_protocol()
        root = _root(error)
        return self._target.no_answer(seconds, str(root) or type(root).__name__)


class _Retry(Retry):
    """Makes no attempt after the picture's time, and no other one where that cannot help."""

    def __init__(self, *args: Any, deadline: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline = deadline

    def new(self, **kwargs: Any) -> _Retry:
        return super().new(deadline=self._deadline, **kwargs)

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: BaseHTTPResponse | None = None,
        error: Exception | None = None,
        _pool: Any = None,
        _stacktrace: TracebackType | None = None,
    ) -> _Retry:
        if error is not None and _speaks_otherwise(error):
            raise error
        following = super().increment(method, url, response, error, _pool, _stacktrace)
        if time.monotonic() >= self._deadline:
            raise MaxRetryError(_pool, url or "", error)
        return following


def _speaks_otherwise(error: BaseException) -> bool:
    """Something answered, and not by HTTP/1."""
    root = _root(error)
    return isinstance(root, http.client.BadStatusLine) and not isinstance(root, http.client.RemoteDisconnected)


def _root(error: BaseException) -> BaseException:
    """What went wrong first: the libraries wrap it several times, as the cause or as an argument."""
    while inner := error.__cause__ or next((part for part in error.args if isinstance(part, BaseException)), error.__context__):
        error = inner
    return error


def _json_object(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
