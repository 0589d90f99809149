"""Runs Keras' own tests of saving and loading under `tiedio.patch()`.

They come with Keras from 3.12 on. Each must have the same outcome as without the patch. `python
tests/journeys/keras_own_tests.py` exits with 1 if outcomes differ, if too few passed, or if the
patch was not what saved and loaded.

The outcomes without the patch are the same every time. They are kept in `keras_own_outcomes/` for
the versions of Keras that CI installs; `--keep` writes the file of another one. Without a file they
are found by another run.

In a process of its own this module is a plugin of pytest, `-p keras_own_tests`.
"""

import argparse
import collections
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_PATCHED = "TIEDIO_TESTS_PATCHED"
_REPORT = "TIEDIO_TESTS_REPORT"
_FILES = (
    "saving/*_test.py",
    "legacy/saving/*_test.py",
    "callbacks/model_checkpoint_test.py",
    "callbacks/backup_and_restore_test.py",
)
# Without TensorFlow, Keras itself cannot read what it takes for a remote file, and tiedio can.
_NEEDS_TENSORFLOW = (
    "saving/saving_lib_test.py::SavingBattleTest::test_remove_weights_only_saving_and_loading"
)
_FEWEST_PASSED = 100
_FEWEST_CALLS = 10

_KEPT = Path(__file__).with_name("keras_own_outcomes")

_outcomes: dict[str, str] = {}
_calls: collections.Counter[str] = collections.Counter()


def pytest_configure(config):
    """Counts what tiedio does, and patches Keras if this is the run under the patch."""
    from tiedio.saving import model, weights

    for module, name in (
        (model, "save_tied"),
        (model, "load_tied"),
        (weights, "save_tied_weights"),
        (weights, "load_tied_weights"),
    ):
        setattr(module, name, _counted(name, getattr(module, name)))
    if _PATCHED in os.environ:
        import tiedio

        tiedio.patch()


def _counted(name, function):
    def counted(*args, **kwargs):
        result = function(*args, **kwargs)
        _calls[name] += 1
        return result

    return counted


def pytest_runtest_logreport(report):
    """Notes the outcome of a test; one that cannot be set up or torn down has failed."""
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.nodeid] = report.outcome


def pytest_collectreport(report):
    """Notes a file that cannot be read."""
    if report.failed:
        _outcomes[report.nodeid] = "failed"


def pytest_unconfigure(config):
    """Writes down what was seen."""
    seen = {"outcomes": _outcomes, "calls": _calls}
    Path(os.environ[_REPORT]).write_text(json.dumps(seen))


def run(files, root, patched):
    """Runs tests of Keras in a process of its own; returns their outcomes, and what was called."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        here = Path(__file__).resolve()
        paths = [str(here.parent), str(here.parents[2])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
            _REPORT: str(report),
        }
        if patched:
            environment[_PATCHED] = "1"
        options = ["-p", "keras_own_tests", "-p", "no:randomly", "-p", "no:cacheprovider"]
        options += ["-q", "--tb=short", "--disable-warnings", "--rootdir", str(root)]
        # Not with our own configuration, by which some warnings are errors.
        options += ["-c", os.devnull]
        command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
        ran = subprocess.run(
            command, cwd=folder, env=environment, check=False, capture_output=True, text=True
        )
        if not report.exists():
            raise SystemExit(f"{ran.stdout}\n{ran.stderr}\npytest did not run.")
        seen = json.loads(report.read_text())
    return seen["outcomes"], seen["calls"], ran.stdout


def run_without_patch(files, root):
    """Returns the outcomes of Keras alone."""
    outcomes, calls, _ = run(files, root, patched=False)
    if any(calls.values()):
        raise SystemExit(f"tiedio was called without the patch: {calls}")
    return outcomes


def problems_of(stock, patched, calls):
    """Lists what differs between the two runs, or shows that they say nothing."""
    if importlib.util.find_spec("tensorflow") is None:
        outcomes = stock.pop(_NEEDS_TENSORFLOW, None), patched.pop(_NEEDS_TENSORFLOW, None)
        print(f"{_NEEDS_TENSORFLOW}: {outcomes[0]} without the patch, {outcomes[1]} under it")
    problems = [
        f"{name}: {stock.get(name)} without the patch, {patched.get(name)} under it"
        for name in sorted(stock.keys() | patched.keys())
        if stock.get(name) != patched.get(name)
    ]
    passed = sum(outcome == "passed" for outcome in patched.values())
    if passed < _FEWEST_PASSED:
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
    keep = parser.parse_args().keep
    root = Path(keras.__file__).parent / "src"
    files = [path for pattern in _FILES for path in sorted(root.glob(pattern))]
    backend = keras.backend.backend()
    print(f"Keras {keras.__version__} with {backend}: {len(files)} files of tests")
    if not files:
        raise SystemExit("This version of Keras comes without its tests.")
    kept = _KEPT / f"{keras.__version__}-{backend}.json"
    if keep:
        outcomes = run_without_patch(files, root)
        kept.write_text(json.dumps(outcomes, indent=0, sort_keys=True) + "\n")
        return 0
    stock = json.loads(kept.read_text()) if kept.exists() else run_without_patch(files, root)
    patched, calls, output = run(files, root, patched=True)
    problems = problems_of(stock, patched, calls)
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
