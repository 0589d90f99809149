"""Give a freshly built model the sharing, the order and the flags that a record describes.

A class may build fewer ties than were saved, or more: afterwards the places that
held one variable hold one again, and those that held two hold two.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tiedio.errors import FileFormatError, RecordError, listed
from tiedio.formats.hdf5_reader import WeightsFile, damaged
from tiedio.model import renewal, tie_memory
from tiedio.model.keras_internals import TRACKED
from tiedio.model.places import (
    find_generators,
    find_layers,
    find_places,
    find_shared,
    named_variables,
)
from tiedio.model.substitution import (
    Substitution,
    adopt,
    copy_of,
    facts_of,
    may_adopt,
    restore_layer,
    substitute,
    substitute_layer,
    variable_of,
)
from tiedio.model.walk import Visit, layers_of, walk
from tiedio.record.record import Record
from tiedio.record.ties import Place
from tiedio.saving.deferral import Deferral

Problems = dict[str, str]

_UNKNOWN = "not in the file"


def retie(
    saveables: Callable[[], Sequence[Visit]],
    record: Record,
    weights: WeightsFile,
    deferral: Deferral,
    in_use: bool = False,
) -> RecordError | None:
    """Restores what layers of a model have in common.

    Args:
        saveables: Lists those of the model that are not left as they are.
        record: What to restore.
        weights: The file.
        deferral: The variables of the model that have no value yet.
        in_use: Whether it may be compiled, or its layers be those of other models; not so if
            it was just built.

    Returns:
        An error that names all that does not fit the model, and was left as it is.
    """
    problems: Problems = {}
    visits = saveables()
    replaced_layers = _share_layers(visits, record.shared_layers, weights, problems)
    if replaced_layers:
        visits = saveables()
    problems.update(find_problems(visits, record))
    _share_generators(visits, record)
    for one in _separations(visits, record):
        substitute(one.layer, one.old, one.new)
    _adopt_missing(visits, record)
    substitutions = _plan(visits, record, problems)
    using = [visit.saveable for visit in visits if isinstance(visit.saveable, keras.Model)]
    if in_use and substitutions:
        using = renewal.models_with((one.layer for one in substitutions), renewal.live_layers())
    resumed = [
        visit.saveable
        for visit in visits
        if f"{visit.inner_path}/optimizer".lstrip("/") in record.optimizer_variables
    ]
    renewal.apply(substitutions, using, resumed)
    _restore_layers(visits, record, weights, problems)
    places = find_places(visits)
    for group in record.tie_groups:
        known = [place for place in group.places if place in places]
        if known:
            tie_memory.remember((places[place][0], place.attribute) for place in known)
    held = {id(variable) for _, variable in places.values()}
    replaced = [variable for layer in replaced_layers for variable in layer.variables]
    replaced += [one.old for one in substitutions]
    deferral.forget(variable for variable in replaced if id(variable) not in held)
    return error_of(problems)


def error_of(problems: Problems) -> RecordError | None:
    """The error for what does not fit a model, if there is anything."""
    if not problems:
        return None
    return RecordError(
        f"Cannot restore {listed(problems)}: the model is not the one that was saved.\n"
        f"Received: {'; '.join(f'`{name}`: {problems[name]}' for name in sorted(problems))}.\n"
        "Load the file with the same classes, in the version it was saved with, or pass "
        "`strict=False`."
    )


def find_problems(visits: Sequence[Visit], record: Record) -> Problems:
    """Compares a model with what a record says of it; nothing is changed."""
    problems: Problems = {}
    _check_layers(visits, record, problems)
    _check_generators(visits, record, problems)
    _plan(visits, record, problems)
    layers = dict(layers_of(visits))
    for group in record.tie_groups:
        for alias in group.aliases:
            layer = layers.get(alias.inner_path)
            if layer is not None and may_adopt(layer, alias.attribute):
                problems.pop(str(alias), None)
    return problems


def _share_layers(
    visits: Sequence[Visit],
    shared_layers: Sequence[Sequence[str]],
    weights: WeightsFile,
    problems: Problems,
) -> list[keras.Layer]:
    """Makes one object of the layers that were one when saved; lists those that were replaced."""
    by_path = {
        path: layer
        for visit in visits
        for path in visit.inner_paths
        if isinstance(layer := visit.saveable, keras.Layer)
    }
    holders = [layer for _, layer in layers_of(visits)]
    replaced: list[keras.Layer] = []
    for first, *others in shared_layers:
        new = by_path.get(first)
        for inner_path in others:
            old = by_path.get(inner_path)
            if new is None or old is None:
                problems[first if new is None else inner_path] = "no such layer"
            elif old is new:
                continue
            elif _kind(old) != _kind(new):
                problems[inner_path] = f"another layer than `{first}`"
            elif _holds(old, new) or _holds(new, old):
                problems[inner_path] = f"inside or around `{first}`"
            elif weights.disagreements(weights.twins(first, inner_path)):
                problems[inner_path] = f"stored with other values than `{first}`"
            else:
                substitute_layer(old, new, holders)
                replaced.append(old)
    return replaced


def _kind(layer: keras.Layer) -> tuple[type, list[str]]:
    return type(layer), [facts_of(variable) for variable in layer.weights]


def _holds(layer: keras.Layer, part: keras.Layer) -> bool:
    return any(visit.saveable is part for visit in walk(layer))


def _check_layers(visits: Sequence[Visit], record: Record, problems: Problems) -> None:
    """Compares the layers of a model, and what they list, with those of the record."""
    layers = find_layers(visits)
    holders = dict(layers_of(visits))
    tied = {place for group in record.tie_groups for place in group.places}
    for inner_path, saved in record.layers.items():
        if inner_path not in layers:
            if saved.variables:
                problems[inner_path] = "no such layer, or one with another"
            continue
        known = {held.attribute for held in saved.variables}
        lacking = known.difference(named_variables(holders[inner_path]))
        for place in (Place(inner_path, attribute) for attribute in lacking):
            if place not in tied and place not in record.exact_values:
                problems[str(place)] = "no such variable"
        for held in layers[inner_path].variables:
            place = Place(inner_path, held.attribute)
            if held.attribute not in known and place not in tied:
                problems[str(place)] = _UNKNOWN


def _check_generators(visits: Sequence[Visit], record: Record, problems: Problems) -> None:
    generators = find_generators(visits)
    for random_state in record.random_states:
        for place in random_state.places:
            if place not in generators:
                problems[str(place)] = "no such seed generator"
            elif not _fits(random_state.state, generators[place][1].state):
                problems[str(place)] = "a state of another size"


def _share_generators(visits: Sequence[Visit], record: Record) -> None:
    """Makes one seed generator of those that were one when saved."""
    generators = find_generators(visits)
    for random_state in record.random_states:
        first, *others = random_state.places
        for place in others:
            if place in generators and first in generators:
                layer, generator = generators[place]
                if generator is not generators[first][1]:
                    substitute(layer, generator, generators[first][1])


def _fits(words: Sequence[int], state: Any) -> bool:
    limits = np.iinfo(keras.backend.standardize_dtype(state.dtype))
    return (len(words),) == tuple(state.shape) and all(
        limits.min <= word <= limits.max for word in words
    )


def _separations(visits: Sequence[Visit], record: Record) -> list[Substitution]:
    """Plans copies where the model shares a variable that was two when saved."""
    groups = {place: group.owner for group in record.tie_groups for place in group.places}
    for inner_path, saved in record.layers.items():
        for held in saved.variables:
            place = Place(inner_path, held.attribute)
            groups.setdefault(place, place)
    places = find_places(visits)
    separations = []
    for shared, variable in find_shared(visits):
        copies: dict[Place, Any] = {}
        kept = groups.get(shared.owner)
        for place in shared.aliases:
            group = groups.get(place, kept)
            if group != kept and group is not None:
                layer, _ = places[place]
                if group not in copies:
                    copies[group] = copy_of(variable, layer)
                separations.append(Substitution(layer, variable, copies[group]))
    return separations


def _adopt_missing(visits: Sequence[Visit], record: Record) -> None:
    """Gives layers the variables that they were handed from outside, and had no config for."""
    places = find_places(visits)
    layers = dict(layers_of(visits))
    for group in record.tie_groups:
        for alias in group.aliases:
            layer = layers.get(alias.inner_path)
            if alias in places or group.owner not in places or layer is None:
                continue
            if may_adopt(layer, alias.attribute):
                adopt(layer, alias.attribute, places[group.owner][1])


def _plan(visits: Sequence[Visit], record: Record, problems: Problems) -> list[Substitution]:
    """Plans the substitutions of every tie group that fits the model."""
    places = find_places(visits)
    substitutions = []
    for group in record.tie_groups:
        expected = f"{group.shape} {group.dtype}"
        for place in group.places:
            if place not in places:
                problems[str(place)] = "no such variable"
            elif (received := facts_of(places[place][1])) != expected:
                problems[str(place)] = f"{received}, not {expected}"
        if not any(str(place) in problems for place in group.places):
            owner = places[group.owner][1]
            substitutions += [Substitution(*places[alias], new=owner) for alias in group.aliases]
    return substitutions


def _restore_layers(
    visits: Sequence[Visit], record: Record, weights: WeightsFile, problems: Problems
) -> None:
    """Names, flags and lists every layer's variables as they were when saved."""
    stored = {place: place.dataset_path for place in record.exact_values}
    found = find_layers(visits)
    room = weights.size
    for inner_path, layer in layers_of(visits):
        saved = record.layers.get(inner_path)
        if saved is None:
            continue
        named = named_variables(layer)
        for held in saved.variables:
            place = Place(inner_path, held.attribute)
            if held.attribute in named:
                continue
            dataset_path = stored.get(place)
            if dataset_path and held.attribute.split("/")[0] in TRACKED:
                # A variable that was replaced, and that the layer still lists.
                name = held.path.rpartition("/")[2]
                value = weights.read(dataset_path)
                room -= value.nbytes
                if room < 0:  # one tensor, by many paths
                    problems[str(place)] = "more than the file holds"
                    continue
                named[held.attribute] = variable_of(
                    layer, value, name, dtype=str(value.dtype), trainable=held.trainable
                )
            else:
                problems.setdefault(str(place), "no such variable")
        unknown = [
            held
            for held in found[inner_path].variables
            if problems.get(str(Place(inner_path, held.attribute))) == _UNKNOWN
        ]
        restore_layer(
            layer, dataclasses.replace(saved, variables=(*saved.variables, *unknown)), named
        )
    places = find_places(visits)
    missing = {
        str(place)
        for trained in record.optimizer_variables.values()
        for place in (trained or ())
        if place not in places
    }
    problems.update((name, "no such variable") for name in missing - problems.keys())


def disagreement(
    visits: Sequence[Visit], record: Record, weights: WeightsFile
) -> FileFormatError | None:
    """The error for ties of a model whose values are not equal in the file, if there are any."""
    places = find_places(visits)
    owners = {
        path: group.dataset_paths[0]
        for group in record.tie_groups
        if all(place in places for place in group.places)
        for path in group.dataset_paths[1:]
    }
    differing = weights.disagreements(owners)
    if not differing:
        return None
    return damaged(weights.filepath, differing, "other values than at their owners")
