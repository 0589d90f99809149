"""The record of a file in the layout of Keras 2: what its lists say of a model.

Such a file says more than Keras reads. A variable is listed under the path that the layer gave it
which made it, also where another layer lists it; and the slots of its optimizer are there.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import keras

from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.checkpoints.variables import StoredVariable, named_once
from tiedio.errors import LoadError, listed
from tiedio.formats.content import OldLayout, Weight
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.keras_versions.config_translation import Translated
from tiedio.model.places import own_variables
from tiedio.model.walk import Walk, tie_group
from tiedio.record.record import LayerState, Record
from tiedio.record.ties import Place, TieGroup
from tiedio.saving.fitting import conflict_error, fitted, unloadable

# Under which the variables of the model itself are listed here.
OWN = ""


def lists_of(model: keras.Model) -> dict[str, list[Any]]:
    """Lists the variables of each top-level layer in the order of this layout."""
    lists = {one.name: one.trainable_weights + one.non_trainable_weights for one in model.layers}
    return {**lists, OWN: own_variables(model)}


@dataclasses.dataclass
class Match:
    """A layer of a model, and what a file lists for it.

    Attributes:
        name: The layer's name.
        group: Its name in the file.
        variables: Its variables.
        weights: What is stored for them, one for each if it fits.
    """

    name: str
    group: str
    variables: Sequence[Any]
    weights: Sequence[Weight]

    def __post_init__(self):
        # Names may tell more than the order does: one of a layer's variables may have been
        # replaced by another layer's, or frozen, and was listed behind the others then.
        by_name = {PurePosixPath(weight.listed).name: weight for weight in self.weights}
        names = [PurePosixPath(variable.path).name for variable in self.variables]
        if len(by_name) == len(self.weights) and sorted(by_name) == sorted(names):
            self.weights = [by_name[name] for name in names]

    @property
    def pairs(self) -> Iterator[tuple[Any, Weight]]:
        """Each variable, and what is stored for it."""
        return zip(self.variables, self.weights, strict=True)

    def without_misfits(self) -> "Match":
        """Returns the same with what fits: nothing, if their numbers differ."""
        pairs = zip(self.variables, self.weights, strict=False)
        fitting = [pair for pair in pairs if tuple(pair[0].shape) == pair[1].shape]
        if len(self.variables) != len(self.weights):
            fitting = []
        return Match(self.name, self.group, [v for v, _ in fitting], [w for _, w in fitting])

    def problem(self) -> str | None:
        """What does not fit, if anything does not."""
        expected = [tuple(variable.shape) for variable in self.variables]
        received = [weight.shape for weight in self.weights]
        return None if expected == received else f"{expected}, received {received}"


def fitting(
    model: keras.Model, old: OldLayout, by_name: bool = False, skip_mismatch: bool = False
) -> tuple[list[Match], list[LoadError]]:
    """Matches the layers of a model with those of a file, as Keras does.

    Args:
        model: A built model.
        old: What the file says.
        by_name: Whether to go by the names of layers, and leave out those that only one of
            the two has, instead of by their order.
        skip_mismatch: Whether to leave out variables that do not fit.

    Returns:
        The matches, and an error for the layers of which some are left out.

    Raises:
        LoadError: If they do not fit. All layers that do not are named.
    """
    lists = lists_of(model)
    own = lists.pop(OWN)
    if by_name:
        groups = {name: name for name in lists if name in old.layers}
    else:
        expected = [name for name, one in lists.items() if one]
        received = [name for name, weights in old.layers.items() if weights]
        if len(expected) != len(received):
            raise LoadError(
                f"Cannot load `{old.filepath}` into model `{model.name}`: it has other layers.\n"
                f"Expected: {len(expected)} with weights: {listed(expected) or 'none'}. "
                f"Received: {len(received)}: {listed(received) or 'none'}.\n"
                "Load it into the model that was saved, with the same classes."
            )
        groups = dict(zip(expected, received, strict=True))
    matches = [Match(name, g, lists[name], old.layers[g]) for name, g in groups.items()]
    if old.top_level is not None:
        matches.append(Match(model.name, OWN, own, old.top_level))
    problems = {one.name: problem for one in matches if (problem := one.problem())}
    error = unloadable(
        problems,
        f" from `{old.filepath}`",
        "Load the file into the model that was saved. Where fewer are stored than expected, "
        "some may have been tied inside one layer: this format does not say which.",
    )
    if error and not skip_mismatch:
        raise error
    return [one.without_misfits() for one in matches], [error] if error else []


def recorded(walk: Walk, old: OldLayout, matches: Sequence[Match], weights: WeightsFile) -> Record:
    """Returns the record of a file: every variable is an exact value, where its layer lists it.

    Raises:
        LoadError: If the model ties what has several values in the file. All are named.
    """
    stored: dict[int, Weight] = {}
    aliases = {}
    for variable, weight in (pair for match in matches for pair in match.pairs):
        first = stored.setdefault(id(variable), weight)
        if first is not weight:
            aliases[weight.dataset_path] = first.dataset_path
    if error := conflict_error(weights, aliases):
        raise error
    exact_values = {walk.places_of[key][0]: weight for key, weight in stored.items()}
    lists = Record(
        tie_groups=tuple(_ties(walk, old, matches, weights)),
        layers=dict(_reordered(walk, old, exact_values)),
        exact_values=tuple(
            place.stored_at(weight.dataset_path) for place, weight in exact_values.items()
        ),
    )
    return fitted(lists, walk)


def in_use(record: Record, walk: Walk, old: OldLayout) -> Record:
    """Returns what a record says of a model whose layers keep their order.

    Optimizers may know variables by that. The order in the file is that of the slots there, and
    the names of slots tell which variables were trained. Where some that is trained now is not
    read, how it goes on is not told.
    """
    record = dataclasses.replace(record, layers={})
    if not old.optimizer:
        return record
    places = {place.dataset_path: place for place in record.exact_values}
    listed_here = itertools.chain(old.top_level or (), *old.layers.values())
    read = {places[one.dataset_path]: one for one in listed_here if one.dataset_path in places}
    trainable = {id(variable) for variable in walk.layers[""].trainable_variables}
    trained = [place for place in read if id(walk.places[place].item) in trainable]
    is_told = len(trained) == len(trainable)
    # A slot has the name of its variable, and what it is to that: `dense_kernel_velocity_hat`.
    slots = [weight.name.rpartition("/")[2] for weight in old.optimizer]
    having = {slot.rsplit("_", words)[0] for slot in slots for words in (1, 2, 3)}
    named = [place for place, one in read.items() if one.name.replace("/", "_") in having]
    order = dict.fromkeys(record.owners.get(place, place) for place in named or trained)
    told = {"optimizer": tuple(order) if is_told else None}
    return dataclasses.replace(record, optimizer_variables=told)


def _reordered(
    walk: Walk, old: OldLayout, stored: Mapping[Place, Weight]
) -> Iterator[tuple[str, LayerState]]:
    """Yields the layers that listed their variables otherwise: the order of slots follows it."""
    number = {
        weight.dataset_path: count
        for weights in old.layers.values()
        for count, weight in enumerate(weights)
    }
    saved_at = {place: number.get(weight.dataset_path, 0) for place, weight in stored.items()}
    listed_at = collections.defaultdict(list)  # in the order of the model
    for place, position in saved_at.items():
        listed_at[place.inner_path].append(position)
    for inner_path, state in walk.layer_states.items():
        places = {held: Place(inner_path, held.attribute) for held in state.variables}
        order = {held: saved_at[place] for held, place in places.items() if place in saved_at}
        if len(order) == len(places) and listed_at[inner_path] != sorted(order.values()):
            by_order = tuple(sorted(order, key=order.__getitem__))
            yield inner_path, dataclasses.replace(state, variables=by_order)


def _ties(
    walk: Walk, old: OldLayout, matches: Sequence[Match], weights: WeightsFile
) -> Iterator[TieGroup]:
    """Yields the ties between variables, by what is listed for them."""
    trained = {id(variable) for variable in walk.layers[""].trainable_variables}
    pairs = [(match, *pair) for match in matches for pair in match.pairs]
    stored = named_once(
        StoredVariable.of(
            weight, weights, _name(walk, match, variable), trainable=id(variable) in trained
        )
        for match, variable, weight in pairs
    )
    found = Checkpoint(
        filepath=old.filepath,
        kind="",
        keras_version=old.keras_version,
        tensors=weights,
        translated=Translated({}),
        variables=list(stored),
        old_layout=old,
    )
    variables = {name: pair[1] for name, pair in zip(found.by_name, pairs, strict=True)}
    for name, owner in found.owners.items():
        variable, alias = variables[owner], variables[name]
        if alias is not variable:
            yield tie_group(walk.places_of[id(variable)][0], walk.places_of[id(alias)], variable)


def _name(walk: Walk, match: Match, variable: Any) -> str:
    """Names a variable by the list that it is in, and the layers around it there."""
    places = [str(place) for place in walk.places_of[id(variable)]]
    here = next((place for place in places if place.startswith(f"{match.name}/")), places[0])
    return f"{match.group}/{match.name}/{here}"
