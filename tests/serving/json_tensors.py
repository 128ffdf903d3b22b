"""JSON values to tensors and back, by the rules of TensorFlow Serving's REST API (its g3doc/api_rest.md)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2

from tests.serving.c_session import DTYPES, STRING
from tests.serving.status import Code, StatusError
from tests.serving.tensors import type_name

TensorInfos = Mapping[str, meta_graph_pb2.TensorInfo]


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request's body.

    Raises:
        StatusError: INVALID_ARGUMENT: it is not JSON, or not an object.
    """
    if not body:
        raise _invalid("JSON Parse error: The document is empty")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise _invalid(f"JSON Value: {_shown(document)} Is not object")
    return document


def read_inputs(document: Mapping[str, Any], infos: TensorInfos) -> tuple[dict[str, np.ndarray], bool]:
    """The tensors of a predict request, and whether it is in row form (`instances`) rather than in columns (`inputs`).

    Raises:
        StatusError: INVALID_ARGUMENT: what the request holds does not fit the signature's inputs `infos`.
    """
    if "instances" in document and "inputs" in document:
        raise _invalid(
            f"JSON Value: {_shown(document)} Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise _invalid(f"JSON Value: {_shown(document)} Expecting 'instances' to be an list/array")
        if not instances:
            raise _invalid(f"JSON Value: {_shown(document)} No values in 'instances' array")
        return _rows(instances, infos), True
    if "inputs" in document:
        return _columns(document["inputs"], infos), False
    raise _invalid("Missing 'inputs' or 'instances' key")


def _rows(instances: list[Any], infos: TensorInfos) -> dict[str, np.ndarray]:
    named = _is_named(instances[0])
    if len(infos) > 1 and not isinstance(instances[0], dict):
        raise _invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map"
        )
    rows: dict[str, list[np.ndarray]] = {name: [] for name in infos}
    for number, instance in enumerate(instances):
        if named != _is_named(instance):
            got, wanted = ("list", "object") if named else ("object", "value/list")
            raise _invalid(f"Expecting {wanted} but got {got} at item {number} of input list")
        items = instance if named else {next(iter(infos)): instance}
        for name, item in items.items():
            try:
                rows[_known(name, infos)].append(_tensor(item, infos[name].dtype))
                if rows[name][-1].shape != rows[name][0].shape:
                    expected, got = (list(rows[name][index].shape) for index in (0, -1))
                    raise _invalid(f"Expecting shape {expected} but got: {got}")
            except StatusError as error:
                where = f"Failed to process element: {number}" + (f" key: {name}" if named else "")
                raise _invalid(f"{where} of 'instances' list. Error: {error}") from error
        if set(items) != set(infos):
            raise _invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: {_shown(instance)} "
                f"keys must be equal to: {','.join(sorted(infos))}"
            )
    return {name: np.stack(values) for name, values in rows.items()}


def _columns(inputs: Any, infos: TensorInfos) -> dict[str, np.ndarray]:
    if not _is_named(inputs):
        if len(infos) > 1:
            raise _invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map"
            )
        inputs = {next(iter(infos)): inputs}
    for name in infos:
        if name not in inputs:
            raise _invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _tensor(inputs[name], info.dtype) for name, info in infos.items()}


def _tensor(value: Any, number: int) -> np.ndarray:
    """One tensor of a JSON value: nested lists, all of one depth and of equal lengths on each level."""
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    values = [value]
    for level, size in enumerate(shape):
        for item in values:
            if not isinstance(item, list):
                raise _invalid(
                    f"JSON Value: {_shown(item)} found at incorrect level: {level + 1} in the JSON DOM. "
                    f"Expected at level: {len(shape)}"
                )
            if len(item) != size:
                raise _invalid(f"Encountered list at unexpected size: {len(item)} at level: {level} expected size: {size}")
        values = [item for items in values for item in items]
    if any(isinstance(item, list) for item in values):
        raise _invalid(f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}")
    array = np.empty(len(values), DTYPES[number])
    array[:] = _leaves(values, number)
    return array.reshape(shape)


def _leaves(values: list[Any], number: int) -> Iterable[Any]:
    dtype = np.dtype(DTYPES[number])
    if number == STRING:
        return [_bytes(value) for value in values]
    if dtype.kind == "b":
        fitting = all(type(value) is bool for value in values)
    elif dtype.kind == "f":
        fitting = all(type(value) in (int, float) for value in values)
    else:
        limits = np.iinfo(dtype)
        fitting = all(type(value) is int and limits.min <= value <= limits.max for value in values)
    if not fitting:
        raise _invalid(f"JSON Value: {_shown(values)} is not of expected type: {type_name(number)}")
    return values


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if not _is_base64(value):
        if isinstance(value, dict):
            raise _invalid(f"JSON Value: {_shown(value)} not formatted correctly for base64 data")
        raise _invalid(f"JSON Value: {_shown(value)} is not of expected type: {type_name(STRING)}")
    text = value["b64"].rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid("Unable to base64 decode") from error


def write_outputs(outputs: Mapping[str, np.ndarray], row_form: bool) -> bytes:
    """The body of an answer: `predictions`, one entry for each row, or `outputs`, one for each tensor.

    Raises:
        StatusError: INVALID_ARGUMENT: row form and the tensors have no common axis 0; text that is not UTF-8.
    """
    columns = {name: _json_values(name, value) for name, value in sorted(outputs.items())}
    if not row_form:
        return _dump({"outputs": columns if len(columns) > 1 else next(iter(columns.values()))})
    expected = None
    for name, value in sorted(outputs.items()):
        if value.ndim == 0:
            raise _invalid(f"Tensor name: {name} has no shape information ")
        if expected is not None and len(value) != expected:
            raise _invalid(f"Tensor name: {name} has inconsistent batch size: {len(value)} expecting: {expected}")
        expected = len(value)
    rows = zip(*columns.values(), strict=True)
    return _dump({"predictions": [dict(zip(columns, row, strict=True)) if len(columns) > 1 else row[0] for row in rows]})


def _json_values(name: str, array: np.ndarray) -> Any:
    if array.dtype.kind == "O":
        as_text = np.empty(array.shape, object)
        as_text.flat = [_json_string(name, value) for value in array.flat]
        return as_text.tolist()
    if array.dtype == np.float32:
        # The shortest digits that give this float32 back, rather than those of the float64 it would become.
        return array.astype(str).astype(np.float64).tolist()
    return array.tolist()


def _json_string(name: str, value: bytes) -> Any:
    if name.endswith("_bytes"):
        return {"b64": base64.b64encode(value).decode()}
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"Failed to write JSON value for tensor type: string: '{name}' holds bytes that are not UTF-8") from error


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _known(name: str, infos: TensorInfos) -> str:
    if name not in infos:
        raise _invalid(f"JSON object: does not have named input: {name}")
    return name


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _shown(value: Any) -> str:
    return json.dumps(value)[:256]


def _invalid(message: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, message)
