"""Give a model the sharing, the order and the flags that a record describes.

A class may build fewer ties than were saved, or more: afterwards the places that
held one variable hold one again, and those that held two hold two.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import keras

from tiedio.errors import BUILD_IT, SAME_CLASSES, FileFormatError, RecordError, listed
from tiedio.formats import damage
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.model import renewal, substitution, tie_memory
from tiedio.model.live_layers import live_layers
from tiedio.model.substitution import Substitution, facts_of
from tiedio.model.views import TransposedView, view_of
from tiedio.model.walk import Walk
from tiedio.record.record import HeldVariable, Record
from tiedio.record.ties import Place, TieGroup, TransposedTie, shown
from tiedio.saving import shared_objects
from tiedio.saving.capture import listed_only

GroupT = TypeVar("GroupT", bound=TieGroup)

# What does not fit, by the layer or the place that it is about.
Problems = dict[str, str]


@dataclasses.dataclass
class Retied:
    """What became of a model.

    Attributes:
        error: Names all that does not fit the model, and was left as it is.
        warnings: What the model lost by it.
        replaced: The variables that nothing in it holds any more.
    """

    error: RecordError | None
    warnings: list[str]
    replaced: list[Any]


def retie(
    found: Walk,
    again: Callable[[], Walk],
    record: Record,
    *,
    weights: WeightsFile,
    in_use: bool,
) -> Retied:
    """Restores what layers of a model have in common.

    Args:
        found: The saveables of the model that are not left as they are.
        again: Walks over them again.
        record: What to restore.
        weights: The file.
        in_use: Whether it may be compiled, or its layers be those of other models; not so if
            it was just built.
    """
    before = found
    shares_anew, unshared = shared_objects.share_layers(found, record.shared_layers, weights)
    if shares_anew:
        found = again()
    problems = unshared | find_problems(found, record) | dict(_check_generators(found, record))
    separations = list(_separations(found, record))
    for one in separations:
        substitution.substitute(one.layer, one.old, one.new)
    # Where the layers are the same, and hold other variables.
    if _adopt_missing(found, record) or separations:
        found = Walk(found.visits)
    substitutions, unfit = _plan(found, record)
    problems |= unfit
    using = [layer for layer in found.layers.values() if isinstance(layer, keras.Model)]
    if in_use and substitutions:
        using = _using(substitutions)
    resumed = [
        optimizer
        for path, optimizer in found.optimizers.items()
        if path in record.optimizer_variables
    ]
    warnings = renewal.apply(substitutions, using, resumed)  # which may refuse
    if substitutions:
        found = Walk(found.visits)
    views, unfit = _plan_views(found, record)
    problems |= unfit
    using = _using(views) if in_use else using
    warnings += renewal.apply(views, using, resumed)
    if shared_objects.share_generators(found, record) or views:
        found = Walk(found.visits)
    unfit, has_more = _restore_layers(found, record, weights)
    problems = unfit | problems
    if has_more:
        found = Walk(found.visits)
    for trained in record.optimizer_variables.values():
        for place in trained or ():
            if place not in found.places:
                problems.setdefault(name_of(place, found, record), "no such variable")
    for group in (*record.tie_groups, *record.transposed_ties):
        known = [place for place in group.places if place in found.places]
        if known:
            tied = ((found.places[place].layer, place.attribute) for place in known)
            tie_memory.remember(tied, getattr(group, "axes", ()))
    replaced = [
        held.item for held in before.places.values() if id(held.item) not in found.places_of
    ]
    return Retied(error_of(problems), warnings, replaced)


def check_optimizers(walk: Walk, record: Record) -> None:
    """Raises a `TieError` if an optimizer in use cannot be built for what will be tied."""
    substitutions = [*_plan(walk, record)[0], *_plan_views(walk, record)[0]]
    renewal.check(substitutions, _using(substitutions))


def _using(substitutions: Sequence[Substitution]) -> list[keras.Model]:
    layers = [one.layer for one in substitutions if one.old is not one.new]
    return renewal.models_with(layers, live_layers()) if layers else []


def error_of(problems: Problems, exists: bool = False) -> RecordError | None:
    """The error for what does not fit a model, which may be the caller's, if there is anything."""
    if not problems:
        return None
    return RecordError(
        f"Cannot restore {listed(problems)}: the model is not the one that was saved.\n"
        f"Received: {'; '.join(f'`{name}`: {problems[name]}' for name in sorted(problems))}.\n"
        f"{BUILD_IT if exists else SAME_CLASSES}"
    )


def find_problems(walk: Walk, record: Record) -> Problems:
    """Compares a model with what a record says of it; nothing is changed."""
    unfit = _plan(walk, record)[1] | _plan_views(walk, record)[1]
    problems = dict(_check_layers(walk, record)) | unfit
    for alias in _adoptable(walk, record):
        problems.pop(name_of(alias, walk, record), None)
    return problems


def restorable(walk: Walk, record: Record) -> Record:
    """Returns a record without the places of ties that do not fit the model; others are tied."""
    adoptable = set(_adoptable(walk, record))

    def fitting(group: GroupT, unfit: Collection[Place]) -> GroupT:
        return group.at([place for place in group.places if place not in unfit])

    groups = [fitting(one, _unfit(walk, one).keys() - adoptable) for one in record.tie_groups]
    shown = [
        fitting(tie, unfit)
        for tie in record.transposed_ties
        if tie.owner not in (unfit := _unfit_views(walk, tie))
    ]
    return dataclasses.replace(
        record,
        tie_groups=tuple(one for one in groups if one.aliases),
        transposed_ties=tuple(one for one in shown if one.aliases),
    )


def generators_error(walk: Walk, record: Record) -> RecordError | None:
    """The error for seed generators that are of another kind in the model; it may lack some."""
    here = tuple(
        dataclasses.replace(state, places=tuple(p for p in state.places if p in walk.generators))
        for state in record.random_states
    )
    found = _check_generators(walk, dataclasses.replace(record, random_states=here))
    return error_of(dict(found), exists=True)


def name_of(place: Place, walk: Walk, record: Record) -> str:
    """Tells what people call a place, which may be in the model, or in the record only."""
    if place.inner_path in walk.layers or place.inner_path not in record.layers:
        return str(walk.place(place.inner_path, place.attribute))
    return f"{record.layer_labels[place.inner_path]}/{shown(place.attribute)}"


def _check_layers(walk: Walk, record: Record) -> Iterator[tuple[str, str]]:
    """Compares the layers of a model, and what they list, with those of the record."""
    elsewhere = record.owners.keys() | record.exact_values
    for inner_path, saved in record.layers.items():
        if inner_path not in walk.layers:
            if saved.variables:
                yield (
                    record.layer_labels[inner_path],
                    "no such layer, or a different class at this path",
                )
            continue
        known = {held.attribute for held in saved.variables}
        for attribute in known.difference(walk.named[inner_path]):
            place = Place(inner_path, attribute)
            if place not in elsewhere:
                yield name_of(place, walk, record), "no such variable"
        for held in unrecorded(walk, record, inner_path):
            yield str(walk.place(inner_path, held.attribute)), "not in the file"


def unrecorded(walk: Walk, record: Record, inner_path: str) -> list[HeldVariable]:
    """Lists the variables of a layer of which the record says nothing."""
    known = {held.attribute for held in record.layers[inner_path].variables}
    return [
        held
        for held in walk.layer_states[inner_path].variables
        if held.attribute not in known
        and (place := Place(inner_path, held.attribute)) not in record.owners
        and place not in record.shown_transposed
    ]


def _check_generators(walk: Walk, record: Record) -> Iterator[tuple[str, str]]:
    for random_state in record.random_states:
        for place in random_state.places:
            if place not in walk.generators:
                yield name_of(place, walk, record), "no such seed generator"
            elif not shared_objects.fits(random_state.state, walk.generators[place].item.state):
                yield name_of(place, walk, record), "a state of another size"


def _separations(walk: Walk, record: Record) -> Iterator[Substitution]:
    """Plans copies where the model shares a variable that was two when saved."""
    groups = dict(record.owners)
    for inner_path, saved in record.layers.items():
        for held in saved.variables:
            place = Place(inner_path, held.attribute)
            groups.setdefault(place, place)
    for shared in walk.ties:
        copies: dict[Place, Any] = {}
        kept = groups.get(shared.owner)
        for place in shared.aliases:
            group = groups.get(place, kept)
            if group != kept and group is not None:
                layer, variable = walk.places[place]
                if group not in copies:
                    copies[group] = substitution.copy_of(variable, layer, place.attribute)
                yield Substitution(layer, variable, copies[group])
    for place, (layer, view) in walk.places.items():
        if isinstance(view, TransposedView) and place in groups:
            yield Substitution(layer, view, substitution.copy_of(view, layer, place.attribute))


def _adoptable(walk: Walk, record: Record) -> Iterator[Place]:
    """Yields the aliases that layers can be handed from outside, and had no config for."""
    for group in record.tie_groups:
        for alias in group.aliases:
            layer = walk.layers.get(alias.inner_path)
            if layer is not None and substitution.may_adopt(layer, alias.attribute):
                yield alias


def _adopt_missing(walk: Walk, record: Record) -> bool:
    """Hands layers what they lack; whether any did."""
    has_adopted = False
    for alias in _adoptable(walk, record):
        owner = record.owners[alias]
        if alias not in walk.places and owner in walk.places:
            variable = walk.places[owner].item
            substitution.adopt(walk.layers[alias.inner_path], alias.attribute, variable)
            has_adopted = True
    return has_adopted


def _plan(walk: Walk, record: Record) -> tuple[list[Substitution], Problems]:
    """Plans the substitutions of every tie group that fits the model."""
    problems: Problems = {}
    substitutions = []
    for group in record.tie_groups:
        unfit = _unfit(walk, group)
        problems |= {name_of(place, walk, record): why for place, why in unfit.items()}
        if not unfit:
            owner = walk.places[group.owner].item
            for alias in group.aliases:
                layer, variable = walk.places[alias]
                if variable is not owner:
                    substitutions.append(Substitution(layer, variable, owner))
    return substitutions, problems


def _plan_views(walk: Walk, record: Record) -> tuple[list[Substitution], Problems]:
    """Plans what is to show a variable of another place, of every tie that fits the model."""
    problems: Problems = {}
    substitutions = []
    for tie in record.transposed_ties:
        unfit = _unfit_views(walk, tie)
        problems |= {name_of(place, walk, record): why for place, why in unfit.items()}
        for alias in tie.aliases if not unfit else ():
            owner, (layer, shown) = walk.places[tie.owner].item, walk.places[alias]
            is_view = isinstance(shown, TransposedView)
            if not (is_view and shown.owner is owner and shown.axes == tie.axes):
                substitutions.append(Substitution(layer, shown, view_of(owner, tie.axes, shown)))
    return substitutions, problems


def _unfit_views(walk: Walk, tie: TransposedTie) -> dict[Place, str]:
    """Finds the places that cannot show a variable, with what they hold instead."""
    shapes = {tie.owner: tie.shape, **dict.fromkeys(tie.aliases, tie.transposed_shape)}
    return _unlike(walk, shapes, tie.dtype)


def _unfit(walk: Walk, group: TieGroup) -> dict[Place, str]:
    """Finds the places that cannot be tied, with what they hold instead."""
    return _unlike(walk, dict.fromkeys(group.places, group.shape), group.dtype)


def _unlike(walk: Walk, shapes: Mapping[Place, tuple[int, ...]], dtype: str) -> dict[Place, str]:
    """Finds the places that have not these shapes, or not all one dtype."""
    # Values are cast, as by Keras; but one variable has one dtype.
    dtypes = {walk.places[place].item.dtype for place in shapes if place in walk.places}
    unfit = {}
    for place, shape in shapes.items():
        if place not in walk.places:
            unfit[place] = "no such variable"
        elif tuple((variable := walk.places[place].item).shape) != shape:
            unfit[place] = f"{facts_of(variable)}, not {shape} {dtype}"
        elif len(dtypes) > 1:
            unfit[place] = f"{variable.dtype}, tied to another dtype"
    return unfit


def _restore_layers(walk: Walk, record: Record, weights: WeightsFile) -> tuple[Problems, bool]:
    """Names, flags and lists every layer's variables as they were when saved.

    Returns:
        What does not fit, and whether a layer was given more variables than it had.
    """
    problems: Problems = {}
    has_more = False
    stored = {place: place.dataset_path for place in record.exact_values}
    room = weights.size
    for inner_path, saved in record.layers.items():
        layer = walk.layers.get(inner_path)
        if layer is None:
            continue
        named = dict(walk.named[inner_path])
        for held in saved.variables:
            key = inner_path, held.attribute
            dataset_path = stored.get(Place(*key))
            if held.attribute in named:
                continue
            is_listed_only = listed_only(held.attribute)
            if not (is_listed_only and dataset_path and weights.address(dataset_path)):
                problems[str(walk.place(*key))] = "no such variable"
                continue
            # A variable that was replaced, and that the layer still lists.
            value = weights.read(dataset_path)
            room -= value.nbytes
            if room < 0:  # one tensor, by many paths
                problems[str(walk.place(*key))] = "more than the file holds"
                continue
            name = held.path.rpartition("/")[2]
            options = {"dtype": str(value.dtype), "trainable": held.listed_trainable}
            named[held.attribute] = substitution.variable_of(layer, value, name, **options)
            has_more = True
        variables = (*saved.variables, *unrecorded(walk, record, inner_path))
        substitution.restore_layer(layer, dataclasses.replace(saved, variables=variables), named)
    return problems, has_more


def disagreement(walk: Walk, record: Record, weights: WeightsFile) -> FileFormatError | None:
    """The error for ties of a model whose values are not equal in the file, if there are any."""
    owners = {
        path: group.dataset_paths[0]
        for group in record.tie_groups
        if all(place in walk.places for place in group.places)
        for path in group.dataset_paths[1:]
    }
    differing = weights.disagreements(owners)
    for tie in record.transposed_ties:
        if tie.owner in walk.places and (owner := tie.owner.dataset_path):
            paths = [p.dataset_path for p in tie.aliases if p in walk.places and p.dataset_path]
            differing += weights.disagreements(dict.fromkeys(paths, owner), tie.axes)
    if not differing:
        return None
    return damage.error_at(weights.filepath, differing, "other values than at their owners")
