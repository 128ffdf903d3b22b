"""The filter on stderr, in processes of its own: it takes hold of file descriptor 2 for good."""

import subprocess
import sys
import time

import pytest

START = """
import os, sys
from mrcnn_tf.quiet import silence_tensorflow
silence_tensorflow()
"""
CHATTER = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "2026-01-01 10:00:00.0: E external/local_xla/cuda_platform.cc:51] failed call to cuInit: INTERNAL: CUDA error",
    "E0000 00:00:1700000000.000000   12345 cuda_dnn.cc:8579] Unable to register cuDNN factory",
    "I0000 00:00:1700000000.000000   12345 device_compiler.h:196] Compiled cluster using XLA!",
    "I0000 00:00:1700000000.000000   12345 service.cc:152] XLA service initialized for platform Host",
    "W0000 00:00:1700000000.000000   12345 computation_placer.cc:177] computation placer already registered.",
]
NEWS = [
    "E0000 00:00:1700000000.000000   12345 allocator.cc:12] Out of memory",
    "2026-01-01 10:00:00.0: W tensorflow/core/framework/op_kernel.cc:1] INVALID_ARGUMENT: broken image",
    "WARNING: something else",
    "Traceback (most recent call last):",
]


def run(code):
    return subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("pause", ["", "import time; time.sleep(0.3)"], ids=["at once", "later"])
def test_only_chatter_is_dropped(pause):
    """Also when the process ends right after its last words."""
    lines = [line for pair in zip(CHATTER, NEWS + NEWS, strict=False) for line in pair]
    done = run(f"os.write(2, {chr(10).join(lines).encode()!r}); {pause}")
    assert done.stderr.splitlines() == [line for line in lines if line in NEWS]
    assert done.returncode == 0


def test_python_keeps_its_stderr():
    done = run("print('by Python', file=sys.stderr); raise ValueError('at the end')")
    assert "by Python" in done.stderr
    assert "ValueError: at the end" in done.stderr
    assert done.returncode == 1


def test_child_that_holds_the_filter_does_not_hold_up_the_end():
    child = "subprocess.Popen(['sleep', '5'], stdout=subprocess.DEVNULL)"
    start = time.monotonic()
    done = run(f"import subprocess; {child}; os.write(2, b'last words\\n')")
    assert done.stderr == "last words\n"
    assert time.monotonic() - start < 4


def test_stdout_is_left_alone():
    assert run(f"print({CHATTER[0]!r})").stdout == CHATTER[0] + "\n"
