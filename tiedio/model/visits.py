"""Visit the saveables of a model, in the order and by the paths of Keras' own walk."""

import dataclasses
import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

from tiedio.model.keras_internals import (
    KerasSaveable,
    get_attr_skipset,
    name_key,
    to_snake_case,
)
from tiedio.model.places import CONTAINERS

# What can hold a saveable, or be one.
_HOLDING = (KerasSaveable, *CONTAINERS)
_METHODS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType)


@dataclasses.dataclass
class Visit:
    """One saveable met on the walk over a model.

    Attributes:
        saveable: The layer, optimizer, metric, ...
        inner_paths: Every path it was met under; Keras stores it under the first.
        views: Paths under which what holds it shows it once more, as `layers` does. Before
            Keras 3.12, what is in a list in a list is stored there.
    """

    saveable: Any
    inner_paths: list[str]
    views: list[str] = dataclasses.field(default_factory=list)

    @property
    def inner_path(self) -> str:
        return self.inner_paths[0]


def visits_below(root: Any, skipped: Iterable[Any]) -> list[Visit]:
    """Visits the saveables below `root`, itself first, as Keras does.

    Those in `skipped` are left out, with what is reached through them only.
    """
    visits: dict[int, Visit] = {}
    outside = {id(saveable) for saveable in skipped}
    attributes = _Attributes()

    def visit(saveable: Any, inner_path: str) -> None:
        visits[id(saveable)] = Visit(saveable, [inner_path])
        held: dict[int, bool] = {}  # what this one holds; whether a property showed it
        for attribute, child in attributes.of(saveable):
            view = isinstance(getattr(type(saveable), attribute, None), property)
            for item, item_path in _saveables(child, f"{inner_path}/{attribute}".lstrip("/")):
                if id(item) in outside:
                    continue
                if id(item) not in visits:
                    visit(item, item_path)
                elif id(item) in held and (view or held[id(item)]):
                    if item_path != visits[id(item)].inner_path:
                        visits[id(item)].views.append(item_path)
                else:
                    visits[id(item)].inner_paths.append(item_path)
                held.setdefault(id(item), view)

    if id(root) not in outside:
        visit(root, "")
    return [*visits.values()]


class _Attributes:
    """The attributes of saveables that may hold others, in the order of Keras' own walk.

    What all of a class have in common is found out once in a walk.
    """

    def __init__(self):
        self._of_class: dict[type, set[str]] = {}

    def of(self, saveable: Any) -> Iterator[tuple[str, Any]]:
        """Yields name and value of those that hold a saveable or a container."""
        kind = saveable._obj_type()
        if kind in ("Sequential", "Functional"):
            yield "layers", saveable.layers
        names = self._names(saveable) - _skipped(kind)
        for name in sorted(names, key=name_key):
            try:
                value = getattr(saveable, name)
            except Exception:  # a property may raise anything
                value = None
            if isinstance(value, _HOLDING):
                yield name, value

    def _names(self, saveable: Any) -> set[str]:
        if type(saveable).__dir__ is not object.__dir__:  # torch lists sub-layers there
            return {name for name in dir(saveable) if not name.startswith("__")}
        kind = type(saveable)
        if kind not in self._of_class:
            self._of_class[kind] = {
                name
                for name in dir(kind)
                # Most of a class are functions, and none of them a saveable.
                if not (name.startswith("__") or isinstance(getattr(kind, name, None), _METHODS))
            }
        return self._of_class[kind] | vars(saveable).keys()


_snake_case = functools.cache(to_snake_case)

# Keras makes a layer, an optimizer, ... to find these out, anew for every saveable.
_skipped = functools.cache(get_attr_skipset)


def _saveables(value: Any, inner_path: str, entered: tuple[int, ...] = ()) -> Iterator[Any]:
    """Yields the saveables in an attribute, with their paths, as Keras names them."""
    if isinstance(value, KerasSaveable):
        yield value, inner_path
    elif isinstance(value, CONTAINERS) and id(value) not in entered:
        used: dict[str, int] = {}
        for item in list(value.values()) if isinstance(value, dict) else value:
            if isinstance(item, KerasSaveable):
                kind = _snake_case(type(item).__name__)
            elif isinstance(item, CONTAINERS):
                kind = "container"
            else:
                continue
            number = used.get(kind, 0)
            used[kind] = number + 1
            name = f"{kind}_{number}" if number else kind
            yield from _saveables(item, f"{inner_path}/{name}", (*entered, id(value)))
