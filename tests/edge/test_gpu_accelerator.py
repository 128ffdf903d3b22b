"""LiteRT's GPU accelerator takes the convolutions whole and computes them right: `make test-gpu-delegate`.

Runs on SwiftShader, a Vulkan device in software (`.ci/swiftshader.sh`): what the accelerator supports, not how fast it is.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.edge.cases import FOLDER_VARIABLE, Case

ROOT = Path(__file__).parents[2]
ICD = "VK_ICD_FILENAMES"
RUNS = [
    *((f"lite-{precision}", signature) for precision in ("float32", "float16", "int8") for signature in ("trunk", "box", "mask")),
    *(("resnet-float32", signature) for signature in ("trunk", "box", "mask")),
    *(("crop-float32", signature) for signature in ("trunk", "box")),
]
"""Files and signatures."""
ON_GPU, ON_CPU = "Created a WebGPU environment", "operations will run on the CPU"
"""In the log. (`is_fully_accelerated()` is true where a few operations of many are accelerated.)"""
RTOL = {"float32": 1e-4, "float16": 1e-4, "int8": 0.15}
"""Part of an output's largest value. An int8 file is computed in float there, with the rounding to 256 steps in other places."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        ICD not in os.environ or FOLDER_VARIABLE not in os.environ,
        reason=f"{ICD} or {FOLDER_VARIABLE} is not set: make test-gpu-delegate",
    ),
]


def single(content, signature):
    """The file with one signature only, so that what the accelerator says is about this one."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    (definition,) = [one for one in model.signatureDefs if one.signatureKey == signature.encode()]
    model.subgraphs = [model.subgraphs[definition.subgraphIndex]]
    definition.subgraphIndex = 0
    model.signatureDefs = [definition]
    for buffer in model.buffers:
        if buffer.size:  # ai-edge-quantizer writes large ones behind the flatbuffer
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def run_on_gpu(path, signature, samples):
    """The outputs of each sample; what stays on the CPU stands in the log."""
    from ai_edge_litert.compiled_model import CompiledModel, GpuOptions, HardwareAccelerator, Options

    wanted = HardwareAccelerator.GPU | HardwareAccelerator.CPU
    options = Options(hardware_accelerators=wanted, gpu_options=GpuOptions(enforce_f32=True))
    model = CompiledModel.from_file(str(path), options=options)
    found = []
    for values in samples:
        inputs = {name: model.create_input_buffer_by_name(signature, name) for name in model.get_input_tensor_details(signature)}
        for name, buffer in inputs.items():
            buffer.write(np.ascontiguousarray(values[name]))
        details = model.get_output_tensor_details(signature)
        outputs = {name: model.create_output_buffer_by_name(signature, name) for name in details}
        model.run_by_name(signature, inputs, outputs)
        shapes = {name: tuple(detail["shape"]) for name, detail in details.items()}
        found.append({name: outputs[name].read(int(np.prod(shape)), np.float32).reshape(shape) for name, shape in shapes.items()})
    return found


def main(path, signature, case, output):
    """In a process of its own: the accelerator's log, and its library, stay out of the tests'."""
    case = Case(Path(case))
    found = run_on_gpu(path, signature, [case.values(picture, signature, "input") for picture in case.pictures])
    arrays = {
        f"{picture}/{name}": value for picture, values in zip(case.pictures, found, strict=True) for name, value in values.items()
    }
    np.savez(output, **arrays)


@pytest.mark.parametrize(("name", "signature"), RUNS)
def test_accelerator_takes_the_convolutions_whole(name, signature, tmp_path):
    folder = Path(os.environ[FOLDER_VARIABLE])
    case = Case(folder / f"{name}.npz")
    path, output = tmp_path / "model.tflite", tmp_path / "found.npz"
    path.write_bytes(single((folder / name / "model.tflite").read_bytes(), signature))
    command = [sys.executable, "-m", "tests.edge.test_gpu_accelerator", path, signature, folder / f"{name}.npz", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ON_GPU in done.stderr, done.stderr[-3000:]
    refused = [line for line in done.stderr.splitlines() if "not supported" in line or ON_CPU in line]
    assert not refused, done.stderr[-3000:]
    found, rtol = np.load(output), RTOL[name.split("-")[1]]
    for picture in case.pictures:
        for key, expected in case.values(picture, signature, "output").items():
            atol = rtol * max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(found[f"{picture}/{key}"], expected, rtol=0, atol=atol, err_msg=f"{picture}: {key}")


if __name__ == "__main__":
    main(*sys.argv[1:])
