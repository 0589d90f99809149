"""Name classes of Keras so that every backend finds them.

On torch, Keras makes subclasses of its own for most optimizers, and says in a config where these
are. No other backend can import them. Made by its public name, an optimizer is of the class that
the backend in force has for it.
"""

import re
from collections.abc import Callable
from typing import Any

_OF_ONE_BACKEND = re.compile(r"keras\.src\.backend\.\w+\.optimizers\.\w+")


def with_public_names(config: Any) -> Any:
    """Copies a config, with optimizers of one backend under their public names."""
    return copied(config, _with_public_name)


def _with_public_name(part: dict[str, Any]) -> dict[str, Any]:
    if _OF_ONE_BACKEND.fullmatch(str(part.get("module"))):
        return part | {"module": "keras.optimizers", "registered_name": None}
    return part


def copied(config: Any, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Copies a config, each object in it, from the innermost on, as `changed` makes it.

    However deep it is: no call is inside another one.
    """
    made = [config]
    places: list[tuple[Any, Any, type]] = [(made, 0, type(config))]
    for holder, key, kind in places:  # what is inside goes to the end
        part = holder[key]
        if issubclass(kind, (list, tuple)):
            holder[key] = inside = list(part)
            places += ((inside, number, type(one)) for number, one in enumerate(part))
        elif issubclass(kind, dict):
            holder[key] = inside = dict(part)
            places += ((inside, name, type(one)) for name, one in part.items())
    for holder, key, kind in reversed(places):
        if issubclass(kind, dict):
            holder[key] = changed(holder[key])
        elif issubclass(kind, tuple):
            holder[key] = tuple(holder[key])
    return made[0]
