"""PredictionService and ModelService over gRPC."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NoReturn

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.serving.metrics import Metrics
from tests.serving.records import RequestLog
from tests.serving.status import Code, StatusError
from tests.serving.tensors import from_proto, to_proto
from tests.serving.versions import Versions

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
_MAX_MESSAGE = 2**31 - 1
_MAX_ERROR = 1024  # characters; gRPC itself refuses long ones
_LONG = 1e6  # seconds
_THREADS = 128  # each request under way holds one, also while it waits for a batch


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the others stay unimplemented."""

    def __init__(self, versions: Versions, metrics: Metrics, log: RequestLog | None):
        self._versions, self._metrics, self._log = versions, metrics, log

    def Predict(self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext) -> predict_pb2.PredictResponse:
        with _statuses(context), self._metrics.request(request.model_spec.name, "Predict", "GRPC"):
            _require_spec(request)
            with self._versions.use(request.model_spec) as servable:
                inputs = {alias: _read(alias, tensor) for alias, tensor in request.inputs.items()}
                signature = request.model_spec.signature_name
                outputs = servable.predict(signature, inputs, request.output_filter, _timeout(context))
                response = predict_pb2.PredictResponse(model_spec=servable.spec(signature))
            for alias, value in outputs.items():
                response.outputs[alias].CopyFrom(to_proto(value))
            if self._log is not None:
                self._log.write(request, response)
            return response

    def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        with _statuses(context):
            _require_spec(request)
            if not request.metadata_field:
                message = "GetModelMetadataRequest must specify at least one metadata_field"
                raise StatusError(Code.INVALID_ARGUMENT, message)
            for field in request.metadata_field:
                if field != "signature_def":
                    raise StatusError(Code.INVALID_ARGUMENT, f"Metadata field {field} is not supported")
            return model_metadata(self._versions, request.model_spec)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus; reloading the configuration stays unimplemented."""

    def __init__(self, versions: Versions):
        self._versions = versions

    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        with _statuses(context):
            _require_spec(request)
            return model_status(self._versions, request.model_spec)


def model_metadata(versions: Versions, spec: model_pb2.ModelSpec) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """The signatures of a version."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with versions.use(spec) as servable:
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        for name, signature in servable.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
    response.metadata["signature_def"].Pack(signatures)
    return response


def model_status(versions: Versions, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
    """The states of a model's versions."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for number, version in versions.statuses(spec).items():
        entry = response.model_version_status.add(version=number, state=version.state)
        entry.status.error_code = Code.OK if version.error is None else version.error.code
        entry.status.error_message = "" if version.error is None else version.error.message
    return response


def start(versions: Versions, metrics: Metrics, log: RequestLog | None, port: int) -> tuple[grpc.Server, int]:
    """Serve both services on all addresses of a port (0: any that is free); the server and its port."""
    options = (("grpc.max_receive_message_length", _MAX_MESSAGE), ("grpc.max_send_message_length", _MAX_MESSAGE))
    # SO_REUSEPORT would let two servers share a port unnoticed.
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=(*options, ("grpc.so_reuseport", 0)))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(versions, metrics, log), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(versions), server)
    bound = server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    return server, bound


def _read(alias: str, tensor: object) -> object:
    try:
        return from_proto(tensor)
    except StatusError as error:
        raise StatusError(error.code, f"tensor parsing error: {alias}: {error.message}") from error


def _timeout(context: grpc.ServicerContext) -> float | None:
    """Seconds to the client's deadline. Without one gRPC gives centuries."""
    remaining = context.time_remaining()
    return None if remaining is None or remaining > _LONG else remaining


def _require_spec(request: object) -> None:
    if not request.HasField("model_spec"):
        raise StatusError(Code.INVALID_ARGUMENT, "Missing ModelSpec")


@contextmanager
def _statuses(context: grpc.ServicerContext) -> Iterator[None]:
    """End the call with the status of an error."""
    try:
        yield
    except StatusError as error:
        _abort(context, error.code, error.message)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        _abort(context, Code.INTERNAL, f"{type(error).__name__}: {error}")


def _abort(context: grpc.ServicerContext, code: Code, message: str) -> NoReturn:
    context.abort(_GRPC_CODES[code], message if len(message) <= _MAX_ERROR else f"{message[:_MAX_ERROR]}...TRUNCATED")
    raise AssertionError("abort raises")
