"""The wheel holds the whole package, and works where there is no checkout."""

import os
import subprocess
import sys
import zipfile

import pytest
from checkout import ROOT

import tiedio

SCRIPT = """
import keras
import tiedio

layers = [keras.layers.Dense(4, name=name) for name in ("encoder", "decoder")]
model = keras.Sequential([keras.Input((4,)), *layers])
tiedio.tie(layers[1], to=layers[0])
tiedio.save_tied(model, "model.keras")
tiedio.assert_tied(tiedio.load_tied("model.keras"), tiedio.find_ties(model))
print(tiedio.__file__)
"""


def output_of(*command, **options):
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, **options
    ).stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    output_of(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_is_whole(wheel):
    listed = output_of("git", "ls-files", "tiedio", cwd=ROOT).splitlines()
    names = [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("tiedio/")]
    assert sorted(names) == sorted(listed)
    assert "tiedio/py.typed" in names  # which says that the annotations are for others too


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", installed]
    output_of(*pip, wheel)
    there = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(installed)}}
    assert output_of(sys.executable, "-c", SCRIPT, **there) == str(installed / "tiedio/__init__.py")
    assert output_of(installed / "bin/tiedio", "--version", **there).endswith(
        f" {tiedio.__version__}"
    )
