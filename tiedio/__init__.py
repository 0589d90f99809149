"""Keeps weights tied when a Keras model is saved and loaded."""

import concurrent.futures.thread  # noqa: F401 - which cannot be imported when Python ends
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers see; `_HOMES` says the same to Python
    from tiedio.display.doctor import doctor as doctor
    from tiedio.display.plot import plot_ties as plot_ties
    from tiedio.display.summary import summary as summary
    from tiedio.errors import TiedioError as TiedioError
    from tiedio.errors import TiedioWarning as TiedioWarning
    from tiedio.hooks.backup import TiedBackupAndRestore as TiedBackupAndRestore
    from tiedio.hooks.callbacks import AssertTied as AssertTied
    from tiedio.hooks.callbacks import TiedModelCheckpoint as TiedModelCheckpoint
    from tiedio.hooks.orbax import TiedOrbaxCheckpoint as TiedOrbaxCheckpoint
    from tiedio.hooks.patching import patch as patch
    from tiedio.hooks.patching import unpatch as unpatch
    from tiedio.hooks.remaking import clone_tied as clone_tied
    from tiedio.hooks.remaking import quantize_tied as quantize_tied
    from tiedio.model.tying import assert_tied as assert_tied
    from tiedio.model.tying import find_ties as find_ties
    from tiedio.model.tying import tie as tie
    from tiedio.model.tying import untie as untie
    from tiedio.record.ties import Place as Place
    from tiedio.record.ties import TieGroup as TieGroup
    from tiedio.record.ties import Ties as Ties
    from tiedio.saving.background import Saving as Saving
    from tiedio.saving.model import load_tied as load_tied
    from tiedio.saving.model import save_tied as save_tied
    from tiedio.saving.weights import load_tied_weights as load_tied_weights
    from tiedio.saving.weights import save_tied_weights as save_tied_weights

__version__ = "0.2.0"

# Keras takes seconds to import; commands that only read files do without it.
_HOMES = {
    name: home
    for home, names in {
        "display.doctor": ("doctor",),
        "display.plot": ("plot_ties",),
        "display.summary": ("summary",),
        "errors": ("TiedioError", "TiedioWarning"),
        "hooks.backup": ("TiedBackupAndRestore",),
        "hooks.callbacks": ("AssertTied", "TiedModelCheckpoint"),
        "hooks.orbax": ("TiedOrbaxCheckpoint",),
        "hooks.patching": ("patch", "unpatch"),
        "hooks.remaking": ("clone_tied", "quantize_tied"),
        "model.tying": ("assert_tied", "find_ties", "tie", "untie"),
        "record.ties": ("Place", "TieGroup", "Ties"),
        "saving.background": ("Saving",),
        "saving.model": ("load_tied", "save_tied"),
        "saving.weights": ("load_tied_weights", "save_tied_weights"),
    }.items()
    for name in names
}
__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from tiedio.errors import importing_keras

        with importing_keras(f"`tiedio.{name}`"):
            return getattr(importlib.import_module(f"tiedio.{_HOMES[name]}"), name)
    if name == "files":
        return importlib.import_module("tiedio.files")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
