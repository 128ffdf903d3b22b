"""The bundles that other runtimes are tested with."""

import os
from pathlib import Path

import pytest

from tests.edge.cases import FOLDER_VARIABLE


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    """The folder of cases: that of `make edge-cases`, or else one made now."""
    if FOLDER_VARIABLE in os.environ:
        return Path(os.environ[FOLDER_VARIABLE])
    from tests.edge.make_cases import make_cases

    return make_cases(tmp_path_factory.mktemp("edge") / "cases")
