"""What one layer itself holds, by attribute: variables and seed generators.

Variables overload `==` and cannot be hashed: they are compared by identity
throughout, and whoever keeps an `id()` also keeps the object alive.
"""

import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from tiedio.model.keras_internals import BOOKKEEPING, TRACKED

# What can hold a saveable, a variable or a seed generator.
CONTAINERS = (list, dict, tuple)

# What most attributes of a layer are, which hold nothing.
PLAIN = frozenset((bool, float, int, str, type(None), types.FunctionType))


def members(layer: keras.Layer, kind: type | tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    """Yields each object of `kind` that `layer` itself holds, by attribute."""
    return _members("", attributes_of(layer), kind)


def _members(
    path: str, container: Any, kind: type | tuple[type, ...], entered: tuple[int, ...] = ()
) -> Iterator[tuple[str, Any]]:
    if id(container) in entered:  # it is inside itself
        return
    for key, item in container.items() if isinstance(container, dict) else enumerate(container):
        if type(item) in PLAIN:
            continue
        if isinstance(item, kind):
            yield f"{path}/{key}".lstrip("/"), item
        elif isinstance(item, CONTAINERS) and item:
            name = f"{path}/{key}".lstrip("/")
            yield from _members(name, item, kind, (*entered, id(container)))


def attributes_of(layer: keras.Layer) -> dict[str, Any]:
    """Maps the attributes in which a layer may hold something to their values."""
    # On torch, sub-layers are in a dict of their own.
    attributes = {**vars(layer), **getattr(layer, "_modules", {})}
    for name in BOOKKEEPING:
        attributes.pop(name, None)
    return attributes


def named_variables(
    layer: keras.Layer, held: Iterable[tuple[str, Any]] | None = None
) -> dict[str, Any]:
    """Maps attributes to the variables that `layer` itself holds.

    A variable that is tracked but kept in no attribute is addressed by its
    place in the layer's list, as in `"_trainable_variables/1"`.

    Args:
        layer: The layer.
        held: Its `members` that are variables, and others, if they are known.
    """
    held = members(layer, keras.Variable) if held is None else held
    named = {name: item for name, item in held if isinstance(item, keras.Variable)}
    known = {id(variable) for variable in named.values()}
    for tracked in TRACKED:
        for index, variable in enumerate(getattr(layer, tracked)):
            if id(variable) not in known:
                named[f"{tracked}/{index}"] = variable
    return named


def attribute_of(named: Mapping[str, Any]) -> dict[int, str]:
    """Maps the `id()` of variables to the first attribute of each."""
    return {id(variable): name for name, variable in reversed(list(named.items()))}


def raw_state(layer: keras.Layer) -> dict[str, Any]:
    """Maps attributes to what the backend itself tracks, and Keras does not: raw variables.

    TensorFlow tracks its own variables, torch its parameters and buffers; JAX nothing.
    """
    if layer.__class__.__module__.startswith("keras."):  # whose layers keep no state there
        return {}
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            return dict(members(layer, tf.Variable))
        case "torch":
            own: Any = layer
            return {**own._parameters, **own._buffers}
    return {}


def own_variables(saveable: Any) -> list[Any]:
    """Lists the variables that a saveable itself loads; sub-layers load their own."""
    if isinstance(saveable, keras.Layer):
        return [variable for tracked in TRACKED for variable in getattr(saveable, tracked)]
    return list(getattr(saveable, "variables", ()))
