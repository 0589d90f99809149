"""Find what was one in a file that Keras 3 wrote in the layout of Keras 2.

A variable is listed under the path that the layer gave it which made it, also where
another layer lists it.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import keras

from tiedio.formats.content import OldLayout, Weight
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.model.places import tie_group
from tiedio.model.walk import layers_of, walk
from tiedio.record.ties import Place, TieGroup
from tiedio.saving.keras2_layout import Match


def find(
    model: keras.Model,
    old: OldLayout,
    matches: Sequence[Match],
    places: Mapping[int, Sequence[Place]],
    weights: WeightsFile,
) -> tuple[TieGroup, ...]:
    """Finds the variables that were one when saved, by what is listed for them.

    One that is listed under the path of another layer, which lists the same path and has
    the same values there, was that layer's. Equal paths alone say nothing where each could
    be a layer's own, as in two nested models with members of one name.
    """
    names = {path: layer.name for path, layer in layers_of(walk(model))}
    own = collections.defaultdict(list)
    foreign = []
    linked: dict[Any, Any] = {}
    tied: list[tuple[Any, Any]] = []
    for one in matches:
        for variable, weight in one.pairs:
            first = linked.setdefault(weights.address(weight.dataset_path), variable)
            makers = set(_maker(weight).parts)
            around = _names_around(places[id(variable)][0], names)
            if first is not variable:  # a hard link: it is one tensor
                tied.append((first, variable))
            elif makers <= around or one.group in makers:
                own[weight.name].append((weight, variable))
            else:
                foreign.append((weight, variable))

    def equal(one: Weight, other: Weight) -> bool:
        return not weights.disagreements({one.dataset_path: other.dataset_path})

    for weight, variable in foreign:
        owners = [owner for made, owner in own[weight.name] if equal(weight, made)]
        if len(owners) == 1:
            tied.append((owners[0], variable))
    shared = _layers_with_one_slot(model, old, own)
    for (first, owner), *others in own.values():
        tied += [(owner, v) for w, v in others if _maker(w) in shared and equal(w, first)]
    return tuple(_tie_groups(tied, places))


def _layers_with_one_slot(
    model: keras.Model, old: OldLayout, own: Mapping[str, Sequence[tuple[Weight, Any]]]
) -> set[PurePosixPath]:
    """Finds the paths of layers that stand in several models, and were trained as one.

    Two variables of one path would have slots of one name, which Keras cannot save.
    """
    trained = {id(variable) for variable in model.trainable_variables}
    slots = [PurePosixPath(weight.name).name for weight in old.optimizer]
    return {
        _maker(held[0][0])
        for name, held in own.items()
        if sum(id(variable) in trained for _, variable in held) > 1
        and any(slot.startswith(f"{name.replace('/', '_')}_") for slot in slots)
    }


def _maker(weight: Weight) -> PurePosixPath:
    """The path of the layer that made a variable."""
    return PurePosixPath(weight.name).parent


def _tie_groups(
    tied: Sequence[tuple[Any, Any]], places: Mapping[int, Sequence[Place]]
) -> Iterator[TieGroup]:
    # What is linked to a variable that is another's belongs to that one.
    of = {id(variable): owner for owner, variable in tied}
    tied = [(of.get(id(owner), owner), variable) for owner, variable in tied]
    owners = {id(owner): owner for owner, variable in tied if owner is not variable}
    for key, owner in owners.items():
        aliases = {id(v): places[id(v)] for o, v in tied if o is owner and v is not owner}
        places_of_aliases = (place for held in aliases.values() for place in held)
        yield tie_group(places[key][0], places_of_aliases, owner)


def _names_around(place: Place, names: Mapping[str, str]) -> set[str]:
    """Names the layer at a place, and the layers and models around it."""
    path = PurePosixPath(place.inner_path)
    inner_paths = [str(one) for one in (path, *path.parents)]
    return {names[one] for one in [*inner_paths, ""] if one in names}
