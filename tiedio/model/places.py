"""The places of a live model that hold a variable or a seed generator, and which hold the same.

Variables overload `==` and cannot be hashed: they are compared by identity
throughout, and whoever keeps an `id()` also keeps the object alive.
"""

import collections
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from tiedio.model.keras_internals import BOOKKEEPING, TRACKED
from tiedio.model.walk import CONTAINERS, Visit, layers_of, walk
from tiedio.record.record import HeldVariable, LayerState
from tiedio.record.ties import Place, TieGroup, Ties


def _members(layer: keras.Layer, kind: type) -> Iterator[tuple[str, Any]]:
    """Yields each object of `kind` that `layer` itself holds, by attribute."""
    for name, value in attributes_of(layer).items():
        if isinstance(value, kind):
            yield name, value
        elif isinstance(value, CONTAINERS):
            yield from _items(name, value, kind)


def _items(
    name: str, container: Any, kind: type, entered: tuple[int, ...] = ()
) -> Iterator[tuple[str, Any]]:
    if id(container) in entered:  # it is inside itself
        return
    pairs = container.items() if isinstance(container, dict) else enumerate(container)
    for key, item in pairs:
        if isinstance(item, kind):
            yield f"{name}/{key}", item
        elif isinstance(item, CONTAINERS):
            yield from _items(f"{name}/{key}", item, kind, (*entered, id(container)))


def attributes_of(layer: keras.Layer) -> dict[str, Any]:
    """Maps the attributes in which a layer may hold something to their values."""
    # On torch, sub-layers are in a dict of their own.
    attributes = {**vars(layer), **getattr(layer, "_modules", {})}
    return {name: value for name, value in attributes.items() if name not in BOOKKEEPING}


def named_variables(layer: keras.Layer) -> dict[str, Any]:
    """Maps attributes to the variables that `layer` itself holds.

    A variable that is tracked but kept in no attribute is addressed by its
    place in the layer's list, as in `"_trainable_variables/1"`.
    """
    named = dict(_members(layer, keras.Variable))
    known = {id(variable) for variable in named.values()}
    for tracked in TRACKED:
        for index, variable in enumerate(getattr(layer, tracked)):
            if id(variable) not in known:
                named[f"{tracked}/{index}"] = variable
    return named


def own_variables(saveable: Any) -> list[Any]:
    """Lists the variables that a saveable itself loads; sub-layers load their own."""
    if isinstance(saveable, keras.Layer):
        return [variable for tracked in TRACKED for variable in getattr(saveable, tracked)]
    return list(getattr(saveable, "variables", ()))


def find_places(visits: Iterable[Visit]) -> dict[Place, tuple[keras.Layer, Any]]:
    """Maps every place that holds a variable to its layer and the variable."""
    return {
        Place(inner_path, attribute): (layer, variable)
        for inner_path, layer in layers_of(visits)
        for attribute, variable in named_variables(layer).items()
    }


def find_generators(visits: Iterable[Visit]) -> dict[Place, tuple[keras.Layer, Any]]:
    """Maps the places of seed generators to their layer and the generator."""
    return {
        Place(inner_path, attribute): (layer, generator)
        for inner_path, layer in layers_of(visits)
        for attribute, generator in _members(layer, keras.random.SeedGenerator)
    }


def find_shared_layers(visits: Iterable[Visit]) -> tuple[tuple[str, ...], ...]:
    """Finds the layers that are reached by several paths, and lists all of these."""
    return tuple(
        tuple(visit.inner_paths)
        for visit in visits
        if len(visit.inner_paths) > 1
        and isinstance(visit.saveable, keras.Layer)
        # The inputs of two models can be one object, and nothing is gained by it.
        and not isinstance(visit.saveable, keras.layers.InputLayer)
    )


def find_layers(visits: Iterable[Visit]) -> dict[str, LayerState]:
    """Maps inner_paths to what Keras does not write of each layer."""
    found = {}
    for inner_path, layer in layers_of(visits):
        attributes = {id(v): name for name, v in reversed(named_variables(layer).items())}
        held = tuple(
            HeldVariable(attributes[id(v)], v.path, tracked == TRACKED[0], bool(v.trainable))
            for tracked in TRACKED
            for v in getattr(layer, tracked)
        )
        found[inner_path] = LayerState(
            layer.name, layer.path or layer.name, bool(layer.trainable), held
        )
    return found


def find_ties(model: keras.Layer) -> tuple[TieGroup, ...]:
    """Finds the variables that several places of a model share.

    Args:
        model: A model, or any layer; only what is built has variables.

    Returns:
        The tie groups, in the order of Keras' walk over the model. A layer
        that is called several times is one place; weights that are merely
        equal are not tied.

    Example:

    >>> import keras, tiedio
    >>> encoder, decoder = keras.layers.Dense(4), keras.layers.Dense(4)
    >>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
    >>> _ = tiedio.tie(decoder, to=encoder, weights=("kernel",))
    >>> for group in tiedio.find_ties(model):
    ...     print(group)
    layers/dense/_kernel = layers/dense_1/_kernel  (4, 4) float32
    """
    return Ties(group for group, _ in find_shared(walk(model)))


def find_shared(visits: Iterable[Visit]) -> list[tuple[TieGroup, Any]]:
    """Finds the tie groups among `visits`, each with its variable."""
    holders = collections.defaultdict(list)
    for place, (layer, variable) in find_places(visits).items():
        holders[id(variable)].append((place, layer, variable))
    shared = []
    for held in holders.values():
        if len(held) > 1:
            variable = held[0][2]
            # `max` keeps the first of equals, so walk order decides a draw.
            owner = max(held, key=lambda holder: _created_by(holder[1], variable))[0]
            aliases = tuple(place for place, _, _ in held if place != owner)
            group = tie_group(owner, aliases, variable)
            shared.append((group, variable))
    return shared


def tie_group(owner: Place, aliases: Iterable[Place], variable: Any) -> TieGroup:
    """Makes the tie group of a variable and the places that hold it, or are to."""
    shape = tuple(int(size) for size in variable.shape)
    return TieGroup(owner, tuple(aliases), shape, str(variable.dtype), bool(variable.trainable))


def _created_by(layer: keras.Layer, variable: Any) -> int:
    """Tells how sure it is that `layer` created `variable` (0: it is not).

    A variable's path opens with the path of the layer that made it; when that
    was in the constructor, the layer knew no more of it than its own name.
    """
    if variable.path == f"{layer.path}/{variable.name}":
        return 2
    return int(f"/{variable.path}".endswith(f"/{layer.name}/{variable.name}"))
