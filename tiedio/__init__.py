"""Keeps weights tied when a Keras model is saved and loaded."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiedio.callbacks import AssertTied, TiedBackupAndRestore, TiedModelCheckpoint
    from tiedio.errors import TiedioError, TiedioWarning
    from tiedio.patching import patch, unpatch
    from tiedio.plotting import plot_ties
    from tiedio.saving import load_tied, save_tied
    from tiedio.summaries import summary
    from tiedio.ties import Place, TieGroup
    from tiedio.tying import assert_tied, tie, untie
    from tiedio.variables import find_ties
    from tiedio.weights import load_tied_weights, save_tied_weights

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
    "AssertTied": "callbacks",
    "Place": "ties",
    "TieGroup": "ties",
    "TiedBackupAndRestore": "callbacks",
    "TiedModelCheckpoint": "callbacks",
    "TiedioError": "errors",
    "TiedioWarning": "errors",
    "assert_tied": "tying",
    "find_ties": "variables",
    "load_tied": "saving",
    "load_tied_weights": "weights",
    "patch": "patching",
    "plot_ties": "plotting",
    "save_tied": "saving",
    "save_tied_weights": "weights",
    "summary": "summaries",
    "tie": "tying",
    "unpatch": "patching",
    "untie": "tying",
}


def __getattr__(name: str) -> Any:
    # Keras takes seconds to import; commands that only read files do without it.
    if name in _HOMES:
        return getattr(importlib.import_module(f"tiedio.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
