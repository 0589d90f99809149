"""Move the state of every saveable of a model out to a layout and a record.

`Loading.read` mirrors it: variables and assets of each saveable in the order of the walk, then
what Keras itself does not store.
"""

import collections
import dataclasses
import datetime
import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np

from tiedio.errors import SaveError, TiedioError, listed
from tiedio.formats import hdf5_writer
from tiedio.formats.device_memory import DeviceMemory
from tiedio.model import process_random, weight_decay
from tiedio.model.keras_internals import TRACKED, axis_order
from tiedio.model.own_state import is_at_hand, loads_as_keras, own_state, to_numpy
from tiedio.model.places import attribute_of, named_variables, own_variables
from tiedio.model.rebuilding import optimizer_variables
from tiedio.model.views import TransposedView
from tiedio.model.visits import Visit
from tiedio.model.walk import Walk, created_by
from tiedio.record.record import RandomState, Record
from tiedio.record.ties import Place, TieGroup
from tiedio.saving.deferral import Deferral, unnoticed

_log = logging.getLogger(__name__)

E = TypeVar("E", bound=TiedioError)
GroupT = TypeVar("GroupT", bound=TieGroup)


def capture(
    walk: Walk,
    assets: Path | None,
    everything: Walk | None = None,
    *,
    strict: bool = True,
    stock_readable: bool = True,
    by_orbax: bool = False,
) -> tuple[hdf5_writer.Layout, Record, list[str]]:
    """Lays out the state of every saveable, each shared tensor once.

    Args:
        walk: The saveables.
        assets: Folder for their assets, if these are saved.
        everything: All saveables of the model, if some are not to be saved: an optimizer may
            have been built for variables of theirs.
        strict: Whether to raise where something would be lost, if that is known beforehand.
        stock_readable: Whether what is shown transposed is stored so, for Keras to read.
        by_orbax: Whether Orbax stores the values, of which this process need not have all.

    Returns:
        The layout, the record, and warnings of what is left out.

    Raises:
        SaveError: If something would be lost: all is named.
    """
    everything = everything or walk
    if not by_orbax:
        _check_at_hand(everything)
    _check_paths(everything)
    unreached = unreached_error(everything, SaveError, "save")
    if strict and unreached:
        raise unreached.or_pass("strict=False")
    found = _Capture(walk, assets, stock_readable)
    left_out = _find_unsaved(walk, everything, strict)
    state_left_out = tuple(f"{path}/" for path in left_out)
    for visit in walk.visits:
        if not f"{visit.inner_path}/".startswith(state_left_out):
            found.add(visit)
    found.check_loadable()
    found.link_layers(walk.shared_layers)
    # Before Keras 3.12, what is in a list in a list is stored where its holder shows it.
    found.link_layers(
        [(v.inner_path, *v.views) for v in walk.visits if "/container" in v.inner_path]
    )
    found.add_exact_values()
    record = dataclasses.replace(
        found.record(_optimizer_places(walk, everything, left_out)),
        excluded_from_weight_decay=_excluded_places(walk, everything),
    )
    warnings = [str(unreached)] if unreached else []
    if left_out:
        warnings.append(
            f"The state of {listed(map(walk.label, left_out))} is not saved: it trained "
            f"{listed({path for paths in left_out.values() for path in paths})}, "
            "which the model does not hold. After loading it starts anew."
        )
    return found.layout, record, warnings


class _Capture:
    """A layout and a record in the making.

    Attributes:
        layout: The tensors, and the links to them.
    """

    def __init__(self, walk: Walk, assets: Path | None, stock_readable: bool):
        self.layout = hdf5_writer.Layout()
        self._walk = walk
        self._assets = assets
        self._stock_readable = stock_readable
        self._path_of: dict[int, str] = {}  # of each variable, the first dataset_path
        self._stored: dict[tuple[str, int], str] = {}  # dataset_paths by inner_path and variable
        self._exact_values: list[Place] = []
        self._reordered: set[str] = set()  # inner_paths of what is not stored in its own order
        self._unloadable: list[str] = []

    def add(self, visit: Visit) -> None:
        """Adds what one saveable stores, and its assets."""
        name = getattr(visit.saveable, "name", None)
        group = f"{visit.inner_path}/vars".lstrip("/")
        if hasattr(visit.saveable, "save_own_variables"):
            stored = self._as_built(visit) or own_state(visit.saveable)
            if _is_too_much(visit.saveable, stored):
                self._unloadable.append(self._walk.label(visit.inner_path))
            if isinstance(name, str) or stored:
                self.layout.groups[group] = {"name": name} if isinstance(name, str) else {}
            for key, value in stored.items():
                self._add_value(f"{group}/{key}", visit.inner_path, value)
        if self._assets and hasattr(visit.saveable, "save_assets"):
            (self._assets / visit.inner_path).mkdir(parents=True, exist_ok=True)
            visit.saveable.save_assets(str(self._assets / visit.inner_path))

    def _as_built(self, visit: Visit) -> dict[str, Any] | None:
        """Returns what a layer stores by position, as a newly built one would list it.

        One that was given another's variable by hand lists it last. Keras, which knows no
        other order than that of the layer it builds, would read other values.
        """
        layer, named = visit.saveable, self._walk.named.get(visit.inner_path)
        if not named or type(layer).save_own_variables is not keras.Layer.save_own_variables:
            return None
        held = list(map(id, own_variables(layer)))
        is_as_set = held == list(map(id, named.values()))
        # Layers set their attributes in the order of their lists: few are built to see.
        if is_as_set and all(created_by(layer, variable) for variable in named.values()):
            return None
        order = _built_order(layer)
        kept = {attribute for attribute in named if not listed_only(attribute)}
        if kept != set(order) or [id(named[attribute]) for attribute in order] == held:
            return None
        self._reordered.add(visit.inner_path)
        return {str(number): named[attribute] for number, attribute in enumerate(order)}

    def check_loadable(self) -> None:
        """Refuses what Keras' code stores, and cannot read."""
        if self._unloadable:
            raise SaveError(
                f"Cannot save {listed(self._unloadable)}: what is stored for a variable of Keras' "
                "own is none.\n"
                "Expected: the variables of the layer. Received: values that a property computes.\n"
                "Give the class a `save_own_variables` and a `load_own_variables` of its own."
            )

    def _add_value(self, path: str, inner_path: str, value: Any) -> None:
        if isinstance(value, TransposedView) and not self._stock_readable:
            return
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
        # What another layer may assign to what it shows, as one with LoRA does.
        shown = {tie.owner.inner_path for tie in self._walk.transposed_ties}
        for inner_path, held_here in self._walk.named.items():
            # What is shown is another variable's value; the rest is then read by the record.
            named = {k: v for k, v in held_here.items() if not isinstance(v, TransposedView)}
            unstored = [
                name for name, v in named.items() if (inner_path, id(v)) not in self._stored
            ]
            own = {id(variable) for variable in own_variables(self._walk.layers[inner_path])}
            all_of_them = (
                inner_path in self._reordered
                or inner_path in shown
                or len(named) < len(held_here)
                or any(map(listed_only, unstored))
                # Layers of Keras refuse to read more than they list.
                or any(id(v) not in own for name, v in named.items() if name not in unstored)
            )
            for attribute, variable in named.items():
                if not (all_of_them or attribute in unstored or listed_only(attribute)):
                    continue
                # A tensor beside `vars`, where Keras does not look.
                path = f"{inner_path}/exact/{len(self._exact_values)}".lstrip("/")
                first = self._path_of.setdefault(id(variable), path)
                if first == path:
                    self.layout.tensors[path] = _tensor(variable)
                self._stored.setdefault((inner_path, id(variable)), first)
                self._exact_values.append(Place(inner_path, attribute, first))
        for place, held in self._walk.raw.items():
            path = f"{place.inner_path}/exact/{len(self._exact_values)}".lstrip("/")
            self.layout.tensors[path] = _tensor(held.item)
            self._exact_values.append(place.stored_at(path))

    def record(self, optimizer_variables: dict[str, tuple[Place, ...] | None]) -> Record:
        """Returns the record; `optimizer_variables` is the part of it that is known already."""
        stored = dict(self.layout.tensors)
        for path, first in self.layout.links.items():
            if first in self.layout.tensors:
                stored[path] = self.layout.tensors[first]
        return Record(
            models=self._walk.models,
            transposed_ties=tuple(map(self._stored_group, self._walk.transposed_ties)),
            shared_optimizers=self._walk.shared_optimizers,
            tie_groups=tuple(map(self._stored_group, self._walk.ties)),
            layers=self._walk.layer_states,
            shared_layers=self._walk.shared_layers,
            exact_values=tuple(self._exact_values),
            optimizer_variables=optimizer_variables,
            random_states=_random_states(self._walk),
            process_random_states=process_random.states(self._walk),
            axis_orders={path: t.axis_order for path, t in stored.items() if t.axis_order},
        )

    def _stored_group(self, group: GroupT) -> GroupT:
        held = (self._walk.places[place] for place in group.places)
        keys = ((p.inner_path, id(one.item)) for p, one in zip(group.places, held, strict=True))
        return group.at(list(map(Place.stored_at, group.places, map(self._stored.get, keys))))


def _check_at_hand(walk: Walk) -> None:
    """Refuses values of which other processes have a part."""
    elsewhere = [place for place, held in walk.places.items() if not is_at_hand(held.item)]
    if elsewhere:
        raise SaveError(
            f"Cannot save {listed(map(str, elsewhere))} to a file: other processes have a part of "
            "the values.\n"
            "Expected: values that this process has. Received: values laid out over several.\n"
            "Save with `tiedio.TiedOrbaxCheckpoint`, by which each process writes its own part."
        )


def _check_paths(walk: Walk) -> None:
    """Refuses to save a model of which Keras would store one part in the place of another."""
    if walk.colliding:
        names = [name for held in walk.colliding.values() for name in held]
        raise SaveError(
            f"Cannot save {listed(names)}: Keras has one path for several of them.\n"
            f"Expected: a path for each. Received: {listed(walk.colliding)}.\n"
            "Keep them in attributes of their own, or give their classes other names."
        )


def unreached_error(walk: Walk, kind: type[E], act: str) -> E | None:
    """The error for variables that training uses, and that no file can have."""
    if not walk.unreached:
        return None
    return kind(
        f"Cannot {act} {listed(walk.unreached)}: the model uses them, and saving does not reach "
        "them.\n"
        "Expected: their layers in attributes, lists or dicts. Received: in a set, or in an "
        "attribute that Keras does not save.\n"
        "Keep these layers in a list, or in another attribute."
    )


def _is_too_much(saveable: Any, stored: Mapping[str, Any]) -> bool:
    """Whether more is stored by position than Keras' code has variables to read it into."""
    return (
        isinstance(saveable, keras.Layer)
        and loads_as_keras(saveable)
        and len(stored) > len(own_variables(saveable))
        and all(map(str.isdigit, stored))
        and not all(isinstance(value, keras.Variable) for value in stored.values())
    )


def _built_order(layer: keras.Layer) -> list[str]:
    """Lists the attributes of the variables of a layer in the order in which it builds them."""

    def build() -> Any:
        built = type(layer).from_config(layer.get_config())
        built.build_from_config(layer.get_build_config())
        return built

    try:
        with unnoticed():
            built = Deferral().build(build)  # its variables need no values
    except Exception as error:  # the code of layers may raise anything
        _log.debug("stored in its own order: %s cannot be made anew: %s", layer, error)
        return []
    attributes = attribute_of(named_variables(built))
    return [attributes[id(variable)] for variable in own_variables(built)]


def _random_states(walk: Walk) -> tuple[RandomState, ...]:
    places = collections.defaultdict(list)
    for place, held in walk.generators.items():
        places[id(held.item)].append(place)
    return tuple(
        RandomState(
            tuple(held),
            tuple(int(word) for word in to_numpy(walk.generators[held[0]].item.state)),
        )
        for held in places.values()
    )


def _find_unsaved(walk: Walk, everything: Walk, strict: bool) -> dict[str, list[str]]:
    """Finds the optimizers of which nothing is saved, as some slots would have no place.

    Those of a model that lost layers since, as by `Sequential.pop`, or that Keras quantized; unless
    strict, also those of one whose variables were replaced.

    Returns:
        The paths of these variables, by the inner_path of the optimizer.
    """
    found = {}
    for inner_path, optimizer in walk.optimizers.items():
        gone = _without_place(optimizer, everything)
        replaced = any(_was_replaced(variable, everything) for variable in gone)
        if gone and not (strict and replaced):
            found[inner_path] = [variable.path for variable in gone]
    return found


def _was_replaced(variable: Any, everything: Walk) -> bool:
    """Whether the layer that created a variable is there, and gave it up unless to be quantized."""
    creators = [layer for layer in everything.layers.values() if created_by(layer, variable)]
    return bool(creators) and not any(
        getattr(layer, "quantization_mode", None) for layer in creators
    )


def _without_place(optimizer: Any, everything: Walk) -> list[Any]:
    trained = optimizer_variables(optimizer) or ()
    return [variable for variable in trained if id(variable) not in everything.places_of]


def _optimizer_places(
    walk: Walk, everything: Walk, left_out: Collection[str]
) -> dict[str, tuple[Place, ...] | None]:
    """Maps each optimizer to the places of the variables that it was built for."""
    places = everything.places_of
    found: dict[str, tuple[Place, ...] | None] = {}
    stale = set()
    for inner_path, optimizer in walk.optimizers.items():
        trained = None if inner_path in left_out else optimizer_variables(optimizer)
        if trained:
            stale.update(v.path for v in _without_place(optimizer, everything))
        known = tuple(places[id(v)][0] for v in trained or () if id(v) in places)
        found[inner_path] = None if trained is None else known
    if stale:
        raise SaveError(
            f"Cannot save the optimizer state of {listed(stale)}: no layer holds these variables.\n"
            "Expected: an optimizer built for the model's variables. Received: one built for "
            "variables that were replaced since.\n"
            "Compile the model again after replacing variables, use `tiedio.tie`."
        ).or_pass("strict=False")
    return found


def _excluded_places(walk: Walk, everything: Walk) -> dict[str, tuple[Place, ...]]:
    """Maps each optimizer to the places that it leaves out of its weight decay, if it does."""
    variables = [everything.places[held[0]].item for held in everything.places_of.values()]
    return {
        visit.inner_path: tuple(everything.places_of[id(v)][0] for v in excluded)
        for visit in walk.optimizer_parts
        if isinstance(visit.saveable, keras.optimizers.Optimizer)
        and (excluded := weight_decay.excluded_among(visit.saveable, variables))
    }


def _tensor(value: Any) -> hdf5_writer.Tensor:
    """Describes a variable, to be copied from its device when it is written, or an array."""
    if isinstance(value, keras.Variable):
        return hdf5_writer.Tensor(
            shape=tuple(int(size) for size in value.shape),
            dtype=np.dtype(value.dtype),
            read=lambda: to_numpy(value),
            axis_order=axis_order(value),
            source=value,
            show=lambda nbytes: DeviceMemory.of(keras.ops.stop_gradient(value), nbytes),
        )
    return hdf5_writer.Tensor.of(to_numpy(value))


def listed_only(attribute: str) -> bool:
    """Whether a variable is in a layer's list and in no attribute of it."""
    return attribute.split("/")[0] in TRACKED


def metadata() -> dict[str, Any]:
    """Says when, and by which Keras, a file is saved."""
    return {
        "keras_version": keras.__version__,
        "date_saved": datetime.datetime.now().strftime("%Y-%m-%d@%H:%M:%S"),
    }
