"""Says what is installed, whatever of it is missing or broken.

Neither Keras nor a backend is imported: that takes seconds, and may be what fails.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiedio
from tiedio.errors import BACKENDS, first_line
from tiedio.keras_versions.keras_version import KerasVersion

TESTED_KERAS = ((3, 10), (3, 12), (3, 15))
# What each extra brings: a package, its module, and what that is for.
EXTRAS = {
    **{backend: (backend, backend, "Keras on this backend") for backend in BACKENDS},
    "remote": ("fsspec", "fsspec", "URLs"),
    "hf": ("huggingface-hub", "huggingface_hub", "`hf://` paths"),
    "safetensors": ("safetensors", "safetensors", "reading `.safetensors`"),
    "plot": ("pydot", "pydot", "`plot_ties`"),
    "orbax": ("orbax-checkpoint", "orbax.checkpoint", "Orbax checkpoints"),
    "demo": ("scikit-learn", "sklearn", "`tiedio demo`"),
}
# What comes with tiedio, beside Keras. It is imported in no time, which tells whether it works.
_NEEDED = ("h5py", "numpy", "ml-dtypes", "xxhash", "zlib-ng", "click", "rich")
# As what else pip may have installed them.
_OTHER_NAMES = {"tensorflow": ("tensorflow-cpu", "tensorflow-macos", "tf-nightly")}


@dataclasses.dataclass(frozen=True)
class Part:
    """Something that is installed, or could be.

    Attributes:
        name: What it is called; a package as pip calls it.
        version: Its version; `None` if it is not there.
        note: What else there is to say; of what is missing or broken, what to do.
        is_wrong: Whether something is to be done before tiedio works.
    """

    name: str
    version: str | None
    note: str = ""
    is_wrong: bool = False

    def __str__(self) -> str:
        told = [self.version or "missing", *filter(None, [self.note])]
        return f"{self.name:<18}{', '.join(told)}"


@dataclasses.dataclass(frozen=True)
class Installation:
    """What is installed.

    Attributes:
        parts: All that may matter where something does not work.
    """

    parts: tuple[Part, ...]

    @property
    def is_fine(self) -> bool:
        """Whether nothing is to be done before tiedio works."""
        return not any(part.is_wrong for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Returns what `tiedio doctor --json` prints."""
        return {"is_fine": self.is_fine, "parts": [dataclasses.asdict(one) for one in self.parts]}


def installation() -> Installation:
    """Says what is installed for the Python that runs this."""
    extras = {extra: _of_extra(extra) for extra in EXTRAS}
    return Installation(
        (
            Part("tiedio", tiedio.__version__),
            Part("python", platform.python_version()),
            Part("platform", platform.platform()),
            _keras(),
            _backend([extras[name] for name in BACKENDS]),
            *map(_needed, _NEEDED),
            # Who does not use one is not kept from anything by what is broken of it.
            *(dataclasses.replace(one, is_wrong=False) for one in extras.values()),
        )
    )


def _keras() -> Part:
    part = _package("keras", "keras")
    oldest, *_, newest = TESTED_KERAS
    numbers = KerasVersion(part.version or "").numbers
    if part.is_wrong or not numbers:
        return part
    if numbers < oldest:
        note = f"too old, tiedio needs {_dotted(oldest)}: `pip install --upgrade keras`"
        return dataclasses.replace(part, note=note, is_wrong=True)
    note = "tested" if numbers in TESTED_KERAS else "between two versions that are tested"
    if numbers > newest:
        note = f"newer than any that is tested; the newest of those is {_dotted(newest)}"
    return dataclasses.replace(part, note=note)


def _backend(backends: Sequence[Part]) -> Part:
    """Says which backend Keras uses where a program sets no other, as Keras itself finds out."""
    home = os.path.expanduser("~")
    home = home if os.access(home, os.W_OK) else "/tmp"  # noqa: S108 - as Keras has it
    folder = os.path.expanduser(os.environ.get("KERAS_HOME", f"{home}/.keras"))
    name, source = os.environ.get("KERAS_BACKEND"), "KERAS_BACKEND"
    if not name:
        try:
            config = json.loads(Path(folder, "keras.json").read_text())
            name, source = str(config["backend"]), "keras.json"
        except (OSError, ValueError, TypeError, LookupError):
            name, source = "tensorflow", "default"
    works = {part.name: bool(part.version) and not part.is_wrong for part in backends}
    if works.get(name):
        return Part("backend", name, f"by {source}")
    what = "does not work" if name in BACKENDS else "is none that tiedio knows"
    others = " or ".join(f"`{other}`" for other in works if works[other])
    todo = f"set KERAS_BACKEND to {others}" if others else "install one of those below"
    return Part("backend", str(name), f"by {source}, which {what}: {todo}", is_wrong=True)


def _needed(name: str) -> Part:
    module = name.replace("-", "_")
    part = _package(name, module)
    if part.is_wrong:
        return part
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # anything, by what is broken
        return _broken(part, first_line(error))
    note = f"with HDF5 {imported.version.hdf5_version}" if name == "h5py" else ""
    return dataclasses.replace(part, note=note)


def _of_extra(extra: str) -> Part:
    name, module, purpose = EXTRAS[extra]
    part = _package(name, module)
    if not part.version:
        note = f"for {purpose}: `pip install 'tiedio[{extra}]'`"
        return dataclasses.replace(part, note=note, is_wrong=False)
    if name == "pydot" and not shutil.which("dot"):
        return dataclasses.replace(part, note="without Graphviz, which draws all but `.dot`")
    return part


def _package(name: str, module: str) -> Part:
    """Says which version of a package pip installed, and whether its module is there."""
    version = _version(name)
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # of the package that it is in
        found = None
    if found and found.origin:  # a folder without code, which was left behind, has none
        return Part(name, version or "unknown")
    if version:
        return _broken(Part(name, version), f"there is no module `{module}`")
    return Part(name, None, f"tiedio needs it: `pip install {name}`", is_wrong=True)


def _broken(part: Part, reason: str) -> Part:
    names = _OTHER_NAMES.get(part.name, [])
    name = next(filter(_version, names), part.name)
    note = f"broken, {reason}: `pip install --force-reinstall --no-deps {name}`"
    return dataclasses.replace(part, note=note, is_wrong=True)


def _version(name: str) -> str | None:
    for package in (name, *_OTHER_NAMES.get(name, [])):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
