"""Move the state of every saveable of a model out to a layout and a record.

`restoration` mirrors it: variables and assets of each saveable in the order of the walk, then
what Keras itself does not store.
"""

import collections
import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tiedio.errors import SaveError, listed
from tiedio.formats import hdf5_writer
from tiedio.model import renewal
from tiedio.model.keras_internals import TRACKED, axis_order
from tiedio.model.places import (
    find_generators,
    find_layers,
    find_places,
    find_shared,
    find_shared_layers,
    named_variables,
)
from tiedio.model.walk import Visit, layers_of
from tiedio.record.record import RandomState, Record
from tiedio.record.ties import Place

# How optimizers store their variables, unless a class of its own does otherwise.
_OPTIMIZERS_OWN = keras.optimizers.Optimizer.save_own_variables


def capture(
    visits: list[Visit],
    assets: Path | None,
    everything: list[Visit] | None = None,
) -> tuple[hdf5_writer.Layout, Record]:
    """Lays out the state of every saveable, each shared tensor once.

    Args:
        visits: The saveables.
        assets: Folder for their assets, if these are saved.
        everything: All saveables of the model, if some are not to be saved: an optimizer may
            have been built for variables of theirs.
    """
    layout = hdf5_writer.Layout()
    first: dict[int, str] = {}  # dataset_path under which a variable is met first
    datasets: dict[tuple[str, int], str] = {}  # by inner_path and variable
    for visit in visits:
        name = getattr(visit.saveable, "name", None)
        group = f"{visit.inner_path}/vars".lstrip("/")
        if hasattr(visit.saveable, "save_own_variables"):
            stored = _own_variables(visit.saveable)
            if isinstance(name, str) or stored:
                layout.groups[group] = {"name": name} if isinstance(name, str) else {}
            for key, value in stored.items():
                path = f"{group}/{key}"
                if isinstance(value, keras.Variable):
                    datasets.setdefault((visit.inner_path, id(value)), path)
                    if first.setdefault(id(value), path) != path:
                        layout.links[path] = first[id(value)]
                        continue
                layout.tensors[path] = _tensor(value)
        if assets and hasattr(visit.saveable, "save_assets"):
            (assets / visit.inner_path).mkdir(parents=True, exist_ok=True)
            visit.saveable.save_assets(str(assets / visit.inner_path))
    shared_layers = find_shared_layers(visits)
    _link_layers(shared_layers, layout, assets)
    nested = [(v.inner_path, *v.views) for v in visits if "/container" in v.inner_path]
    _link_layers(nested, layout, assets)  # for older versions of Keras
    exact_values = []
    for inner_path, layer in layers_of(visits):
        named = named_variables(layer)
        unstored = [name for name, v in named.items() if (inner_path, id(v)) not in datasets]
        for attribute, variable in named.items():
            if not (
                attribute in unstored or listed_only(attribute) or any(map(listed_only, unstored))
            ):
                continue
            # A tensor beside `vars`, where Keras does not look.
            path = f"{inner_path}/exact/{len(exact_values)}".lstrip("/")
            if first.setdefault(id(variable), path) == path:
                layout.tensors[path] = _tensor(variable)
            exact_values.append(Place(inner_path, attribute, first[id(variable)]))

    exact_paths = {place: place.dataset_path for place in exact_values}

    def stored_at(place: Place, variable: Any) -> Place:
        dataset_path = datasets.get((place.inner_path, id(variable)), exact_paths.get(place))
        return dataclasses.replace(place, dataset_path=dataset_path)

    groups = []
    for group, variable in find_shared(visits):
        owner, *aliases = (stored_at(place, variable) for place in group.places)
        groups.append(dataclasses.replace(group, owner=owner, aliases=tuple(aliases)))
    stored = layout.tensors | {
        path: layout.tensors[first]
        for path, first in layout.links.items()
        if first in layout.tensors
    }
    return layout, Record(
        tie_groups=tuple(groups),
        layers=find_layers(visits),
        shared_layers=shared_layers,
        exact_values=tuple(exact_values),
        optimizer_variables=_optimizer_places(visits, everything or visits),
        random_states=_random_states(visits),
        axis_orders={path: t.axis_order for path, t in stored.items() if t.axis_order},
    )


def _link_layers(
    shared_layers: Iterable[Sequence[str]], layout: hdf5_writer.Layout, assets: Path | None
) -> None:
    """Gives Keras, which builds a shared layer once for each path, the state of each."""
    for first, *others in shared_layers:
        for inner_path in others:
            if not inner_path.startswith(f"{first}/".lstrip("/")):
                layout.links[inner_path] = first
                if assets and (assets / first).exists():
                    shutil.copytree(assets / first, assets / inner_path, dirs_exist_ok=True)


def _random_states(visits: list[Visit]) -> tuple[RandomState, ...]:
    held = collections.defaultdict(list)
    for place, (_, generator) in find_generators(visits).items():
        held[id(generator)].append((place, generator))
    return tuple(
        RandomState(
            tuple(place for place, _ in holders),
            tuple(int(word) for word in _to_numpy(holders[0][1].state)),
        )
        for holders in held.values()
    )


def _own_variables(saveable: Any) -> dict[str, Any]:
    """Returns what a saveable stores, by name."""
    if getattr(type(saveable), "save_own_variables", None) is _OPTIMIZERS_OWN:
        # Keras would copy all of them at once. The variables themselves need no copy, and
        # say which is the same tensor as that of an optimizer inside (loss scaling).
        return {str(index): variable for index, variable in enumerate(saveable.variables)}
    stored: dict[str, Any] = {}
    saveable.save_own_variables(stored)
    return stored


def find_stored(visits: Iterable[Visit]) -> Iterator[tuple[Place, Any]]:
    """Yields the variables that layers store as they are, each with its place in a file."""
    for inner_path, layer in layers_of(visits):
        attributes = {id(v): name for name, v in reversed(named_variables(layer).items())}
        for key, value in _own_variables(layer).items():
            if isinstance(value, keras.Variable) and id(value) in attributes:
                path = f"{inner_path}/vars/{key}".lstrip("/")
                yield Place(inner_path, attributes[id(value)], path), value


def shapes_to_store(saveable: Any) -> list[tuple[int, ...]]:
    """Lists the shapes of what a saveable stores."""
    return [tuple(value.shape) for value in _own_variables(saveable).values()]


def listed_only(attribute: str) -> bool:
    """Whether a variable is in a layer's list and in no attribute of it."""
    return attribute.split("/")[0] in TRACKED


def _optimizer_places(
    visits: list[Visit], everything: list[Visit]
) -> dict[str, tuple[Place, ...] | None]:
    found_places = find_places(everything)
    places = {id(v): place for place, (_, v) in reversed(found_places.items())}
    found: dict[str, tuple[Place, ...] | None] = {}
    stale = set()
    for inner_path, optimizer in renewal.find_optimizers(visits).items():
        trained = renewal.optimizer_variables(optimizer)
        stale.update(v.path for v in trained or () if id(v) not in places)
        known = tuple(places[id(v)] for v in trained or () if id(v) in places)
        found[inner_path] = None if trained is None else known
    if stale:
        raise SaveError(
            f"Cannot save the optimizer state of {listed(stale)}: no layer holds these variables.\n"
            "Expected: an optimizer built for the model's variables. Received: one built for "
            "variables that were replaced since.\n"
            "Compile the model again after replacing variables, or use `tiedio.tie`."
        )
    return found


def _tensor(value: Any) -> hdf5_writer.Tensor:
    """Describes a variable, to be copied from its device when it is written, or an array."""
    if isinstance(value, keras.Variable):
        shape = tuple(int(size) for size in value.shape)
        order = axis_order(value)
        return hdf5_writer.Tensor(
            shape, np.dtype(value.dtype), lambda: _to_numpy(value), order, value
        )
    array = _to_numpy(value)
    return hdf5_writer.Tensor(array.shape, array.dtype, lambda: array)


def _to_numpy(value: Any) -> np.ndarray:
    """Returns values as an array: the memory of the variable itself where it can be seen."""
    if isinstance(value, keras.Variable):
        tensor: Any = keras.ops.stop_gradient(value)
        # torch and JAX show it in the first way, TensorFlow in the second.
        for view in (np.from_dlpack, memoryview):
            try:
                return np.asarray(view(tensor))
            except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
                continue  # on another device, or bfloat16
    return np.asarray(keras.ops.convert_to_numpy(value))
