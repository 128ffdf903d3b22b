"""Bundles on 64-bit ARM, emulated by qemu (`.ci/arm64_root.sh`): `make test-arm64`."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.edge.cases import FOLDER_VARIABLE

VARIABLES = ("MRCNN_TF_ARM64_PYTHON", "MRCNN_TF_TFLITE_RUNTIME_PYTHON", FOLDER_VARIABLE)
"""Python there, Python with the same runtime here, and the bundles."""
PICTURES = ("shapes0", "shapes1")
PIXELS, SCORES, AREA = 0.01, 1e-4, 0.01
SCORE_THRESHOLD = 0.3
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.keys() >= set(VARIABLES), reason=f"{', '.join(VARIABLES)} are not all set: make test-arm64"
    ),
]


def detect(python, bundle, output):
    """Records of detect.py, by picture."""
    folder = Path(os.environ[FOLDER_VARIABLE])
    pictures = [folder / "pictures" / f"{name}.png" for name in PICTURES]
    command = [python, folder / bundle / "detect.py", *pictures, "--output", output, "--score-threshold", str(SCORE_THRESHOLD)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    records = json.loads((output / "detections.json").read_text(encoding="utf-8"))
    assert all((output / f"{name}.png").stat().st_size for name in PICTURES)
    return {name: [record for record in records if record["file_name"] == f"{name}.png"] for name in PICTURES}


@pytest.fixture(params=["lite-float32", "lite-float16", "lite-int8"])
def found(request, tmp_path):
    """(precision, records there, records here)."""
    arm64, here, _ = (os.environ[name] for name in VARIABLES)
    there = detect(arm64, request.param, tmp_path / "arm64")
    return request.param.split("-")[1], there, detect(here, request.param, tmp_path / "here")


def test_arm64_finds_what_this_machine_finds(found):
    precision, there, here = found
    for name in PICTURES:
        assert here[name]
        if precision == "int8":
            # The kernels of both round differently on the way (not the emulation's fault), which random weights do not bear.
            assert len(there[name]) >= len(here[name]) / 2
            continue
        assert [record["category_id"] for record in there[name]] == [record["category_id"] for record in here[name]]
        for one, other in zip(there[name], here[name], strict=True):
            np.testing.assert_allclose(one["bbox"], other["bbox"], rtol=0, atol=PIXELS)
            assert abs(one["score"] - other["score"]) <= SCORES
            assert one["segmentation"] == other["segmentation"]
