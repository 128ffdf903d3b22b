"""Predict requests over gRPC and what comes back, for the tests of the server."""

from __future__ import annotations

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2


def predict_request(model="toy", signature="", version=None, label=None, outputs=(), **inputs):
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name, request.model_spec.signature_name = model, signature
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def arrays(response):
    return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
