"""Weights & Biases and MLflow beside a run, offline: the snippets of docs/training.md, run as they stand, and read back."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INTERPRETER = "MRCNN_TF_TRACKERS_PYTHON"
BEGIN = """
from mrcnn_tf.config import load_config
from mrcnn_tf.train import train

config = load_config("config.yaml")
"""
# W&B has no reader for its own files in Python. They are LevelDB logs of protocol buffers: blocks of 32 KiB with records of a
# checksum, a length, a kind (1 whole, 2 first, 3 middle, 4 last part) and the part; the file begins with 7 bytes of its own.
READ_WANDB = """
import json, struct
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record

(path,) = Path("wandb").glob("offline-run-*/*.wandb")
data, place, parts, rows = path.read_bytes(), 7, b"", []
while place < len(data):
    left = 32768 - place % 32768
    if left < 7:
        place += left
        continue
    _, length, kind = struct.unpack_from("<IHB", data, place)
    parts, place = parts + data[place + 7 : place + 7 + length], place + 7 + length
    if kind in (1, 4):
        record, parts = Record.FromString(parts), b""
        if record.WhichOneof("record_type") == "history":
            rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item})
print(json.dumps([{name.removeprefix("epoch/"): value for name, value in row.items()} for row in rows]))
"""
READ_MLFLOW = """
import json

client = mlflow.MlflowClient()
(run,) = client.search_runs(["0"])
assert run.info.status == "FINISHED"
histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
print(json.dumps([{name: history[row].value for name, history in histories.items()} for row in range(2)]))
"""
OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}


def snippets():
    """The code blocks of the section, by the tracker they begin with."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.split("## Weights & Biases, MLflow\n")[1].split("\n## ")[0]
    blocks = [part.split("```")[0] for part in section.split("```python\n")[1:]]
    return {block.split()[1]: block for block in blocks}


@pytest.fixture(scope="module")
def python():
    """An interpreter that has both."""
    path = os.environ.get(INTERPRETER, sys.executable)
    looks = "import importlib.util as u, sys; sys.exit(u.find_spec('wandb') is None or u.find_spec('mlflow') is None)"
    if subprocess.run([path, "-c", looks], check=False, capture_output=True).returncode:
        pytest.skip(f"{path} has no wandb and mlflow; pip install 'mrcnn-tf[trackers]', or name another one in {INTERPRETER}")
    return path


def test_both_have_a_snippet():
    assert sorted(snippets()) == ["mlflow", "wandb"]


@pytest.mark.slow
@pytest.mark.parametrize(("tracker", "read"), [("wandb", READ_WANDB), ("mlflow", READ_MLFLOW)])
def test_the_tracker_has_the_figures_of_each_epoch(python, tracker, read, tiny_config, tmp_path):
    (tmp_path / "config.yaml").write_text(tiny_config.to_yaml())
    (tmp_path / "script.py").write_text(BEGIN + snippets()[tracker] + read)
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, "script.py"], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    (path,) = tmp_path.glob("runs/*/metrics.csv")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(found) == len(rows) == 2
    # W&B puts a rate of its own, that of the next step, in the place of ours.
    ours = {name for name in rows[0] if name not in ("epoch", "learning_rate")}
    assert ours > {"loss", "mask_loss", "val_bbox_AP", "val_segm_AP"}
    for row, figures in zip(rows, found, strict=True):
        for name in ours:
            assert figures[name] == pytest.approx(float(row[name]), rel=1e-4), name
