"""Remember which variables were tied on purpose, so that a tie that broke can be told.

Kept beside the layers, by weak reference: a layer forgets nothing of it by being
quantised or assigned to, and takes it along when it is gone.
"""

import collections
import weakref
from collections.abc import Iterable

import keras

from tiedio.model.walk import Walk
from tiedio.record.ties import Place

# In what order an attribute has the axes of a variable: of none if in its own.
Axes = tuple[int, ...]

# For each layer, its tied attributes; those that hold the same variable have the same token.
_tokens: weakref.WeakKeyDictionary[keras.Layer, dict[str, tuple[object, Axes]]] = (
    weakref.WeakKeyDictionary()
)


def remember(tied: Iterable[tuple[keras.Layer, str]], axes: Axes = ()) -> None:
    """Remembers that these attributes are tied; the first may be tied already.

    Args:
        tied: Layers and attributes, the owner first.
        axes: In what order the others show its axes, if they show it transposed.
    """
    (owner, attribute), *aliases = tied
    token, _ = _tokens.setdefault(owner, {}).setdefault(attribute, (object(), ()))
    for layer, alias in aliases:
        _tokens.setdefault(layer, {})[alias] = token, axes


def forget(layer: keras.Layer, attribute: str) -> None:
    """Forgets that an attribute of `layer` is tied."""
    _tokens.get(layer, {}).pop(attribute, None)


def remembered(walk: Walk) -> list[dict[Place, Axes]]:
    """Lists the places of a model that are to hold, or to show, one variable."""
    groups = collections.defaultdict(dict)
    for inner_path, layer in walk.layers.items():
        for attribute, (token, axes) in _tokens.get(layer, {}).items():
            groups[token][walk.place(inner_path, attribute)] = axes
    # What holds it before what shows it.
    groups = [dict(sorted(one.items(), key=lambda item: bool(item[1]))) for one in groups.values()]
    return [places for places in groups if len(places) > 1]
