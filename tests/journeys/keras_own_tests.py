"""Runs Keras' own tests that save or load anything under `tiedio.patch()`.

They come with Keras from 3.12 on. Each must have the same outcome as without the patch. `python
tests/journeys/keras_own_tests.py` exits with 1 if outcomes differ, if too few passed, or if the
patch was not what saved and loaded.

Which tests they are, of all that Keras has, and their outcomes without the patch, is the same each
time. They are kept in `keras_own_outcomes/` for the versions of Keras that CI installs; `--keep`
writes the file of another one, or of another backend. Without a file another run finds them.

In a process of its own this module is a plugin of pytest, `-p keras_own_tests`.
"""

import argparse
import collections
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_WANTED = "TIEDIO_TESTS_WANTED"
_REPORT = "TIEDIO_TESTS_REPORT"
# What a file of tests mentions if some of them may save or load. Those of applications download.
_MENTIONED = re.compile("save|load_|pickle|deepcopy|ModelCheckpoint|BackupAndRestore")
_LEFT_OUT = ("applications/",)
# These take half of the time, and save as others do.
_SLOW = re.compile("::test_quantize_(lora_integration|int)_")
# Without TensorFlow, Keras itself cannot read what it takes for a remote file, and tiedio can.
_NEEDS_TENSORFLOW = (
    "saving/saving_lib_test.py::SavingBattleTest::test_remove_weights_only_saving_and_loading"
)
# On torch, Keras names its own classes of optimizers, which other backends lack; tiedio does not.
_NAMES_CLASSES_OF_TORCH = (
    "saving/saving_lib_test.py::SavingTest::test_saved_module_paths_and_class_names"
)
_FEWEST_PASSED = 2 / 3  # of all
_FEWEST_CALLS = 10

_KEPT = Path(__file__).with_name("keras_own_outcomes")

_outcomes: dict[str, str] = {}
_calls: collections.Counter[str] = collections.Counter()
_running: list[str] = []
_reached: set[str] = set()  # tests that call what the patch replaces


def pytest_configure(config):
    """Patches Keras; in the run without, with functions that are its own, but note the test."""
    from tiedio.saving import model, weights

    for module, name in (
        (model, "save_tied"),
        (model, "load_tied"),
        (weights, "save_tied_weights"),
        (weights, "load_tied_weights"),
    ):
        setattr(module, name, _counted(name, getattr(module, name)))
    # Only now, as it takes them by name.
    from tiedio.hooks import patching

    if _WANTED not in os.environ:
        patching._either = lambda ours, stock: _noted(stock)
    patching.patch()


def _counted(name, function):
    @functools.wraps(function)  # with its name, by which pickles find it
    def counted(*args, **kwargs):
        result = function(*args, **kwargs)
        _calls[name] += 1
        return result

    return counted


def _noted(function):
    @functools.wraps(function)
    def noted(*args, **kwargs):
        _reached.update(_running)
        return function(*args, **kwargs)

    return noted


def pytest_collection_modifyitems(items):
    """Leaves, under the patch, the tests that save or load."""
    if _WANTED in os.environ:
        wanted = set(json.loads(Path(os.environ[_WANTED]).read_text()))
        items[:] = [item for item in items if _name_of(item.nodeid) in wanted]


def pytest_runtest_logstart(nodeid):
    """Notes which test runs from now on."""
    _running[:] = [_name_of(nodeid)]


def pytest_runtest_logreport(report):
    """Notes the outcome of a test; one that cannot be set up or torn down has failed."""
    if report.when == "call" or report.outcome != "passed":
        _outcomes[_name_of(report.nodeid)] = report.outcome


def _name_of(nodeid):
    """Those of scikit-learn's tests have addresses of functions in them."""
    return re.sub("0x[0-9a-f]+", "", nodeid)


def pytest_collectreport(report):
    """Notes a file that cannot be read."""
    if report.failed:
        _outcomes[report.nodeid] = "failed"


def pytest_unconfigure(config):
    """Writes down what was seen."""
    seen = {"outcomes": _outcomes, "calls": _calls, "reached": sorted(_reached)}
    Path(os.environ[_REPORT]).write_text(json.dumps(seen))


def run(root, files, wanted=None):
    """Runs tests of Keras in a process of its own; those that are wanted, under the patch.

    Returns what the plugin has seen, and what pytest printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        here = Path(__file__).resolve()
        paths = [str(here.parent), str(here.parents[2])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
            _REPORT: str(report),
        }
        if wanted is not None:
            environment[_WANTED] = str(Path(folder, "wanted.json"))
            Path(environment[_WANTED]).write_text(json.dumps(sorted(wanted)))
        options = ["-p", "keras_own_tests", "-p", "no:randomly", "-p", "no:cacheprovider"]
        options += ["-q", "--tb=short", "--disable-warnings", "--rootdir", str(root)]
        # Some need packages that CI does not install, such as `grain`.
        options += ["--continue-on-collection-errors"]
        # Not with our own configuration, by which some warnings are errors.
        options += ["-c", os.devnull]
        command = [sys.executable, "-m", "pytest", *options, *(str(root / file) for file in files)]
        ran = subprocess.run(
            command, cwd=folder, env=environment, check=False, capture_output=True, text=True
        )
        if not report.exists():
            raise SystemExit(f"{ran.stdout}\n{ran.stderr}\npytest did not run.")
        return json.loads(report.read_text()), ran.stdout


def find_tests(root):
    """Returns the outcomes, without the patch, of all tests that save or load anything."""
    paths = ((path, path.relative_to(root).as_posix()) for path in sorted(root.rglob("*_test.py")))
    files = [
        name
        for path, name in paths
        if not name.startswith(_LEFT_OUT) and _MENTIONED.search(path.read_text())
    ]
    seen, _ = run(root, files)
    if seen["calls"]:
        raise SystemExit(f"tiedio was called without the patch: {seen['calls']}")
    return {name: seen["outcomes"].get(name) for name in seen["reached"]}


def problems_of(stock, patched, calls, backend):
    """Lists what differs between the two runs, or shows that they say nothing."""
    otherwise = [_NAMES_CLASSES_OF_TORCH] if backend == "torch" else []
    if importlib.util.find_spec("tensorflow") is None:
        otherwise.append(_NEEDS_TENSORFLOW)
    for name in otherwise:
        outcomes = stock.pop(name, None), patched.pop(name, None)
        print(f"{name}: {outcomes[0]} without the patch, {outcomes[1]} under it")
    problems = [
        f"{name}: {stock.get(name)} without the patch, {patched.get(name)} under it"
        for name in sorted(stock.keys() | patched.keys())
        if stock.get(name) != patched.get(name)
    ]
    passed = sum(outcome == "passed" for outcome in patched.values())
    if passed < _FEWEST_PASSED * len(stock):
        problems.append(f"only {passed} tests passed")
    problems += [
        f"`{name}` was called {calls.get(name, 0)} times only under the patch"
        for name in ("save_tied", "load_tied", "save_tied_weights", "load_tied_weights")
        if calls.get(name, 0) < _FEWEST_CALLS
    ]
    return problems


def main():
    """Runs them under the patch, and says what differs."""
    import keras

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="write down the outcomes of this Keras")
    parser.add_argument("--all", action="store_true", help="run the slow ones too")
    parser.add_argument(
        "--share", default="0/1", help="K/N: the one numbered K of N shares of them"
    )
    options = parser.parse_args()
    root = Path(keras.__file__).parent / "src"
    backend = keras.backend.backend()
    kept = _KEPT / f"{keras.__version__}-{backend}.json"
    stock = find_tests(root) if options.keep or not kept.exists() else json.loads(kept.read_text())
    print(f"Keras {keras.__version__} with {backend}: {len(stock)} tests that save or load")
    if not stock:
        raise SystemExit("This version of Keras comes without its tests.")
    if options.keep:
        kept.write_text(json.dumps(stock, indent=0, sort_keys=True) + "\n")
        return 0
    if not options.all:
        stock = {name: outcome for name, outcome in stock.items() if not _SLOW.search(name)}
    share, shares = map(int, options.share.split("/"))
    stock = {name: stock[name] for name in sorted(stock)[share::shares]}
    seen, output = run(root, sorted({name.partition("::")[0] for name in stock}), wanted=stock)
    patched, calls = seen["outcomes"], seen["calls"]
    problems = problems_of(stock, patched, calls, backend)
    for name, outcome in stock.items():
        if outcome == patched.get(name) == "failed":
            print(f"{name}: failed in both runs")
    print("Under the patch:", ", ".join(f"{name} {count}" for name, count in sorted(calls.items())))
    if problems:
        print(output, *problems, sep="\n")
        if kept.exists():
            print(f"Without the patch: as kept in {kept.name}; `--keep` renews it.")
    passed = sum(outcome == "passed" for outcome in patched.values())
    print(f"{passed} passed, {len(problems)} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
