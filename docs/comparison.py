"""Asks tiedio and its peers what of a tied model survives a save and a load in a new process.

Prints the table in `docs/comparison.md`, and on the error stream what was raised. In an environment
of its own, from a clone: `pip install '.[demo]' accelerate flax orbax-checkpoint safetensors torch
transformers`, then `python docs/comparison.py`. It is not run in CI: that is gigabytes, and the
answers change with the releases of others.
"""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from comparison_methods import METHODS, WIDTH, Method


def write(method: Method, folder: Path) -> None:
    """Saves all that `answers` asks of."""
    for kind in ("untied", "code", "class", "hand", "layer", "several"):
        (folder / kind).mkdir()
        try:
            method.save(method.build(kind), folder / kind)
        except Exception as error:
            (folder / f"{kind}.failed").write_text(_word(error, "refused when saved"))
    for dropout in ("0.0", "0.5"):
        (folder / dropout).mkdir()
        try:
            np.savez(
                folder / f"{dropout}.npz", *method.train_and_save(folder / dropout, float(dropout))
            )
        except NotImplementedError:
            return


def answers(method: Method, folder: Path) -> dict[str, str]:
    """Loads what `write` saved in another process, and answers each question in a word or two."""
    tied, into = method.tied_by_code
    own = {kind: kind if method.needs_code else None for kind in ("code", "layer", "several")}
    return {
        "Comes back tied without its code": _is_one(method, folder / "code", None),
        "Tied by the code that builds it": _is_one(method, folder / tied, into),
        "Tied afterwards, by hand": _is_one(method, folder / "hand", "untied"),
        "One layer inside two others": _is_one(method, folder / "layer", own["layer"]),
        "Several models in one file": _is_one(method, folder / "several", own["several"]),
        "Shared tensors are stored once": _is_stored_once(folder),
        "Training goes on bit for bit": _resumes(method, folder),
        "Of 9 changed bits are found": _finds_damage(method, folder / "code", own["code"]),
    }


def _is_one(method: Method, folder: Path, into: str | None) -> str:
    failed = folder.with_suffix(".failed")
    if failed.exists():
        return failed.read_text()
    if into is None and method.needs_code:
        return "no"
    try:
        built = method.load(folder, into and method.build(into))
    except Exception as error:
        return _word(error, "refused")
    one, other = method.kernels(built, folder.name)
    return "yes" if one is other else "copies"


def _is_stored_once(folder: Path) -> str:
    tied = "hand" if any((folder / "hand").iterdir()) else "code"
    untied_size, tied_size = (
        sum(path.stat().st_size for path in (folder / kind).rglob("*") if path.is_file())
        for kind in ("untied", tied)
    )
    return _yes(untied_size - tied_size > 3 * WIDTH**2)  # most of a kernel, 4 bytes an element


def _resumes(method: Method, folder: Path) -> str:
    equal = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as saved:
            end = [array.tobytes() for array in saved.values()]
        state = method.resume(path.with_suffix(""), float(path.stem))
        equal.append([array.tobytes() for array in state] == end)
    if not equal:
        return "-"
    return "but for dropout" if equal == [True, False] else _yes(all(equal))


def _finds_damage(method: Method, folder: Path, into: str | None) -> str:
    """Changes one bit at each tenth of the largest file, by itself."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content, found = largest.read_bytes(), 0
    for tenth in range(1, 10):
        damaged = bytearray(content)
        damaged[len(content) * tenth // 10] ^= 1
        largest.write_bytes(damaged)
        try:
            method.load(folder, into and method.build(into))
        except Exception as error:
            found += bool(_word(error, "found"))
    return str(found)


def _word(error: Exception, otherwise: str) -> str:
    if isinstance(error, ImportError):  # which is no answer
        raise error
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return "-" if isinstance(error, NotImplementedError) else otherwise


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def main() -> None:
    """Asks each method in two processes, and prints the table."""
    columns = []
    for name, method in METHODS.items():
        print(f"\n{method.name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for step in ("write", "answers"):
                command = [sys.executable, __file__, step, name, folder]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            columns.append(json.loads((Path(folder) / "answers.json").read_text()))
    names = [method.name for method in METHODS.values()]
    print(f"| | {' | '.join(names)} |", f"{'|---' * (len(names) + 1)}|", sep="\n")
    for question in columns[0]:
        print(f"| {question} | {' | '.join(column[question] for column in columns)} |")
    packages = sorted({package for method in METHODS.values() for package in method.packages})
    print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        step, name, folder = sys.argv[1:]
        if step == "write":
            write(METHODS[name], Path(folder))
        else:
            found = answers(METHODS[name], Path(folder))
            (Path(folder) / "answers.json").write_text(json.dumps(found))
