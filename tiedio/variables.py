"""Name and find the variables of a live model.

With `substitution` the only module that touches Keras internals. Every private
name is imported or read there, each with its reason, and
`tests/test_keras_internals.py` says which one broke when a Keras version moves it.

Variables overload `==` and cannot be hashed: they are compared by identity
throughout, and whoever keeps an `id()` also keeps the object alive.
"""

import collections
import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

# Keras' account of the variables that wait for a value: one that is left in it would be
# given a random one at the next chance.
from keras.src.backend.common import global_state

# The configs of Keras 2: there is no public way to make them, nor a model of one.
from keras.src.legacy.saving import json_utils as json_utils
from keras.src.legacy.saving import saving_utils as saving_utils
from keras.src.legacy.saving.saving_options import keras_option_scope as keras_option_scope

# All that Keras saves and loads in public goes through this module: `patching` replaces what it
# calls, and reaches so whoever imported its functions by name.
from keras.src.saving import saving_api as saving_api

# Objects that Keras' saving walks: layers, optimizers, metrics, losses.
from keras.src.saving.keras_saveable import KerasSaveable as KerasSaveable

# The attributes it does not visit, their order, and how it names the members of lists
# (below): paths made from anything else would not be where stock Keras looks for them.
from keras.src.saving.saving_lib import _name_key, get_attr_skipset

# Re-exported for `saving`: a model is read and written inside these scopes.
from keras.src.saving.serialization_lib import ObjectSharingScope as ObjectSharingScope
from keras.src.saving.serialization_lib import SafeModeScope as SafeModeScope
from keras.src.utils.naming import to_snake_case

from tiedio.ties import HeldVariable, LayerState, Place, TieGroup, Ties

# The two lists in which a layer tracks its variables (there is no public way
# to put another variable into a given place of them).
TRACKED = ("_trainable_variables", "_non_trainable_variables")

# Attributes that mention a variable without being a name for it: the lists
# above, that of seed generators, and TensorFlow's own account of attributes.
BOOKKEEPING = {
    *TRACKED,
    "_seed_generators",
    "_self_unconditional_checkpoint_dependencies",
    "_self_unconditional_deferred_dependencies",
    "_self_unconditional_dependency_names",
}


# What can hold a saveable, or be one.
_CONTAINERS = (list, dict, tuple)
_HOLDING = (KerasSaveable, *_CONTAINERS)
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


def walk(root: Any, skipped: Iterable[Any] = ()) -> list[Visit]:
    """Lists the saveables below `root`, itself first, as Keras visits them.

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
    return list(visits.values())


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
        for name in sorted(names, key=_name_key):
            value = None
            with contextlib.suppress(Exception):  # a property may raise anything
                value = getattr(saveable, name)
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
    elif isinstance(value, _CONTAINERS) and id(value) not in entered:
        used: dict[str, int] = {}
        for item in list(value.values()) if isinstance(value, dict) else value:
            if isinstance(item, KerasSaveable):
                kind = _snake_case(type(item).__name__)
            elif isinstance(item, _CONTAINERS):
                kind = "container"
            else:
                continue
            number = used.get(kind, 0)
            used[kind] = number + 1
            name = f"{kind}_{number}" if number else kind
            yield from _saveables(item, f"{inner_path}/{name}", (*entered, id(value)))


def layers_of(visits: Iterable[Visit]) -> Iterator[tuple[str, keras.Layer]]:
    """Yields the layers among `visits` with their inner_paths."""
    for visit in visits:
        if isinstance(visit.saveable, keras.Layer):
            yield visit.inner_path, visit.saveable


def _members(layer: keras.Layer, kind: type) -> Iterator[tuple[str, Any]]:
    """Yields each object of `kind` that `layer` itself holds, by attribute."""
    for name, value in attributes_of(layer).items():
        if isinstance(value, kind):
            yield name, value
        elif isinstance(value, _CONTAINERS):
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
        elif isinstance(item, _CONTAINERS):
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


def custom_object_scope(custom_objects: Mapping[str, Any] | None) -> Any:
    """Opens a scope of custom objects; Keras' own would hide those of the scope around it."""
    around = global_state.get_global_attribute("custom_objects_scope_dict") or {}
    return keras.saving.CustomObjectScope({**around, **(custom_objects or {})})


class Uninitialized:
    """A scope that lists the variables made without values inside it."""

    _ACCOUNT = "uninitialized_variables"

    def __enter__(self) -> "Uninitialized":
        self.variables: list[keras.Variable] = []
        self._others = global_state.get_global_attribute(self._ACCOUNT)
        global_state.set_global_attribute(self._ACCOUNT, self.variables)
        return self

    def __exit__(self, *exception: Any) -> None:
        global_state.set_global_attribute(self._ACCOUNT, self._others)


def has_value(variable: Any) -> bool:
    """Whether a variable has a value yet; asked otherwise, it makes one up."""
    return variable._value is not None


def initialize(variable: Any, initializer: Callable[..., Any] | None = None) -> None:
    """Gives a variable its first value, by another initializer than its own if there is one."""
    if initializer:
        variable._initializer = initializer
    variable._deferred_initialize()


def axis_order(variable: Any) -> tuple[int, ...] | None:
    """Returns the axes of a torch variable by stride, if they are not in their order.

    Matrices are multiplied in another way then, with other last bits.
    """
    value = variable._value
    if not hasattr(value, "stride") or value.is_contiguous():
        return None
    return tuple(sorted(range(value.ndim), key=value.stride().__getitem__, reverse=True))


def to_tensor(array: np.ndarray) -> Any:
    """Returns a tensor in the memory of `array`, where Keras would copy it."""
    # Another type to NumPy's side of DLPack, to torch, and to Keras on JAX.
    bfloat16 = array.dtype.name == "bfloat16"
    plain = array.view(np.int16) if bfloat16 else array
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            tensor = tf.experimental.dlpack.from_dlpack(plain.__dlpack__())
            return tf.bitcast(tensor, tf.bfloat16) if bfloat16 else tensor
        case "torch":
            import torch  # pyright: ignore[reportMissingImports]

            tensor = torch.from_numpy(plain)
            return tensor.view(torch.bfloat16) if bfloat16 else tensor
        case "jax" if bfloat16:
            import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

            return jnp.asarray(array, dtype=array.dtype)
    return array
