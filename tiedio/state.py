"""Move the state of every saveable of a model out to a layout, and back in.

`capture` and `restore` mirror each other: variables and assets of each saveable
in the order of the walk, then what Keras itself does not store.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tiedio import hdf5, models, variables
from tiedio.errors import LoadError, SaveError, TiedioError, TiedioWarning, listed
from tiedio.ties import Place, Record, TieGroup


def capture(visits: list[variables.Visit], assets: Path) -> tuple[hdf5.Layout, Record]:
    """Lays out the state of every saveable, each shared tensor once."""
    layout = hdf5.Layout()
    datasets: dict[tuple[str, int], str] = {}  # by inner_path and variable
    opaque = set()  # inner_paths of layers that store other things than variables
    for visit in visits:
        name = getattr(visit.saveable, "name", None)
        group = f"{visit.inner_path}/vars".lstrip("/")
        if hasattr(visit.saveable, "save_own_variables"):
            stored: dict[str, Any] = {}
            visit.saveable.save_own_variables(stored)
            if isinstance(name, str) or stored:
                layout.groups[group] = {"name": name} if isinstance(name, str) else {}
            for key, value in stored.items():
                layout.tensors[f"{group}/{key}"] = _tensor(value)
                if isinstance(value, keras.Variable):
                    datasets[visit.inner_path, id(value)] = f"{group}/{key}"
                else:
                    opaque.add(visit.inner_path)
        if hasattr(visit.saveable, "save_assets"):
            (assets / visit.inner_path).mkdir(parents=True, exist_ok=True)
            visit.saveable.save_assets(str(assets / visit.inner_path))

    def stored_at(place: Place, variable: Any) -> Place:
        return Place(
            place.inner_path, place.attribute, datasets.get((place.inner_path, id(variable)))
        )

    groups = []
    for group, variable in variables.find_shared(visits):
        owner, *aliases = (stored_at(place, variable) for place in group.places)
        groups.append(TieGroup(owner, tuple(aliases), group.shape, group.dtype, group.trainable))
    _check_representable(groups, opaque)
    for group in groups:
        for path in group.dataset_paths[1:]:
            del layout.tensors[path]
            layout.links[path] = group.dataset_paths[0]
    random_state = {
        place: tuple(int(word) for word in _to_numpy(state))
        for place, state in variables.find_random_states(visits).items()
    }
    order = variables.variable_order(visits, groups)
    return layout, Record(tuple(groups), order, _optimizer_places(visits), random_state)


def restore(
    visits: list[variables.Visit],
    weights: hdf5.WeightsFile,
    assets: Path,
    record: Record | None,
    strict: bool,
) -> None:
    """Reads the state of every saveable into place."""
    failed: dict[str, Exception] = {}
    for visit in visits:
        try:
            if hasattr(visit.saveable, "load_own_variables"):
                store = weights.store(visit.inner_path)
                if record and isinstance(visit.saveable, keras.optimizers.Optimizer):
                    _check_slots(visit, store, strict)
                visit.saveable.load_own_variables(store)
            if hasattr(visit.saveable, "load_assets") and assets.exists():
                folder = assets / visit.inner_path
                visit.saveable.load_assets(str(folder) if folder.exists() else None)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, TiedioError):
                raise
            failed[visit.inner_path or "the model"] = error
    states = variables.find_random_states(visits)
    for place, state in record.random_state.items() if record else ():
        if place in states:
            try:
                states[place].assign(np.array(state))
            except (ValueError, TypeError) as error:
                failed[str(place)] = error
    if failed:
        first, error = next(iter(failed.items()))
        raise LoadError(
            f"Cannot load the state of {listed(failed)}.\n"
            f"Received, for `{first}`: {str(error).splitlines()[0]}\n"
            "Load the file with the same classes, in the version it was saved with."
        ) from error


def _check_representable(groups: list[TieGroup], opaque: set[str]) -> None:
    lossy = {
        str(place)
        for group in groups
        for place in group.places
        if place.dataset_path is None and place.inner_path in opaque
    }
    if lossy:
        raise SaveError(
            f"Cannot save {listed(lossy)}: the layer stores another value than the tied one.\n"
            "Expected: layers that store the variables they share. Received: computed values, "
            "as with LoRA.\n"
            "Untie these layers, or merge what was added to them, before saving."
        )


def _check_slots(visit: variables.Visit, store: Mapping[str, Any], strict: bool) -> None:
    # Keras itself only warns, and goes on with slots of zeros.
    if len(store) != len(visit.saveable.variables):
        report(
            LoadError(
                f"Cannot resume `{visit.inner_path}`: its variables are not those of the file.\n"
                f"Expected: {len(visit.saveable.variables)}. Received: {len(store)}.\n"
                "Load the file in the version it was saved with, or pass `strict=False`."
            ),
            strict,
        )


def _optimizer_places(visits: list[variables.Visit]) -> tuple[Place, ...] | None:
    trained = models.optimizer_variables(visits[0].saveable)
    if trained is None:
        return None
    places = {id(v): place for place, (_, v) in reversed(variables.find_places(visits).items())}
    if stale := {variable.path for variable in trained if id(variable) not in places}:
        raise SaveError(
            f"Cannot save the optimizer state of {listed(stale)}: no layer holds these variables.\n"
            "Expected: an optimizer built for the model's variables. Received: one built for "
            "variables that were replaced since.\n"
            "Compile the model again after replacing variables, or use `tiedio.tie`."
        )
    return tuple(places[id(variable)] for variable in trained)


def _tensor(value: Any) -> hdf5.Tensor:
    """Describes a variable, to be copied from its device when it is written, or an array."""
    if isinstance(value, keras.Variable):
        shape = tuple(int(size) for size in value.shape)
        return hdf5.Tensor(shape, np.dtype(value.dtype), lambda: _to_numpy(value))
    array = _to_numpy(value)
    return hdf5.Tensor(array.shape, array.dtype, lambda: array)


def _to_numpy(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value))


def report(error: Exception | None, strict: bool) -> None:
    """Raises, or with `strict=False` warns, that something cannot be restored."""
    if error and strict:
        raise error
    if error:
        warnings.warn(str(error), TiedioWarning, stacklevel=4)
