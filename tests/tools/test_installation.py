"""What is installed, whatever of it is missing, broken, or of a version that nobody tried."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
from checkout import ROOT

from tiedio.tools import installation
from tiedio.tools.installation import BACKENDS, EXTRAS, TESTED_KERAS

FOR_CONTRIBUTORS = {"benchmark", "docs", "export", "libraries", "lint", "test"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def part(name):
    (found,) = (one for one in installation.installation().parts if one.name == name)
    return found


@pytest.fixture
def pip(monkeypatch):
    """Returns a dict of what pip knows beside what is installed: a version, or `None`."""
    known, ask = {}, importlib.metadata.version

    def version(name):
        if known.get(name, "") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return known.get(name) or ask(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    return known


@pytest.fixture
def modules(monkeypatch):
    """Returns a dict of which modules are there, other than those that are."""
    there, ask = {}, importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there.get(name, ask(name)))
    return there


@pytest.fixture(params=BACKENDS)
def only(request, pip, modules, monkeypatch):
    """Has one backend installed, and none configured; returns its name."""
    for name in ("tensorflow-cpu", *BACKENDS):
        pip[name] = modules[name] = None
    pip[request.param], modules[request.param] = "1.2", importlib.util.find_spec("json")
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", "nowhere")
    return request.param


def test_nothing_is_wrong_here():
    found = installation.installation()
    assert found.is_fine, found
    assert json.loads(json.dumps(found.to_json()))["is_fine"]


@pytest.mark.parametrize(
    ("version", "note"),
    [
        ("3.9.2", "too old, tiedio needs 3.10: `pip install --upgrade keras`"),
        ("3.10.0", "tested"),
        ("3.11.3", "between two versions that are tested"),
        ("3.15.1.dev0", "tested"),
        ("4.0", "newer than any that is tested; the newest of those is 3.15"),
    ],
)
def test_the_version_of_keras_is_judged(pip, version, note):
    pip["keras"] = version
    assert (part("keras").version, part("keras").note) == (version, note)
    assert part("keras").is_wrong == (version == "3.9.2")


def test_where_nothing_is_installed_it_says_what_to_install(pip, modules):
    for name in ("keras", "rich", "tensorflow-cpu", *BACKENDS):
        pip[name] = modules[name] = None
    found = installation.installation()
    wrong = {one.name: one.note for one in found.parts if one.is_wrong}
    assert not found.is_fine
    assert set(wrong) == {"keras", "backend", "rich"}
    assert wrong["keras"] == "tiedio needs it: `pip install keras`"
    assert wrong["backend"].endswith("which does not work: install one of those below")
    assert part("jax").note == "for Keras on this backend: `pip install 'tiedio[jax]'`"


def test_a_backend_that_is_configured_and_missing_is_named(only, monkeypatch):
    for wanted in {*BACKENDS} - {only}:
        monkeypatch.setenv("KERAS_BACKEND", wanted)
        assert part("backend").is_wrong
        assert part("backend").note == (
            f"by KERAS_BACKEND, which does not work: set KERAS_BACKEND to `{only}`"
        )
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    assert "which is none that tiedio knows" in part("backend").note


def test_the_backend_is_looked_for_where_keras_does(only, monkeypatch, tmp_path):
    assert part("backend").version == "tensorflow"  # as Keras says by itself
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for damaged in ("", "[]", "{}"):
        (tmp_path / "keras.json").write_text(damaged)
        assert part("backend").version == "tensorflow"
    (tmp_path / "keras.json").write_text(json.dumps({"backend": only}))
    assert (part("backend").version, part("backend").note) == (only, "by keras.json")
    monkeypatch.setenv("KERAS_BACKEND", only)
    assert part("backend").note == "by KERAS_BACKEND"


def test_a_keras_json_of_something_else(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    (tmp_path / "keras.json").write_text('{"backend": ["jax"]}')
    assert part("backend").is_wrong and part("backend").version == "['jax']"


def test_what_is_broken_is_told(pip, modules, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pip["torch"], modules["torch"] = "2.13.0", None  # its files are gone
    assert part("torch").note == (
        "broken, there is no module `torch`: `pip install --force-reinstall --no-deps torch`"
    )
    assert "which does not work" in part("backend").note
    assert part("backend").is_wrong and not part("torch").is_wrong  # which others need not
    (tmp_path / "torch").mkdir()  # or its folder was left behind
    modules["torch"] = importlib.machinery.PathFinder.find_spec("torch", [str(tmp_path)])
    assert part("torch").note.startswith("broken")
    (tmp_path / "h5py.py").write_text("raise ValueError('numpy.dtype size changed')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "h5py")
    pip["tensorflow"], pip["tensorflow-cpu"], modules["tensorflow"] = None, "2.21.0", None
    assert part("tensorflow").note.endswith("--no-deps tensorflow-cpu`")
    assert part("h5py").note.startswith("broken, numpy.dtype size changed: `pip install")


def test_neither_keras_nor_a_backend_is_imported():
    code = (
        "import sys; from tiedio.tools.installation import installation; installation();"
        "print({'keras', 'tensorflow', 'jax', 'torch', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    assert done.stdout.strip() == b"set()"


@pytest.mark.parametrize("backend", BACKENDS)
def test_who_has_no_backend_is_told_what_to_install(backend, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Without:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {backend!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Without)\n"
    )
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(tmp_path)}

    def told(*command):
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
        )
        return done.stderr.splitlines()[-3:]

    first, expected, todo = told("-c", "import tiedio; tiedio.load_tied('model.keras')")
    assert first.endswith("`tiedio.load_tied` needs Keras, whose backend is not installed.")
    assert expected.startswith(f"Expected: `{backend}`. Received: ")
    assert todo.startswith(f"Install it: `pip install 'tiedio[{backend}]'`, or set KERAS_")
    _, received, _ = told("-m", "tiedio", "demo")
    assert f"Received: backend {backend}, by KERAS_BACKEND, which does not work:" in received


def test_what_is_said_of_extras_and_needs_is_what_pyproject_says():
    extras = PYPROJECT["optional-dependencies"]
    assert set(extras) - FOR_CONTRIBUTORS == set(EXTRAS)
    named = {extra: {re.match(r"[\w-]+", one)[0] for one in extras[extra]} for extra in EXTRAS}
    assert all(package in named[extra] for extra, (package, _, _) in EXTRAS.items())
    needed = {re.match(r"[\w-]+", one)[0] for one in PYPROJECT["dependencies"]}
    assert needed == {"keras", *installation._NEEDED}


def test_the_versions_of_keras_are_those_that_readme_names():
    (said,) = re.findall(
        r"Keras ([^.]+\.[^.]+\.[^.]+\.\d+) are tested", (ROOT / "README.md").read_text()
    )
    assert re.findall(r"\d+\.\d+", said) == [".".join(map(str, one)) for one in TESTED_KERAS]
