"""Keeps weights tied when a Keras model is saved and loaded."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiedio.display.plot import plot_ties
    from tiedio.display.summary import summary
    from tiedio.errors import TiedioError, TiedioWarning
    from tiedio.hooks.callbacks import AssertTied, TiedBackupAndRestore, TiedModelCheckpoint
    from tiedio.hooks.patching import patch, unpatch
    from tiedio.model.tying import assert_tied, find_ties, tie, untie
    from tiedio.record.ties import Place, TieGroup
    from tiedio.saving.model import load_tied, save_tied
    from tiedio.saving.weights import load_tied_weights, save_tied_weights

__all__ = [
    "AssertTied",
    "Place",
    "TieGroup",
    "TiedBackupAndRestore",
    "TiedModelCheckpoint",
    "TiedioError",
    "TiedioWarning",
    "assert_tied",
    "find_ties",
    "load_tied",
    "load_tied_weights",
    "patch",
    "plot_ties",
    "save_tied",
    "save_tied_weights",
    "summary",
    "tie",
    "unpatch",
    "untie",
]
__version__ = "0.1.0"

_HOMES = {
    "AssertTied": "hooks.callbacks",
    "Place": "record.ties",
    "TieGroup": "record.ties",
    "TiedBackupAndRestore": "hooks.callbacks",
    "TiedModelCheckpoint": "hooks.callbacks",
    "TiedioError": "errors",
    "TiedioWarning": "errors",
    "assert_tied": "model.tying",
    "find_ties": "model.tying",
    "load_tied": "saving.model",
    "load_tied_weights": "saving.weights",
    "patch": "hooks.patching",
    "plot_ties": "display.plot",
    "save_tied": "saving.model",
    "save_tied_weights": "saving.weights",
    "summary": "display.summary",
    "tie": "model.tying",
    "unpatch": "hooks.patching",
    "untie": "model.tying",
}


def __getattr__(name: str) -> Any:
    # Keras takes seconds to import; commands that only read files do without it.
    if name in _HOMES:
        return getattr(importlib.import_module(f"tiedio.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
