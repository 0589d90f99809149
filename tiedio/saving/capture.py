"""Move the state of every saveable of a model out to a layout and a record.

`Loading.read` mirrors it: variables and assets of each saveable in the order of the walk, then
what Keras itself does not store.
"""

import collections
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tiedio.errors import SaveError, listed
from tiedio.formats import hdf5_writer
from tiedio.model import renewal
from tiedio.model.keras_internals import TRACKED, axis_order
from tiedio.model.walk import Visit, Walk, own_state
from tiedio.record.record import RandomState, Record
from tiedio.record.ties import Place, TieGroup


def capture(
    walk: Walk, assets: Path | None, everything: Walk | None = None
) -> tuple[hdf5_writer.Layout, Record]:
    """Lays out the state of every saveable, each shared tensor once.

    Args:
        walk: The saveables.
        assets: Folder for their assets, if these are saved.
        everything: All saveables of the model, if some are not to be saved: an optimizer may
            have been built for variables of theirs.

    Raises:
        SaveError: If an optimizer was built for variables that no layer holds any more.
    """
    found = _Capture(walk, assets)
    for visit in walk.visits:
        found.add(visit)
    found.link_layers(walk.shared_layers)
    # Before Keras 3.12, what is in a list in a list is stored where its holder shows it.
    found.link_layers(
        [(v.inner_path, *v.views) for v in walk.visits if "/container" in v.inner_path]
    )
    found.add_exact_values()
    return found.layout, found.record(_optimizer_places(walk, everything or walk))


class _Capture:
    """A layout and a record in the making.

    Attributes:
        layout: The tensors, and the links to them.
    """

    def __init__(self, walk: Walk, assets: Path | None):
        self.layout = hdf5_writer.Layout()
        self._walk = walk
        self._assets = assets
        self._path_of: dict[int, str] = {}  # of each variable, the first dataset_path
        self._stored: dict[tuple[str, int], str] = {}  # dataset_paths by inner_path and variable
        self._exact_values: list[Place] = []

    def add(self, visit: Visit) -> None:
        """Adds what one saveable stores, and its assets."""
        name = getattr(visit.saveable, "name", None)
        group = f"{visit.inner_path}/vars".lstrip("/")
        if hasattr(visit.saveable, "save_own_variables"):
            stored = own_state(visit.saveable)
            if isinstance(name, str) or stored:
                self.layout.groups[group] = {"name": name} if isinstance(name, str) else {}
            for key, value in stored.items():
                self._add_value(f"{group}/{key}", visit.inner_path, value)
        if self._assets and hasattr(visit.saveable, "save_assets"):
            (self._assets / visit.inner_path).mkdir(parents=True, exist_ok=True)
            visit.saveable.save_assets(str(self._assets / visit.inner_path))

    def _add_value(self, path: str, inner_path: str, value: Any) -> None:
        if isinstance(value, keras.Variable):
            self._stored.setdefault((inner_path, id(value)), path)
            first = self._path_of.setdefault(id(value), path)
            if first != path:
                self.layout.links[path] = first
                return
        self.layout.tensors[path] = _tensor(value)

    def link_layers(self, shared_layers: Sequence[Sequence[str]]) -> None:
        """Gives Keras, which builds a shared layer once for each path, the state of each."""
        for first, *others in shared_layers:
            for inner_path in others:
                if not inner_path.startswith(f"{first}/".lstrip("/")):
                    self.layout.links[inner_path] = first
                    if self._assets and (self._assets / first).exists():
                        copy = self._assets / inner_path
                        shutil.copytree(self._assets / first, copy, dirs_exist_ok=True)

    def add_exact_values(self) -> None:
        """Adds the variables of which their layer stores another value, or none."""
        for inner_path, named in self._walk.named.items():
            unstored = [
                name for name, v in named.items() if (inner_path, id(v)) not in self._stored
            ]
            lists_unstored = any(map(listed_only, unstored))
            for attribute, variable in named.items():
                if not (attribute in unstored or listed_only(attribute) or lists_unstored):
                    continue
                # A tensor beside `vars`, where Keras does not look.
                path = f"{inner_path}/exact/{len(self._exact_values)}".lstrip("/")
                first = self._path_of.setdefault(id(variable), path)
                if first == path:
                    self.layout.tensors[path] = _tensor(variable)
                self._stored.setdefault((inner_path, id(variable)), first)
                self._exact_values.append(Place(inner_path, attribute, first))

    def record(self, optimizer_variables: dict[str, tuple[Place, ...] | None]) -> Record:
        """Returns the record; `optimizer_variables` is the part of it that is known already."""
        stored = dict(self.layout.tensors)
        for path, first in self.layout.links.items():
            if first in self.layout.tensors:
                stored[path] = self.layout.tensors[first]
        return Record(
            tie_groups=tuple(map(self._stored_group, self._walk.ties)),
            layers=self._walk.layer_states,
            shared_layers=self._walk.shared_layers,
            exact_values=tuple(self._exact_values),
            optimizer_variables=optimizer_variables,
            random_states=_random_states(self._walk),
            axis_orders={path: t.axis_order for path, t in stored.items() if t.axis_order},
        )

    def _stored_group(self, group: TieGroup) -> TieGroup:
        variable = self._walk.places[group.owner].item
        stored = (self._stored.get((place.inner_path, id(variable))) for place in group.places)
        return group.at(list(map(Place.stored_at, group.places, stored)))


def _random_states(walk: Walk) -> tuple[RandomState, ...]:
    places = collections.defaultdict(list)
    for place, held in walk.generators.items():
        places[id(held.item)].append(place)
    return tuple(
        RandomState(
            tuple(held),
            tuple(int(word) for word in _to_numpy(walk.generators[held[0]].item.state)),
        )
        for held in places.values()
    )


def _optimizer_places(walk: Walk, everything: Walk) -> dict[str, tuple[Place, ...] | None]:
    """Maps each optimizer to the places of the variables that it was built for."""
    places = everything.places_of
    found: dict[str, tuple[Place, ...] | None] = {}
    stale = set()
    for inner_path, optimizer in walk.optimizers.items():
        trained = renewal.optimizer_variables(optimizer)
        stale.update(v.path for v in trained or () if id(v) not in places)
        known = tuple(places[id(v)][0] for v in trained or () if id(v) in places)
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
        return hdf5_writer.Tensor(
            shape=tuple(int(size) for size in value.shape),
            dtype=np.dtype(value.dtype),
            read=lambda: _to_numpy(value),
            axis_order=axis_order(value),
            source=value,
        )
    return hdf5_writer.Tensor.of(_to_numpy(value))


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


def listed_only(attribute: str) -> bool:
    """Whether a variable is in a layer's list and in no attribute of it."""
    return attribute.split("/")[0] in TRACKED
