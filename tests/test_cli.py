"""The command line, in processes of its own."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest


def tiedio(*arguments, **options):
    command = [sys.executable, "-m", "tiedio", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_version_without_keras():
    code = "import sys, tiedio.cli; print('keras' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout == "False\n"
    shown = tiedio("--version").stdout
    assert shown == f"tiedio, version {importlib.metadata.version('tiedio')}\n"


def test_the_version_is_one():
    import tiedio

    assert tiedio.__version__ == importlib.metadata.version("tiedio")


def test_the_demo_says_what_to_install(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['sklearn'] = None\n"
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'sklearn' else find(name, *a)\n"
    )
    import os

    result = tiedio("demo", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert result.returncode == 2
    assert "scikit-learn is missing: pip install 'tiedio[demo]'" in result.stderr


@pytest.mark.slow
def test_the_demo_shows_what_readme_shows():
    result = tiedio("demo")
    assert result.returncode == 0
    words = re.findall(r"[a-z]+", result.stdout.split("Save, load")[1])
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    # Sizes and digits may differ between machines; what is said may not.
    assert words == re.findall(r"[a-z]+", readme.split("Save, load")[1].split("```")[0])


@pytest.mark.slow
def test_the_demo_fails_when_tiedio_does(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import tiedio.models\ntiedio.models.apply = lambda *_: None\n"
    )
    import os

    result = tiedio("demo", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
