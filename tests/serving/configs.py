"""The text protos that `tensorflow_model_server` reads.

`BatchingParameters` and `MonitoringConfig` are not in the published package (tensorflow-serving-api), so their descriptors are
built here from the published definitions: tensorflow_serving/servables/tensorflow/session_bundle_config.proto and
tensorflow_serving/config/monitoring_config.proto.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from google.protobuf.message import Message

from tests.serving.status import Code, StatusError

_OPTIONAL, _REPEATED = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL, descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
_TYPES = {
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
}
_INT64, _BOOL, _STRING = (f".google.protobuf.{name}Value" for name in ("Int64", "Bool", "String"))

_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "BatchingParameters": {
        "max_batch_size": (1, _INT64),
        "batch_timeout_micros": (2, _INT64),
        "max_enqueued_batches": (3, _INT64),
        "num_batch_threads": (4, _INT64),
        "thread_pool_name": (5, _STRING),
        "allowed_batch_sizes": (6, "repeated int64"),
        "pad_variable_length_inputs": (7, "bool"),
        "enable_large_batch_splitting": (8, _BOOL),
        "max_execution_batch_size": (9, _INT64),
    },
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
    "MonitoringConfig": {"prometheus_config": (1, ".tensorflow.serving.PrometheusConfig")},
}
"""Number and type of the fields of each message; a type that begins with a dot is a message."""


def _classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/serving/configs.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = _REPEATED if kind.startswith("repeated ") else _OPTIONAL
            described = message.field.add(name=field, number=number, label=label)
            if kind.startswith("."):
                described.type, described.type_name = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE, kind
            else:
                described.type = _TYPES[kind.removeprefix("repeated ")]
    # A pool of its own: nobody else's definition of these messages can be in the way.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}")) for name in _MESSAGES}


_CLASSES = _classes()
BatchingParameters: Any = _CLASSES["BatchingParameters"]
MonitoringConfig: Any = _CLASSES["MonitoringConfig"]

_M = TypeVar("_M", bound=Message)


def read_text_proto(path: str | Path, kind: type[_M]) -> _M:
    """Parse a file in protobuf's text format.

    Raises:
        StatusError: INVALID_ARGUMENT: the file is not what `kind` says; NOT_FOUND: there is no such file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StatusError(Code.NOT_FOUND, f"{path}; No such file or directory") from error
    try:
        return text_format.Parse(text, kind())
    except text_format.ParseError as error:
        raise StatusError(Code.INVALID_ARGUMENT, f"Invalid protobuf file: '{path}': {error}") from error
