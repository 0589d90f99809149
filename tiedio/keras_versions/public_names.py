"""Name classes of Keras so that every backend finds them.

On torch, Keras makes subclasses of its own for most optimizers, and says in a config where these
are. No other backend can import them. Made by its public name, an optimizer is of the class that
the backend in force has for it.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

_OF_ONE_BACKEND = re.compile(r"keras\.src\.backend\.\w+\.optimizers\.\w+")

_NESTED = (list, tuple, dict)


def with_public_names(config: Any) -> Any:
    """Copies a config, with optimizers of one backend under their public names."""
    return copied(config, with_public_name)


def with_public_name(part: dict[str, Any]) -> dict[str, Any]:
    """Does the same for one object in a config, without those in it."""
    if _OF_ONE_BACKEND.fullmatch(str(part.get("module"))):
        return {**part, "module": "keras.optimizers", "registered_name": None}
    return part


def parts(config: Any) -> Iterator[dict[str, Any]]:
    """Yields each object in a config, the outermost first, however deep it is."""
    held = [config]
    for one in held:  # what is inside goes to the end
        if isinstance(one, dict):
            yield one
            one = one.values()
        held += (inside for inside in one if isinstance(inside, _NESTED))


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
            held = enumerate(part)
        elif issubclass(kind, dict):
            holder[key] = inside = dict(part)
            held = part.items()
        else:
            continue
        places += ((inside, name, type(one)) for name, one in held if isinstance(one, _NESTED))
    for holder, key, kind in reversed(places):
        if issubclass(kind, dict):
            holder[key] = changed(holder[key])
        elif issubclass(kind, tuple):
            holder[key] = tuple(holder[key])
    return made[0]
