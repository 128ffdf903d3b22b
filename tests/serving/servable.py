"""One loaded version of a model."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import model_pb2

from tests.serving.c_session import CSession
from tests.serving.metrics import Metrics
from tests.serving.records import read_logs
from tests.serving.status import Code, StatusError
from tests.serving.tensors import from_proto

DEFAULT_SIGNATURE = "serving_default"
MAX_WARMUP_RECORDS = 1000
WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"


class Runner(Protocol):
    """What runs a graph: a session, or a session with batching around it."""

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout: float | None = None) -> list[np.ndarray]:
        """As `CSession.run`."""

    def close(self) -> None:
        """Release what it holds; no run is under way."""


class Servable:
    """A model's version that can be asked; threads may do so at the same time.

    Attributes:
        name: the model's name.
        version: its version.
        signatures: `SignatureDef` by name.
    """

    def __init__(self, name: str, version: int, session: CSession, runner: Runner, metrics: Metrics):
        self.name, self.version, self.signatures = name, version, session.signatures
        self._session, self._runner, self._metrics = session, runner, metrics
        self._idle = threading.Condition()
        self._users = 0

    def predict(
        self,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] = (),
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Run a signature.

        Args:
            signature_name: "" for the default one.
            inputs: values by aliases.
            outputs: aliases; all of them if empty.
            timeout: as of `CSession.run`.

        Raises:
            StatusError: FAILED_PRECONDITION: no such signature; INVALID_ARGUMENT: inputs or outputs that are not the signature's;
                what running the graph gives.
        """
        signature_name = signature_name or DEFAULT_SIGNATURE
        signature = self.signatures.get(signature_name)
        if signature is None:
            raise StatusError(Code.FAILED_PRECONDITION, f'Serving signature key "{signature_name}" not found.')
        _check(signature, inputs, outputs)
        chosen = list(outputs) or sorted(signature.outputs)
        start = time.perf_counter()
        results = self._runner.run(
            {signature.inputs[alias].name: value for alias, value in inputs.items()},
            [signature.outputs[alias].name for alias in chosen],
            timeout,
        )
        micros = (time.perf_counter() - start) * 1e6
        self._metrics.observe("runtime_latency", micros, model_name=self.name, API="Predict", runtime="TF1")
        return dict(zip(chosen, results, strict=True))

    def spec(self, signature_name: str) -> model_pb2.ModelSpec:
        """What answers say about who gave them."""
        spec = model_pb2.ModelSpec(name=self.name, signature_name=signature_name or DEFAULT_SIGNATURE)
        spec.version.value = self.version
        return spec

    def warm_up(self, folder: Path) -> None:
        """Replay the requests that came with a SavedModel, if any.

        Raises:
            StatusError: a request fails, or the file is none of requests.
        """
        path = folder / WARMUP_FILE
        if not path.exists():
            return
        start = time.perf_counter()
        for number, log in enumerate(read_logs(path)):
            if number == MAX_WARMUP_RECORDS:
                message = f"Number of warmup records exceeds the maximum ({MAX_WARMUP_RECORDS}) at {path}"
                raise StatusError(Code.INVALID_ARGUMENT, message)
            if log.WhichOneof("log_type") != "predict_log":
                kind = log.WhichOneof("log_type")
                raise StatusError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
            request = log.predict_log.request
            inputs = {alias: from_proto(value) for alias, value in request.inputs.items()}
            self.predict(request.model_spec.signature_name, inputs, request.output_filter)
            self._metrics.count("model_warmup_records_read", model_path=str(folder), status="OK")
        self._metrics.observe("model_warmup_latency", (time.perf_counter() - start) * 1e6, model_path=str(folder), status="OK")

    def enter(self) -> None:
        """Someone begins to use it. To be called under the lock that also guards taking it away."""
        with self._idle:
            self._users += 1

    def leave(self) -> None:
        """Someone has done with it."""
        with self._idle:
            self._users -= 1
            self._idle.notify_all()

    def close(self) -> None:
        """Wait for the last user, then release it."""
        with self._idle:
            self._idle.wait_for(lambda: self._users == 0)
        self._runner.close()
        self._session.close()


def _check(signature: meta_graph_pb2.SignatureDef, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> None:
    """Raise StatusError unless inputs and outputs are the signature's."""
    sent, wanted = sorted(inputs), sorted(signature.inputs)
    if sent != wanted:
        extra, missing = sorted(set(sent) - set(wanted)), sorted(set(wanted) - set(sent))
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({{{','.join(sent)}}}) != "
            f"len({{{','.join(wanted)}}}). Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}.",
        )
    for position, alias in enumerate(outputs):
        if alias not in signature.outputs:
            known = ",".join(sorted(signature.outputs))
            message = f"output tensor alias not found in signature: {alias} Outputs expected to be in the set {{{known}}}."
            raise StatusError(Code.INVALID_ARGUMENT, message)
        if alias in outputs[:position]:
            raise StatusError(Code.INVALID_ARGUMENT, f"duplicate output tensor alias: {alias}")
