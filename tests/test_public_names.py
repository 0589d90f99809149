"""What is public: as Python sees it, as type checkers do, and as the command line does."""

import ast
import importlib
import inspect
from pathlib import Path

import tiedio
from tiedio import files
from tiedio.cli.main import main


def test_python_and_type_checkers_see_the_same_names_in_the_same_places():
    module = ast.parse(Path(tiedio.__file__).read_text())
    (checked,) = (node for node in module.body if isinstance(node, ast.If))
    seen = {
        alias.name: getattr(importlib.import_module(node.module), alias.name)
        for node in checked.body
        for alias in node.names
    }
    assert sorted(seen) == sorted(tiedio.__all__) == dir(tiedio)
    assert all(getattr(tiedio, name) is thing for name, thing in seen.items())


def test_every_public_name_has_a_docstring():
    assert all(inspect.getdoc(getattr(tiedio, name)) for name in tiedio.__all__)


def test_files_has_the_verbs_of_the_command_line():
    assert sorted(files.__all__) == sorted(set(main.commands) - {"demo", "doctor"})
    assert all(getattr(files, name).__name__ == name for name in files.__all__)
