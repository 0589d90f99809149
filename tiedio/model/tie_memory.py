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

# For each layer, its tied attributes; those that hold the same variable have the same token.
_tokens: weakref.WeakKeyDictionary[keras.Layer, dict[str, object]] = weakref.WeakKeyDictionary()


def remember(tied: Iterable[tuple[keras.Layer, str]]) -> None:
    """Remembers that these attributes are tied; the first may be tied already."""
    (owner, attribute), *aliases = tied
    token = _tokens.setdefault(owner, {}).setdefault(attribute, object())
    for layer, alias in aliases:
        _tokens.setdefault(layer, {})[alias] = token


def forget(layer: keras.Layer, attribute: str) -> None:
    """Forgets that an attribute of `layer` is tied."""
    _tokens.get(layer, {}).pop(attribute, None)


def remembered(walk: Walk) -> list[tuple[Place, ...]]:
    """Lists the places of a model that are to hold one variable."""
    groups = collections.defaultdict(list)
    for inner_path, layer in walk.layers.items():
        for attribute, token in _tokens.get(layer, {}).items():
            groups[token].append(walk.place(inner_path, attribute))
    return [tuple(places) for places in groups.values() if len(places) > 1]
