"""Where a file has the variables of a model: where layers store them, or its record says."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tiedio.model.keras_internals import TRACKED
from tiedio.model.own_state import Stored, loads_as_keras, stored_by
from tiedio.model.walk import Walk
from tiedio.record.record import Record
from tiedio.record.ties import Place
from tiedio.saving.capture import listed_only
from tiedio.saving.retying import unrecorded


def stored_places(record: Record, walk: Walk) -> dict[Place, Any]:
    """The variables that a file has, by places that say where in it."""
    by_record = read_by_record(record, walk)
    exact = {place: place for place in record.exact_values if place.inner_path in by_record}
    stored = {path: as_saved(record, walk, path) for path in walk.layers}
    return {exact.get(place, place): item for place, item in walk.places_in(stored).items()}


def beside_what_is_shown(record: Record, walk: Walk) -> Record:
    """Adds what layers hold beside a variable that they show, to be read by the record.

    Keras' code of such a layer expects no more than what it lists.
    """
    here = {place for tie in walk.transposed_ties for place in tie.aliases}
    shown = {place.inner_path for place in (*here, *record.shown_transposed)}
    if not shown:  # nobody's code is asked for this
        return record
    left_out = {*here, *record.shown_transposed, *record.exact_values}
    beside = [p for p in walk.stored_places if p.inner_path in shown and p not in left_out]
    return dataclasses.replace(record, exact_values=(*record.exact_values, *beside))


def as_saved(record: Record, walk: Walk, inner_path: str) -> Mapping[str, Stored]:
    """What a layer stores once it lists its variables as the record says, which `retying` sees to.

    One that was tied by hand lists them in another order. Only its code knows whether it stores
    in that order: a likeness of the layer, with these lists, is asked.
    """
    stored = walk.stored.get(inner_path, {})
    if not stored or inner_path not in record.layers or inner_path not in walk.layers:
        return stored
    layer, named = walk.layers[inner_path], walk.named[inner_path]
    listed = [*record.layers[inner_path].variables, *unrecorded(walk, record, inner_path)]
    if not all(held.attribute in named for held in listed):
        return stored
    lists: dict[str, list[Any]] = {tracked: [] for tracked in TRACKED}
    for held in listed:
        lists[TRACKED[0 if held.listed_trainable else 1]].append(named[held.attribute])
    before = [id(one) for tracked in TRACKED for one in getattr(layer, tracked)]
    if [id(one) for tracked in TRACKED for one in lists[tracked]] == before:
        return stored
    likeness: Any = object.__new__(type(layer))
    likeness.__dict__.update(vars(layer), **lists)
    return stored_by(likeness) or stored


def read_by_record(record: Record, walk: Walk) -> set[str]:
    """Finds the layers that load nothing themselves: all that they store are exact values.

    What such a layer lists may be in another order than in the file, or not be stored by it.
    """
    exact = {*record.exact_values, *record.shown_transposed}
    return {
        path
        for path, named in walk.named.items()
        if named
        and all(Place(path, attribute) in exact for attribute in named)
        and loads_as_keras(walk.layers[path])
        and all(stored.variable is not None for stored in walk.stored.get(path, {}).values())
    } - find_incomplete(record, walk)


def find_incomplete(record: Record, walk: Walk) -> set[str]:
    """Finds the layers that lack some exact value: what they stored themselves holds them all.

    So a kernel into which LoRA was merged, in a model without LoRA.
    """
    return {
        place.inner_path
        for place in record.exact_values
        if place not in walk.places and place not in walk.raw and not listed_only(place.attribute)
    }
