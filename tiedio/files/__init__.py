"""The verbs of the command line as functions of the same names: what is asked of a file.

Each function names its arguments, what it returns and what it raises; none needs Keras, or the
code of a model. For folders and patterns there is `tiedio.files.many`.

Example:

>>> import keras, tiedio
>>> from tiedio import files
>>> encoder, decoder = (keras.layers.Dense(4, name=name) for name in ("encoder", "decoder"))
>>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
>>> tiedio.save_tied(tiedio.tie(decoder, to=encoder) and model, "tied.keras")
>>> files.verify("tied.keras").is_verified
True
>>> files.diff("tied.keras", "tied.keras").is_equal
True
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiedio.migration.planning import migrate as migrate
    from tiedio.migration.planning import plan as plan
    from tiedio.tools.comparison import diff as diff
    from tiedio.tools.export import export as export
    from tiedio.tools.inspection import inspect as inspect
    from tiedio.tools.verification import verify as verify

# A command imports what it uses only, and answers the sooner.
_HOMES = {
    "diff": "tools.comparison",
    "export": "tools.export",
    "inspect": "tools.inspection",
    "migrate": "migration.planning",
    "plan": "migration.planning",
    "verify": "tools.verification",
}
__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"tiedio.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
