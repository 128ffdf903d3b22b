"""A SavedModel loaded and run by TensorFlow's C API: numpy in, numpy out, no Python op, no `tf.function`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2

from tests.serving import libtensorflow
from tests.serving.status import Code, StatusError

DTYPES: dict[int, Any] = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    5: np.int16,
    6: np.int8,
    7: np.object_,
    9: np.int64,
    10: np.bool_,
    17: np.uint16,
    19: np.float16,
    22: np.uint32,
    23: np.uint64,
}
"""numpy's types by TensorFlow's (`tensorflow.DataType`); strings are arrays of objects, each `bytes`."""

STRING = 7
_STRING_BYTES = 24  # sizeof(TF_TString), asserted in tensorflow/core/platform/ctstring_internal.h
_TYPES = {np.dtype(dtype): number for number, dtype in DTYPES.items()}


class CSession:
    """A SavedModel in a session of its own.

    Attributes:
        signatures: `SignatureDef` by name.

    Args:
        folder: one version of a SavedModel.
        tags: the tags of the graph to load.
        intra_op: threads within an op; 0 leaves the number to TensorFlow.
        inter_op: threads between ops, likewise.

    Raises:
        StatusError: the SavedModel cannot be loaded; the code and the message are TensorFlow's.
    """

    def __init__(self, folder: str | Path, *, tags: Sequence[str] = ("serve",), intra_op: int = 0, inter_op: int = 0):
        self._api = libtensorflow.load()
        self._handle: int | None = None
        self._graph = self._api.NewGraph()
        config = config_pb2.ConfigProto(intra_op_parallelism_threads=intra_op, inter_op_parallelism_threads=inter_op)
        try:
            meta_graph = self._load(str(folder), tags, config.SerializeToString())
        except BaseException:
            self._api.DeleteGraph(self._graph)
            raise
        self.signatures = dict(meta_graph.signature_def)
        self._outputs: dict[str, libtensorflow.Output] = {}

    def _load(self, folder: str, tags: Sequence[str], config: bytes) -> meta_graph_pb2.MetaGraphDef:
        api = self._api
        names = (ctypes.c_char_p * len(tags))(*(tag.encode() for tag in tags))
        options = api.NewSessionOptions()
        buffer = api.NewBuffer()
        try:
            with self._status() as status:
                api.SetConfig(options, config, len(config), status)
            with self._status() as status:
                handle = api.LoadSessionFromSavedModel(
                    options, None, folder.encode(), names, len(names), self._graph, buffer, status
                )
            self._handle = handle
            return meta_graph_pb2.MetaGraphDef.FromString(ctypes.string_at(buffer.contents.data, buffer.contents.length))
        finally:
            api.DeleteBuffer(buffer)
            api.DeleteSessionOptions(options)

    def __enter__(self) -> CSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the session and its variables. No run may be under way; a second call does nothing."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        with self._status() as status:
            self._api.CloseSession(handle, status)
        with self._status() as status:
            self._api.DeleteSession(handle, status)
        self._api.DeleteGraph(self._graph)

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout: float | None = None) -> list[np.ndarray]:
        """Run the graph; threads may do so at the same time.

        Args:
            feeds: values by the names of tensors (`serving_default_x:0`).
            fetches: names of tensors.
            timeout: seconds after which the run is given up with DEADLINE_EXCEEDED; None: never.

        Returns:
            The values of `fetches`.

        Raises:
            StatusError: a name or a value does not fit, or an op failed; the code and the message are TensorFlow's.
        """
        if self._handle is None:
            raise StatusError(Code.FAILED_PRECONDITION, "the session is closed")
        api = self._api
        inputs = (libtensorflow.Output * len(feeds))(*map(self._output, feeds))
        outputs = (libtensorflow.Output * len(fetches))(*map(self._output, fetches))
        results = (ctypes.c_void_p * len(fetches))()
        milliseconds = 0 if timeout is None else max(1, round(timeout * 1000))
        options = config_pb2.RunOptions(timeout_in_ms=milliseconds).SerializeToString()
        buffer = libtensorflow.Buffer(ctypes.cast(options, ctypes.c_void_p), len(options), None)
        with ExitStack() as stack:
            values = [stack.enter_context(self._tensor(np.asarray(value))) for value in feeds.values()]
            status = stack.enter_context(self._status())
            stack.callback(lambda: [api.DeleteTensor(result) for result in results if result])
            api.SessionRun(
                *(self._handle, ctypes.byref(buffer), inputs, (ctypes.c_void_p * len(feeds))(*values), len(feeds)),
                *(outputs, results, len(fetches), None, 0, None, status),
            )
            return [self._array(result) for result in results] if api.GetCode(status) == Code.OK else []

    def run_signature(
        self, name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] = (), timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Run a signature with inputs and outputs by the names it gives them; all its outputs if none is named."""
        signature = self.signatures[name]
        chosen = list(outputs or signature.outputs)
        feeds = {signature.inputs[alias].name: value for alias, value in inputs.items()}
        results = self.run(feeds, [signature.outputs[alias].name for alias in chosen], timeout)
        return dict(zip(chosen, results, strict=True))

    @contextmanager
    def _status(self) -> Iterator[int]:
        """A TF_Status; an error that it holds in the end is raised."""
        status = self._api.NewStatus()
        try:
            yield status
            code = self._api.GetCode(status)
            if code != Code.OK:
                raise StatusError(code, self._api.Message(status).decode(errors="replace"))
        finally:
            self._api.DeleteStatus(status)

    def _output(self, name: str) -> libtensorflow.Output:
        found = self._outputs.get(name)
        if found is None:
            operation, _, index = name.partition(":")
            handle = self._api.GraphOperationByName(self._graph, operation.encode())
            number = int(index) if index.isdigit() else 0
            if not handle or number >= self._api.OperationNumOutputs(handle):
                raise StatusError(Code.INVALID_ARGUMENT, f"Tensor {name} is not in the graph")
            found = self._outputs[name] = libtensorflow.Output(handle, number)
        return found

    @contextmanager
    def _tensor(self, value: np.ndarray) -> Iterator[int]:
        """A TF_Tensor with a copy of an array's values."""
        api = self._api
        number = _TYPES.get(value.dtype)
        if number is None:
            raise StatusError(Code.INVALID_ARGUMENT, f"no TensorFlow type for numpy's {value.dtype}")
        size = value.size * (_STRING_BYTES if number == STRING else value.itemsize)
        tensor = api.AllocateTensor(number, (ctypes.c_int64 * value.ndim)(*value.shape), value.ndim, size)
        data = api.TensorData(tensor)
        try:
            if number == STRING:
                for offset, item in zip(range(0, size, _STRING_BYTES), value.flat, strict=True):
                    api.StringInit(data + offset)
                    api.StringCopy(data + offset, item, len(item))
            elif size:
                value = np.ascontiguousarray(value)
                ctypes.memmove(data, value.ctypes.data, size)
            yield tensor
        finally:
            # With its strings: their buffer knows their type, and goes with the last that refers to it.
            api.DeleteTensor(tensor)

    def _array(self, tensor: int) -> np.ndarray:
        """A copy of a TF_Tensor's values."""
        api = self._api
        shape = [api.Dim(tensor, axis) for axis in range(api.NumDims(tensor))]
        number = api.TensorType(tensor)
        if number not in DTYPES:
            raise StatusError(Code.UNIMPLEMENTED, f"no numpy type for TensorFlow's type number {number}")
        array = np.empty(shape, DTYPES[number])
        data = api.TensorData(tensor)
        if number == STRING:
            starts = range(data or 0, (data or 0) + prod(shape) * _STRING_BYTES, _STRING_BYTES)
            array.flat = [ctypes.string_at(api.StringGetDataPointer(start), api.StringGetSize(start)) for start in starts]
        elif array.nbytes:
            ctypes.memmove(array.ctypes.data, data, array.nbytes)
        return array
