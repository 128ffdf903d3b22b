"""A process ends although a data set is still reading ahead."""

import subprocess
import sys

from tests.conftest import TINY

SCRIPT = """
import sys
from mrcnn_tf.config import load_config
from mrcnn_tf.data.pipeline import training_dataset

config = load_config(sys.argv[1], ["data.root=" + sys.argv[2], "data.image_size=[512, 512]", "data.min_sizes=[512]"])
iterator = iter(training_dataset(config.with_categories(), batch_size=2).repeat())
next(iterator)
print("one batch")
"""


def test_the_process_ends(shapes_dir, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    command = [sys.executable, "-c", SCRIPT, str(path), str(shapes_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "one batch\n"
    assert "the process ends" not in done.stderr
