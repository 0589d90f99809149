"""Name, find and substitute the variables of a live model.

The only module that touches Keras internals. Every private name is imported or
read here, each with its reason, and `tests/test_keras_internals.py` says which
one broke when a Keras version moves it.

Variables overload `==` and cannot be hashed: they are compared by identity
throughout, and whoever keeps an `id()` also keeps the object alive.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

# Objects that Keras' saving walks: layers, optimizers, metrics, losses.
from keras.src.saving.keras_saveable import KerasSaveable

# The attributes it visits, in order, and how it names the members of lists (below):
# paths made from anything else would not be where stock Keras looks for them.
from keras.src.saving.saving_lib import _walk_saveable

# Re-exported for `saving`: a model is read and written inside these scopes.
from keras.src.saving.serialization_lib import ObjectSharingScope as ObjectSharingScope
from keras.src.saving.serialization_lib import SafeModeScope as SafeModeScope
from keras.src.utils.naming import to_snake_case

from tiedio.errors import RecordError, TieError, listed
from tiedio.ties import Place, Record, TieGroup

# The two lists in which a layer tracks its variables (there is no public way
# to put another variable into a given place of them).
TRACKED = ("_trainable_variables", "_non_trainable_variables")

# Attributes that mention a variable without being a name for it: the lists
# above, that of seed generators, and TensorFlow's own account of attributes.
_BOOKKEEPING = {
    *TRACKED,
    "_seed_generators",
    "_self_unconditional_checkpoint_dependencies",
    "_self_unconditional_deferred_dependencies",
    "_self_unconditional_dependency_names",
}


@dataclasses.dataclass
class Visit:
    """One saveable met on the walk over a model.

    Attributes:
        saveable: The layer, optimizer, metric, ...
        inner_paths: Every path it was met under; Keras stores it under the first.
    """

    saveable: Any
    inner_paths: list[str]

    @property
    def inner_path(self) -> str:
        return self.inner_paths[0]


def walk(root: Any) -> list[Visit]:
    """Lists the saveables below `root`, itself first, as Keras visits them."""
    visits: dict[int, Visit] = {}

    def visit(saveable: Any, inner_path: str) -> None:
        if id(saveable) in visits:
            visits[id(saveable)].inner_paths.append(inner_path)
            return
        visits[id(saveable)] = Visit(saveable, [inner_path])
        for attribute, child in _walk_saveable(saveable):
            enter(child, f"{inner_path}/{attribute}".lstrip("/"), set())

    def enter(child: Any, inner_path: str, entered: set[int]) -> None:
        if isinstance(child, KerasSaveable):
            visit(child, inner_path)
        elif isinstance(child, (list, dict, tuple)) and id(child) not in entered:
            entered.add(id(child))
            used = collections.Counter()
            for item in list(child.values()) if isinstance(child, dict) else child:
                if isinstance(item, KerasSaveable):
                    kind = to_snake_case(type(item).__name__)
                elif isinstance(item, (list, dict, tuple)):
                    kind = "container"
                else:
                    continue
                name = f"{kind}_{used[kind]}" if used[kind] else kind
                used[kind] += 1
                enter(item, f"{inner_path}/{name}", entered)

    visit(root, "")
    return list(visits.values())


def layers_of(visits: Iterable[Visit]) -> Iterator[tuple[str, keras.Layer]]:
    """Yields the layers among `visits` with their inner_paths."""
    for visit in visits:
        if isinstance(visit.saveable, keras.Layer):
            yield visit.inner_path, visit.saveable


def _members(layer: keras.Layer, kind: type) -> Iterator[tuple[str, Any]]:
    """Yields each object of `kind` that `layer` itself holds, by attribute."""

    def search(name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, kind):
            yield name, value
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from search(f"{name}/{key}", item)
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                yield from search(f"{name}/{index}", item)

    for name, value in vars(layer).items():
        if name not in _BOOKKEEPING:
            yield from search(name, value)


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


def find_places(visits: Iterable[Visit]) -> dict[Place, tuple[keras.Layer, Any]]:
    """Maps every place that holds a variable to its layer and the variable."""
    return {
        Place(inner_path, attribute): (layer, variable)
        for inner_path, layer in layers_of(visits)
        for attribute, variable in named_variables(layer).items()
    }


def find_random_states(visits: Iterable[Visit]) -> dict[Place, Any]:
    """Maps the places of seed generators to their state variables."""
    return {
        Place(inner_path, attribute): generator.state
        for inner_path, layer in layers_of(visits)
        for attribute, generator in _members(layer, keras.random.SeedGenerator)
    }


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
    return tuple(group for group, _ in find_shared(walk(model)))


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
            shape = tuple(int(size) for size in variable.shape)
            group = TieGroup(owner, aliases, shape, str(variable.dtype), bool(variable.trainable))
            shared.append((group, variable))
    return shared


def _created_by(layer: keras.Layer, variable: Any) -> int:
    """Tells how sure it is that `layer` created `variable` (0: it is not).

    A variable's path opens with the path of the layer that made it; when that
    was in the constructor, the layer knew no more of it than its own name.
    """
    if variable.path == f"{layer.path}/{variable.name}":
        return 2
    return int(f"/{variable.path}".endswith(f"/{layer.name}/{variable.name}"))


@dataclasses.dataclass
class Substitution:
    """`new` is to take the place of `old` in `layer`."""

    layer: keras.Layer
    old: Any
    new: Any


def plan_retie(
    visits: Sequence[Visit], record: Record
) -> tuple[list[Substitution], RecordError | None]:
    """Plans the substitutions that give a freshly built model its sharing back.

    Returns:
        The substitutions of every tie group that fits the model, and an error
        that names all that does not: variables the model does not have, or has
        in another shape or dtype.
    """
    places = find_places(visits)
    named = [place for group in record.tie_groups for place in group.places]
    for trained in record.optimizer_variables.values():
        named += trained or ()
    missing = [place for place in named if place not in places]
    missing += record.random_state.keys() - find_random_states(visits).keys()
    problems = {str(place): "no such variable" for place in missing}
    for group in record.tie_groups:
        expected = f"{group.shape} {group.dtype}"
        for place in group.places:
            if place in places and (received := facts_of(places[place][1])) != expected:
                problems[str(place)] = f"{received}, not {expected}"
    substitutions = [
        Substitution(*places[alias], new=places[group.owner][1])
        for group in record.tie_groups
        if not any(str(place) in problems for place in group.places)
        for alias in group.aliases
    ]
    if not problems:
        return substitutions, None
    return substitutions, RecordError(
        f"Cannot restore {listed(problems)}: the model is not the one that was saved.\n"
        f"Received: {'; '.join(f'`{name}`: {problems[name]}' for name in sorted(problems))}.\n"
        "Load the file with the same classes, in the version it was saved with."
    )


def held_variables(visits: Iterable[Visit]) -> dict[str, tuple[tuple[str, bool], ...]]:
    """Lists the variables of each layer in its own order: attribute and `trainable`."""
    held = {}
    for inner_path, layer in layers_of(visits):
        attributes = {id(v): name for name, v in reversed(named_variables(layer).items())}
        tracked = [variable for store in TRACKED for variable in getattr(layer, store)]
        if tracked:
            held[inner_path] = tuple((attributes[id(v)], bool(v.trainable)) for v in tracked)
    return held


def restore_held(visits: Iterable[Visit], held: Mapping[str, Sequence[tuple[str, bool]]]) -> None:
    """Sorts and flags the variables of each layer as `held_variables` found them."""
    for inner_path, layer in layers_of(visits):
        named = named_variables(layer)
        ranks = {}
        for rank, (attribute, trainable) in enumerate(held.get(inner_path, ())):
            if attribute in named:
                ranks[id(named[attribute])] = rank
                named[attribute].trainable = trainable
        for store in TRACKED:
            getattr(layer, store).sort(key=lambda variable: ranks.get(id(variable), len(ranks)))


def substitute(layer: keras.Layer, old: Any, new: Any) -> None:
    """Puts `new` wherever `layer` itself holds `old`, in the same place of its lists."""
    # A built layer refuses new state, and tracking would append what must keep its place.
    tracker = layer._tracker
    tracked = {
        store: [new if variable is old else variable for variable in getattr(layer, store)]
        for store in TRACKED
    }
    locked, tracker.locked = tracker.locked, False
    try:
        for name, value in list(vars(layer).items()):
            if name not in _BOOKKEEPING:
                replaced = _replaced(value, old, new)
                if replaced is not value:
                    setattr(layer, name, replaced)
    finally:
        tracker.locked = locked
    for store, variables in tracked.items():
        getattr(layer, store)[:] = variables
        tracker.stored_ids[store.removeprefix("_")] = {id(variable) for variable in variables}
    track_parameters(layer)


def track_parameters(layer: keras.Layer) -> None:
    """Makes a torch module's parameters those of its variables (it keeps them when built)."""
    if hasattr(layer, "_track_variables"):
        layer._track_variables()


def _replaced(value: Any, old: Any, new: Any) -> Any:
    """Returns `value` with `new` for `old`: lists and dicts changed in place."""
    if value is old:
        return new
    if isinstance(value, tuple):
        items = [_replaced(item, old, new) for item in value]
        if all(item is before for item, before in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, (list, dict)):
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            replaced = _replaced(item, old, new)
            if replaced is not item:
                value[key] = replaced
    return value


def check_shapes(pairs: Iterable[tuple[str, Any, str, Any]]) -> None:
    """Refuses to tie variables that differ.

    Args:
        pairs: Name and variable of each alias, then of its owner.

    Raises:
        TieError: If shapes or dtypes differ; every pair is named.
    """
    differing = [
        (f"`{alias_name}` to `{owner_name}`", facts_of(alias), facts_of(owner))
        for alias_name, alias, owner_name, owner in pairs
        if facts_of(alias) != facts_of(owner)
    ]
    if differing:
        differing.sort()
        pairs_named, received, expected = (
            ", ".join(column) for column in zip(*differing, strict=True)
        )
        raise TieError(
            f"Cannot tie {pairs_named}: shapes or dtypes differ.\n"
            f"Expected: {expected} (owner). Received: {received}.\n"
            "Tie only variables of equal shape and dtype."
        )


def facts_of(variable: Any) -> str:
    """Tells what must be equal for two variables to be tied, as messages show it."""
    return f"{tuple(variable.shape)} {variable.dtype}"


def copy_of(variable: Any, layer: keras.Layer) -> Any:
    """Makes a separate variable for `layer` with the value of `variable`."""
    # Named like a variable that `layer` made itself, as it tells owners from aliases.
    with layer._open_name_scope():
        copy = keras.Variable(
            np.array(keras.ops.convert_to_numpy(variable)),
            dtype=variable.dtype,
            trainable=variable.trainable,
            autocast=variable._autocast,  # said to `add_weight`, and nowhere else to be read
            aggregation=variable.aggregation,
            name=variable.name,
        )
    for wish in ("regularizer", "constraint"):
        setattr(copy, wish, getattr(layer, f"{variable.name}_{wish}", getattr(variable, wish)))
    return copy
