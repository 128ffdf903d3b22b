"""The REST API and the page of metrics over HTTP."""

from __future__ import annotations

import json
import re
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from google.protobuf.json_format import MessageToDict
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2

from tests.serving import json_tensors
from tests.serving.grpc_service import model_metadata, model_status
from tests.serving.metrics import Metrics
from tests.serving.records import RequestLog
from tests.serving.servable import DEFAULT_SIGNATURE
from tests.serving.status import HTTP_STATUS, Code, StatusError
from tests.serving.tensors import to_proto
from tests.serving.versions import Versions

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(rf"(?i){_MODEL}:(?P<method>predict|classify|regress)")
_GET = re.compile(rf"(?i){_MODEL}(?P<metadata>/metadata)?")
_JSON, _TEXT = "application/json", "text/plain"


class RestServer(ThreadingHTTPServer):
    """Answers on all addresses of a port (0: any that is free), each connection in a thread of its own.

    Args:
        versions: what is served.
        metrics: its page, and where requests are counted.
        log: of requests, if wanted.
        port: see above.
        metrics_path: where the page of metrics is; None if there is none.
        timeout: seconds for running the graph; None: any time.
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(
        self,
        versions: Versions,
        metrics: Metrics,
        log: RequestLog | None,
        port: int,
        *,
        metrics_path: str | None = None,
        timeout: float | None = None,
    ):
        super().__init__(("0.0.0.0", port), _Handler)
        self._run_timeout = timeout
        self._versions, self._metrics, self._log, self._metrics_path = versions, metrics, log, metrics_path
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True, name="rest")
        self._thread.start()

    def close(self) -> None:
        """Accept no more connections."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, str, bytes]:
        """HTTP status, content type and body of the answer to a request."""
        path = urlsplit(target).path
        if self._metrics_path is not None and path == self._metrics_path:
            return 200, _TEXT, self._metrics.page().encode()
        if not path.lower().startswith("/v1/"):
            return 404, _TEXT, b"Not Found"
        try:
            return 200, _JSON, self._rest(method, path, body)
        except StatusError as error:
            return HTTP_STATUS.get(error.code, 500), _JSON, _error(error.message)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            return 500, _JSON, _error(f"{type(error).__name__}: {error}")

    def _rest(self, method: str, path: str, body: bytes) -> bytes:
        found = _PREDICT.fullmatch(path) if method == "POST" else _GET.fullmatch(path) if method == "GET" else None
        if found is None:
            raise StatusError(Code.INVALID_ARGUMENT, f"Malformed request: {method} {path}")
        spec = model_pb2.ModelSpec(name=unquote(found["name"]))
        if found["version"]:
            spec.version.value = int(found["version"])
        elif found["label"]:
            spec.version_label = unquote(found["label"])
        if method == "POST":
            with self._metrics.request(spec.name, found["method"], "REST"):
                if found["method"].lower() != "predict":
                    raise StatusError(Code.UNIMPLEMENTED, f"the stand-in does not do {found['method']}")
                return self._predict(spec, json_tensors.parse_object(body))
        return _metadata(self._versions, spec) if found["metadata"] else _status(self._versions, spec)

    def _predict(self, spec: model_pb2.ModelSpec, document: dict[str, Any]) -> bytes:
        signature = document.get("signature_name", "")
        if not isinstance(signature, str):
            message = (
                f"JSON Value: {json.dumps(document)[:256]} not formatted correctly. 'signature_name' key must be a string value."
            )
            raise StatusError(Code.INVALID_ARGUMENT, message)
        spec.signature_name = signature
        with self._versions.use(spec) as servable:
            definition = servable.signatures.get(signature or DEFAULT_SIGNATURE)
            if definition is None:
                message = f'Serving signature name: "{signature or DEFAULT_SIGNATURE}" not found in signature def'
                raise StatusError(Code.INVALID_ARGUMENT, message)
            inputs, row_form = json_tensors.read_inputs(document, definition.inputs)
            outputs = servable.predict(signature, inputs, timeout=self._run_timeout)
            answered = servable.spec(signature)
        if self._log is not None:
            self._log.write(
                predict_pb2.PredictRequest(model_spec=spec, inputs={name: to_proto(value) for name, value in inputs.items()}),
                predict_pb2.PredictResponse(
                    model_spec=answered, outputs={name: to_proto(value) for name, value in outputs.items()}
                ),
            )
        return json_tensors.write_outputs(outputs, row_form)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: RestServer

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = self.headers.get("Content-Length", "0")
        body = self.rfile.read(int(length)) if length.isdigit() else b""
        status, kind, content = self.server.answer(self.command, self.path, body)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """No line for each request."""


def _error(message: str) -> bytes:
    return json.dumps({"error": message}, ensure_ascii=False).encode()


def _status(versions: Versions, spec: model_pb2.ModelSpec) -> bytes:
    status = model_status(versions, spec)
    return json.dumps(MessageToDict(status, always_print_fields_with_no_presence=True), indent=1).encode()


def _metadata(versions: Versions, spec: model_pb2.ModelSpec) -> bytes:
    response = model_metadata(versions, spec)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)

    def as_dict(message: Any) -> Any:
        return MessageToDict(message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True)

    content = {"model_spec": as_dict(response.model_spec), "metadata": {"signature_def": as_dict(signatures)}}
    return json.dumps(content, indent=1).encode()
