"""TFRecord files of `PredictionLog`: warm-up requests and the log of requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from tests.serving.status import Code, StatusError


def read_logs(path: Path) -> Iterator[prediction_log_pb2.PredictionLog]:
    """The records of a file, in order.

    Raises:
        StatusError: DATA_LOSS: it is no TFRecord file, or a damaged one; INVALID_ARGUMENT: a record is no `PredictionLog`.
    """
    reader = PyRecordReader_New(str(path))
    try:
        while True:
            try:
                reader.GetNext()
            except errors.OutOfRangeError:
                return
            except errors.DataLossError as error:
                message = f"{error}. Please verify your warmup data is in TFRecord format."
                raise StatusError(Code.DATA_LOSS, message) from error
            try:
                yield prediction_log_pb2.PredictionLog.FromString(reader.record())
            except DecodeError as error:
                raise StatusError(Code.INVALID_ARGUMENT, f"Failed to parse warmup record from {path}") from error
    finally:
        reader.file_handle.close()


class RequestLog:
    """Every answered Predict request, in the order of the answers; the file is whole after each."""

    def __init__(self, path: str | Path):
        self._lock = threading.Lock()
        self._file = open(path, "wb")  # noqa: SIM115 - it stays open as long as the server runs
        self._writer = RecordWriter(self._file)

    def write(self, request: predict_pb2.PredictRequest, response: predict_pb2.PredictResponse) -> None:
        """Append one request with its answer."""
        log = prediction_log_pb2.PredictionLog()
        log.log_metadata.model_spec.CopyFrom(response.model_spec)
        log.predict_log.request.CopyFrom(request)
        log.predict_log.response.CopyFrom(response)
        with self._lock:
            self._writer.write(log.SerializeToString())
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()
