"""TensorFlow's shared libraries by ctypes, and its protos without the Python package."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import types
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path


class Buffer(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = (("data", c_void_p), ("length", c_size_t), ("deallocator", c_void_p))


class Output(ctypes.Structure):
    """TF_Output: one output of an operation of a graph."""

    _fields_ = (("operation", c_void_p), ("index", c_int))


_FUNCTIONS = {
    "TF_NewStatus": (c_void_p,),
    "TF_DeleteStatus": (None, c_void_p),
    "TF_GetCode": (c_int, c_void_p),
    "TF_Message": (c_char_p, c_void_p),
    "TF_NewBuffer": (POINTER(Buffer),),
    "TF_DeleteBuffer": (None, POINTER(Buffer)),
    "TF_NewGraph": (c_void_p,),
    "TF_DeleteGraph": (None, c_void_p),
    "TF_GraphOperationByName": (c_void_p, c_void_p, c_char_p),
    "TF_OperationNumOutputs": (c_int, c_void_p),
    "TF_NewSessionOptions": (c_void_p,),
    "TF_SetConfig": (None, c_void_p, c_char_p, c_size_t, c_void_p),
    "TF_DeleteSessionOptions": (None, c_void_p),
    "TF_LoadSessionFromSavedModel": (
        *(c_void_p, c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, POINTER(Buffer), c_void_p),
    ),
    "TF_CloseSession": (None, c_void_p, c_void_p),
    "TF_DeleteSession": (None, c_void_p, c_void_p),
    "TF_SessionRun": (
        *(None, c_void_p, c_void_p, POINTER(Output), POINTER(c_void_p), c_int, POINTER(Output), POINTER(c_void_p), c_int),
        *(c_void_p, c_int, c_void_p, c_void_p),
    ),
    "TF_AllocateTensor": (c_void_p, c_int, POINTER(c_int64), c_int, c_size_t),
    "TF_DeleteTensor": (None, c_void_p),
    "TF_TensorType": (c_int, c_void_p),
    "TF_NumDims": (c_int, c_void_p),
    "TF_Dim": (c_int64, c_void_p, c_int),
    "TF_TensorByteSize": (c_size_t, c_void_p),
    "TF_TensorData": (c_void_p, c_void_p),
    "TF_StringInit": (None, c_void_p),
    "TF_StringCopy": (None, c_void_p, c_char_p, c_size_t),
    "TF_StringGetDataPointer": (c_void_p, c_void_p),
    "TF_StringGetSize": (c_size_t, c_void_p),
}
"""Result and arguments of what is used of the C API (tensorflow/c/c_api.h, tf_tensor.h, tf_tstring.h)."""


def tensorflow_folder() -> Path:
    """Where the tensorflow package is installed, found without importing it."""
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the package tensorflow is not installed")
    return Path(spec.submodule_search_locations[0])


def use_protos_only() -> None:
    """Make `tensorflow` a package of its protos alone, for the rest of this process.

    `tensorflow_serving.apis` imports `tensorflow.core...pb2` and thereby all of TensorFlow, which takes seconds and would
    leave it open whether a Python op took part in serving.
    """
    spec = ModuleSpec("tensorflow", None, is_package=True)
    spec.submodule_search_locations = [str(tensorflow_folder())]
    sys.modules["tensorflow"] = importlib.util.module_from_spec(spec)


@cache
def load() -> types.SimpleNamespace:
    """The functions of the C API that are used here, with their types, by their names without `TF_`."""
    folder = tensorflow_folder()
    framework = ctypes.CDLL(str(folder / "libtensorflow_framework.so.2"))
    everything = ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"))
    functions = types.SimpleNamespace()
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(framework if hasattr(framework, name) else everything, name)
        function.restype, function.argtypes = result, arguments
        setattr(functions, name.removeprefix("TF_"), function)
    return functions
