"""Asking TensorFlow Serving by gRPC. Its messages hold TensorFlow's own, so this loads TensorFlow."""

from __future__ import annotations

import json
import time
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from mrcnn_tf.serving_target import IMAGE_INPUT, LONGEST_WAIT, SIGNATURE, ServingError, Target

MAX_RETRIES = 4
"""gRPC makes five attempts at most, whatever its configuration says (grpc/proposal A6, "Maximum Number of Retries")."""

_CONNECT_SECONDS = 10.0
_RECONNECT_SECONDS = 0.1


class GrpcTransport:
    """A channel to a server.

    Raises:
        ValueError: more retries than gRPC makes.
    """

    def __init__(self, target: Target) -> None:
        if target.retries > MAX_RETRIES:
            raise ValueError(f"gRPC makes at most {MAX_RETRIES} retries, got {target.retries}")
        self._target = target
        # The scheme keeps gRPC from taking a host's name for one.
        address, options = f"dns:///{target.parts.netloc}", _channel_options(target)
        if target.parts.scheme == "grpcs":
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(), options=options)
        else:
            self._channel = grpc.insecure_channel(address, options=options)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(self, image: bytes) -> dict[str, Any]:
        """Send one picture.

        Args:
            image: an encoded JPEG or PNG.

        Returns:
            The outputs of the signature without the batch axis, numpy.

        Raises:
            ServingError: no such answer was had.
        """
        target = self._target
        request = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(name=target.model_name, signature_name=SIGNATURE))
        if target.version is not None:
            request.model_spec.version.value = target.version
        request.inputs[IMAGE_INPUT].CopyFrom(tf.make_tensor_proto([image]))
        started = time.monotonic()
        try:
            response = self._predictions.Predict(request, timeout=target.timeout)
        except grpc.RpcError as error:
            raise self._failure(error, time.monotonic() - started) from error
        outputs = {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
        unbatched = sorted(name for name, output in outputs.items() if output.shape[:1] != (1,))
        if unbatched:
            raise target.foreign_answer(
                f"expected outputs of one picture, got no or another batch axis in {', '.join(unbatched)}"
            )
        return {name: output[0] for name, output in outputs.items()}

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _failure(self, error: grpc.RpcError, seconds: float) -> ServingError:
        target, code, details = self._target, error.code(), error.details() or ""
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return target.timed_out()
        if code == grpc.StatusCode.UNAVAILABLE:
            # What gRPC says of a server that answers in HTTP/1.
            wrong = "parsing HTTP/2" in details or "http1.x" in details
            return target.wrong_protocol() if wrong else target.no_answer(seconds, details)
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "Received message larger than max" in details:
            return target.too_large()
        if code == grpc.StatusCode.NOT_FOUND:
            return target.not_found(self._states(), details)
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return target.no_server(f"{code.name}: {details}")
        if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
            return target.refused(details)
        return target.error(f"{code.name}: {details}")

    def _states(self) -> dict[int, str] | None:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=model_pb2.ModelSpec(name=self._target.model_name))
        try:
            response = self._models.GetModelStatus(request, timeout=self._target.timeout)
        except grpc.RpcError as error:
            return {} if error.code() == grpc.StatusCode.NOT_FOUND else None
        state_name = get_model_status_pb2.ModelVersionStatus.State.Name
        return {found.version: state_name(found.state) for found in response.model_version_status}


def _channel_options(target: Target) -> list[tuple[str, Any]]:
    methods: dict[str, Any] = {"name": [{}]}
    if target.retries:
        methods["retryPolicy"] = {
            "maxAttempts": target.retries + 1,
            "initialBackoff": f"{target.first_wait}s",
            "maxBackoff": f"{LONGEST_WAIT}s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
    return [
        ("grpc.service_config", json.dumps({"methodConfig": [methods]})),
        ("grpc.max_receive_message_length", target.max_answer_bytes),
        ("grpc.max_send_message_length", -1),
        # A request is kept for another attempt only if it fits here, and the default is smaller than many a photo.
        ("grpc.per_rpc_retry_buffer_size", 2**31 - 1),
        # Else an attempt within a second of a refused connection would not even try to connect again.
        ("grpc.initial_reconnect_backoff_ms", int(_RECONNECT_SECONDS * 1000)),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.min_reconnect_backoff_ms", int(_CONNECT_SECONDS * 1000)),
        # Channels with equal options share their connections, and their waits, unless told not to.
        ("grpc.use_local_subchannel_pool", 1),
    ]
