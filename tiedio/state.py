"""Move the state of every saveable of a model out to a layout, and back in.

`capture` and `Restoration` mirror each other: variables and assets of each saveable
in the order of the walk, then what Keras itself does not store.
"""

import collections
import contextlib
import dataclasses
import math
import shutil
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tiedio import hdf5, models, variables
from tiedio.deferral import Deferral
from tiedio.errors import (
    FileFormatError,
    LoadError,
    SaveError,
    TiedioError,
    TiedioWarning,
    first_line,
    listed,
)
from tiedio.ties import Place, RandomState, Record
from tiedio.weights_file import Store, WeightsFile, damaged

# How optimizers store their variables, unless a class of its own does otherwise.
_OPTIMIZERS_OWN = keras.optimizers.Optimizer.save_own_variables

# Bytes that any tensor may have, however small the model's are.
_ROOM = 1 << 20


def capture(
    visits: list[variables.Visit],
    assets: Path | None,
    everything: list[variables.Visit] | None = None,
) -> tuple[hdf5.Layout, Record]:
    """Lays out the state of every saveable, each shared tensor once.

    Args:
        visits: The saveables.
        assets: Folder for their assets, if these are saved.
        everything: All saveables of the model, if some are not to be saved: an optimizer may
            have been built for variables of theirs.
    """
    layout = hdf5.Layout()
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
    shared_layers = variables.find_shared_layers(visits)
    _link_layers(shared_layers, layout, assets)
    nested = [(v.inner_path, *v.views) for v in visits if "/container" in v.inner_path]
    _link_layers(nested, layout, assets)  # for older versions of Keras
    exact_values = []
    for inner_path, layer in variables.layers_of(visits):
        named = variables.named_variables(layer)
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
    for group, variable in variables.find_shared(visits):
        owner, *aliases = (stored_at(place, variable) for place in group.places)
        groups.append(dataclasses.replace(group, owner=owner, aliases=tuple(aliases)))
    stored = layout.tensors | {
        path: layout.tensors[first]
        for path, first in layout.links.items()
        if first in layout.tensors
    }
    return layout, Record(
        tie_groups=tuple(groups),
        layers=variables.find_layers(visits),
        shared_layers=shared_layers,
        exact_values=tuple(exact_values),
        optimizer_variables=_optimizer_places(visits, everything or visits),
        random_states=_random_states(visits),
        axis_orders={path: t.axis_order for path, t in stored.items() if t.axis_order},
    )


def _link_layers(
    shared_layers: Iterable[Sequence[str]], layout: hdf5.Layout, assets: Path | None
) -> None:
    """Gives Keras, which builds a shared layer once for each path, the state of each."""
    for first, *others in shared_layers:
        for inner_path in others:
            if not inner_path.startswith(f"{first}/".lstrip("/")):
                layout.links[inner_path] = first
                if assets and (assets / first).exists():
                    shutil.copytree(assets / first, assets / inner_path, dirs_exist_ok=True)


def _random_states(visits: list[variables.Visit]) -> tuple[RandomState, ...]:
    held = collections.defaultdict(list)
    for place, (_, generator) in variables.find_generators(visits).items():
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


def find_stored(visits: Iterable[variables.Visit]) -> Iterator[tuple[Place, Any]]:
    """Yields the variables that layers store as they are, each with its place in a file."""
    for inner_path, layer in variables.layers_of(visits):
        attributes = {id(v): name for name, v in reversed(variables.named_variables(layer).items())}
        for key, value in _own_variables(layer).items():
            if isinstance(value, keras.Variable) and id(value) in attributes:
                path = f"{inner_path}/vars/{key}".lstrip("/")
                yield Place(inner_path, attributes[id(value)], path), value


def shapes_to_store(saveable: Any) -> list[tuple[int, ...]]:
    """Lists the shapes of what a saveable stores."""
    return [tuple(value.shape) for value in _own_variables(saveable).values()]


class Restoration:
    """Reads the state of saveables into place, and remembers what failed.

    Args:
        weights: The file.
        assets: Folder with the assets, which need not exist; `None` to leave them as they are.
        record: The record of the file, if it has one.
        deferral: The variables that have no value yet.
    """

    def __init__(
        self, weights: WeightsFile, assets: Path | None, record: Record | None, deferral: Deferral
    ):
        self._weights = weights
        self._assets = assets
        self._record = record
        self._deferral = deferral
        self._read_by_record = read_by_record(record)
        self._failed: dict[str, Exception] = {}
        self._unreadable: FileFormatError | None = None
        self._unresumed: list[LoadError] = []

    def read(self, visits: Sequence[variables.Visit]) -> None:
        """Reads the state of these saveables; all of their variables have values then."""
        for visit in visits:
            with self._noting(visit.inner_path or "the model"):
                self._read_one(visit)
        self._deferral.finish()
        places = variables.find_places(visits)
        incomplete = find_incomplete(self._record, places)
        stored = {place for place, _ in find_stored(visits) if place.inner_path in incomplete}
        for place in self._record.exact_values if self._record else ():
            if place in places and place.dataset_path and place not in stored:
                with self._noting(str(place)):
                    places[place][1].assign(self._weights.read(place.dataset_path))
        generators = variables.find_generators(visits)
        for random_state in self._record.random_states if self._record else ():
            place = random_state.places[0]
            if place in generators:
                with self._noting(str(place)):
                    generators[place][1].state.assign(np.array(random_state.state))

    def _read_one(self, visit: variables.Visit) -> None:
        if hasattr(visit.saveable, "load_own_variables"):
            store = self._weights.store(visit.inner_path)
            begun = self._record.optimizer_variables if self._record else {}
            if begun.get(visit.inner_path, ()) is None and not len(store):
                return  # an optimizer that starts anew
            error = self._record and slots_error(visit.inner_path, visit.saveable, store)
            if error:
                self._unresumed.append(error)
            elif visit.inner_path not in self._read_by_record:
                self._deferral.load(visit.saveable, store)
        if hasattr(visit.saveable, "load_assets") and self._assets and self._assets.exists():
            folder = self._assets / visit.inner_path
            visit.saveable.load_assets(str(folder) if folder.exists() else None)

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileFormatError as error:
            # A damaged tensor: there may be more.
            self._unreadable = self._unreadable or error
        except TiedioError:
            raise
        except Exception as error:  # the code of layers may raise anything
            self._failed[name] = error

    def finish(self, strict: bool) -> None:
        """Raises what failed.

        Raises:
            FileFormatError: If tensors are damaged; all are named.
            LoadError: If something could not be read.
        """
        if self._weights.damaged or self._unreadable:
            names = self._weights.find_damaged()
            if self._unreadable and len(names) < 2:
                raise self._unreadable
            raise damaged(self._weights.filepath, names, "others") from self._unreadable
        if self._failed:
            first, cause = next(iter(self._failed.items()))
            error = LoadError(
                f"Cannot load the state of {listed(self._failed)}.\n"
                f"Received, for `{first}`: {first_line(cause)}\n"
                "Load the file with the same classes, in the version it was saved with."
            )
            error.__cause__ = cause
            self._unresumed.insert(0, error)
        for error in self._unresumed:
            report(error, strict)


def listed_only(attribute: str) -> bool:
    """Whether a variable is in a layer's list and in no attribute of it."""
    return attribute.split("/")[0] in variables.TRACKED


def read_by_record(record: Record | None) -> set[str]:
    """Finds the layers that list what they did not store: some would miss it when reading."""
    return {
        place.inner_path
        for place in (record.exact_values if record else ())
        if listed_only(place.attribute)
        and not str(place.dataset_path).startswith(f"{place.inner_path}/vars/".lstrip("/"))
    }


def nothing_stored(
    visits: Iterable[variables.Visit], record: Record | None, weights: WeightsFile
) -> LoadError | None:
    """The error for what has variables, and nothing in the file."""
    by_record = read_by_record(record)
    lacking = {
        visit.inner_path or "the model": f"{count} variables, received 0 variables"
        for visit in visits
        if visit.inner_path not in by_record
        and not len(weights.store(visit.inner_path))
        and hasattr(visit.saveable, "save_own_variables")
        and (count := len(shapes_to_store(visit.saveable)))
    }
    return unloadable(lacking, f"`{weights.filepath}` has none for them")


def unloadable(expected: Mapping[str, str], why: str) -> LoadError | None:
    """The error for layers of which something else is expected than the file has, if any are."""
    if not expected:
        return None
    told = "; ".join(f"`{name}`: expected {expected[name]}" for name in sorted(expected))
    return LoadError(
        f"Cannot load the weights of {listed(expected)}: {why}.\n"
        f"Received: {told}.\n"
        "Build the model as it was when saved, or pass `skip_mismatch=True`."
    )


def find_incomplete(record: Record | None, places: Container[Place]) -> set[str]:
    """Finds the layers that lack some exact value: what they stored themselves holds them all.

    So a kernel into which LoRA was merged, in a model without LoRA.
    """
    exact_values = record.exact_values if record else ()
    return {p.inner_path for p in exact_values if p not in places} - read_by_record(record)


def slots_error(inner_path: str, saveable: Any, store: Store) -> LoadError | None:
    """Compares what an optimizer holds with what is stored, before any of it is changed."""
    if not isinstance(saveable, keras.optimizers.Optimizer):
        return None
    expected = [tuple(variable.shape) for variable in saveable.variables]
    received = store.shapes()
    if received == expected:
        return None
    return LoadError(
        f"Cannot resume `{inner_path}`: its variables are not those of the file.\n"
        f"Expected: {len(expected)} of shapes {sorted(set(expected))}. "
        f"Received: {len(received)} of shapes {sorted(set(received))}.\n"
        "Load the file in the version it was saved with, or pass `strict=False`."
    )


def _optimizer_places(
    visits: list[variables.Visit], everything: list[variables.Visit]
) -> dict[str, tuple[Place, ...] | None]:
    found_places = variables.find_places(everything)
    places = {id(v): place for place, (_, v) in reversed(found_places.items())}
    found: dict[str, tuple[Place, ...] | None] = {}
    stale = set()
    for inner_path, optimizer in models.find_optimizers(visits).items():
        trained = models.optimizer_variables(optimizer)
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


def _tensor(value: Any) -> hdf5.Tensor:
    """Describes a variable, to be copied from its device when it is written, or an array."""
    if isinstance(value, keras.Variable):
        shape = tuple(int(size) for size in value.shape)
        order = variables.axis_order(value)
        return hdf5.Tensor(shape, np.dtype(value.dtype), lambda: _to_numpy(value), order, value)
    array = _to_numpy(value)
    return hdf5.Tensor(array.shape, array.dtype, lambda: array)


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


def make_room(weights: WeightsFile, model: keras.Model) -> None:
    """Lets a tensor declare as many bytes as the largest of the model has."""
    largest = max((math.prod(variable.shape) for variable in model.variables), default=0)
    weights.room = _ROOM + 8 * largest


def report(error: Exception | None, strict: bool) -> None:
    """Raises, or with `strict=False` warns, that something cannot be restored."""
    if error and strict:
        raise error
    if error:
        warnings.warn(str(error), TiedioWarning, stacklevel=4)
