"""A toy SavedModel for the tests of the stand-in."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.serving.toys import warmup_log, write_toy


@pytest.fixture(scope="session")
def toy_versions(tmp_path_factory):
    """Folder with the versions 1, 2 and 3 of a toy, which multiply by 1, 2 and 3, and with names that are no version.

    The third brings a warm-up request.
    """
    folder = tmp_path_factory.mktemp("toy") / "versions"
    for version in (1, 2):
        write_toy(folder / str(version), float(version))
    write_toy(folder / "3", 3.0, [warmup_log("", x=np.ones((1, 2), np.float32))] * 2)
    (folder / "models.config").write_text("not a version")
    (folder / "3.tmp").mkdir()
    (folder / "-4").mkdir()
    return folder


@pytest.fixture
def some_versions(toy_versions, tmp_path):
    """Make a folder with copies of some of the versions: `some_versions(1, 2)`."""

    def make(*versions: int):
        folder = tmp_path / "model"
        folder.mkdir()
        for version in versions:
            shutil.copytree(toy_versions / str(version), folder / str(version))
        return folder

    return make
