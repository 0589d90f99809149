"""The benchmark runs and is complete. What it measures is for people to read, never a test."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

ROWS = """\
save / raw write
load / raw read
extra memory to save / unique bytes
memory to load / unique bytes
save / raw write, with Adam's slots
load / raw read, with Adam's slots
extra memory to save / unique bytes, with Adam's slots
memory to load / unique bytes, with Adam's slots
save, per layer of 2
save, per layer of 4
load, per layer of 2
load, per layer of 4
save / Keras' own config, of 2 layers
save / Keras' own config, of 4 layers
load / Keras' own config, of 2 layers
load / Keras' own config, of 4 layers
find the ties of 4 layers / save
verify 2 GB / raw read
migrate / raw read and write
extra memory to migrate / largest tensor
save in shards / raw write
save to fsspec's memory / write the same bytes there
CPU of `import tiedio`
CPU of `tiedio inspect`
CPU of `tiedio plan`
CPU of `tiedio verify`
save, EfficientNetB0
load, EfficientNetB0
stock Keras
tiedio
h5py
safetensors
torch.save
tf.train.Checkpoint
Orbax
TiedModelCheckpoint
TiedModelCheckpoint, on background
OrbaxCheckpoint
ModelCheckpoint
none
""".splitlines()


@pytest.mark.slow
def test_all_figures_are_measured_and_shown(tmp_path):
    command = [sys.executable, BENCHMARKS / "run.py", "--quick", "--markdown"]
    command += ["--folder", tmp_path, "--json", tmp_path / "figures.json"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [line.split(" | ") for line in run.stdout.splitlines() if line.startswith("| ")]
    labels = [line[0].removeprefix("| ") for line in lines]
    assert [label for label in labels if label not in ("", " ", "---")] == ROWS
    figures = json.loads((tmp_path / "figures.json").read_text())
    del figures["versions"]
    values = {name: value for figure in figures.values() for name, value in figure.items()}
    assert {"stock Keras", "tiedio", "h5py"} <= values.keys()
    assert all(math.isfinite(value) for figure in figures.values() for value in figure.values())
    assert list(tmp_path.iterdir()) == [tmp_path / "figures.json"]
