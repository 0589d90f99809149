"""Every example in README and docstrings runs, and shows what it says."""

from pathlib import Path

import command_line
import keras
import pytest
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.markdown import PythonCodeBlockParser

import tiedio

ROOT = Path(__file__).parent.parent
README = Sybil([PythonCodeBlockParser()], path=str(ROOT), patterns=["README.md"])
DOCSTRINGS = Sybil(
    [DocTestParser()],
    path=str(ROOT),
    patterns=["*.py"],
    document_types={".py": PythonDocStringDocument},
)


def examples():
    for sybil, paths in (
        (README, [ROOT / "README.md"]),
        (DOCSTRINGS, (ROOT / "tiedio").glob("*.py")),
    ):
        for path in sorted(paths):
            yield pytest.param(sybil, path, id=path.name)


@pytest.fixture
def anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.clear_session()


@pytest.mark.parametrize(("sybil", "path"), examples())
def test_examples(anywhere, sybil, path):
    for example in sybil.parse(path).examples():
        example.evaluate()


@pytest.mark.parametrize(
    "name",
    [name for name in tiedio.__all__ if name[0].islower()]
    + ["AssertTied", "TiedBackupAndRestore", "TiedModelCheckpoint"],
)
def test_every_public_function_has_an_example(name):
    assert "Example:\n\n" in getattr(tiedio, name).__doc__
    assert ">>> " in getattr(tiedio, name).__doc__


def test_readme_has_the_help_of_every_command():
    readme = command_line.README.read_text()
    renew = "README shows other helps: renew them by `python tests/command_line.py`"
    assert command_line.written(readme) == readme, renew
    assert all(text in readme for text in command_line.helps()), renew
