"""Where a file has the variables of a model: where layers store them, or its record says."""

from typing import Any

from tiedio.model.own_state import loads_as_keras
from tiedio.model.walk import Walk
from tiedio.record.record import Record
from tiedio.record.ties import Place
from tiedio.saving.capture import listed_only


def stored_places(record: Record, walk: Walk) -> dict[Place, Any]:
    """The variables that a file has, by places that say where in it."""
    by_record = read_by_record(record, walk)
    exact = {place: place for place in record.exact_values if place.inner_path in by_record}
    return {exact.get(place, place): item for place, item in walk.stored_places.items()}


def read_by_record(record: Record, walk: Walk) -> set[str]:
    """Finds the layers that load nothing themselves: all that they store are exact values.

    What such a layer lists may be in another order than in the file, or not be stored by it.
    """
    exact = {*record.exact_values}
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
