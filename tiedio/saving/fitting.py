"""Fit the record of a file to a model that exists already, and check it before anything changes.

Such a model keeps its names and flags, and the ties that it has. Of the record it
takes the sharing, and the order in which variables are stored. Where `fitted` has made
the record of a file one of this model, it is checked against a walk over what is to be loaded.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tiedio.errors import BUILD_IT, BUILD_PARTS, LoadError, RecordError, listed
from tiedio.formats.content import Opened
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.model.keras_internals import has_value
from tiedio.model.own_state import loads_as_keras, stored_by
from tiedio.model.walk import Walk, tie_group
from tiedio.record.record import HeldVariable, LayerState, Record
from tiedio.record.ties import Place, TieGroup, merged
from tiedio.saving import retying
from tiedio.saving.capture import listed_only
from tiedio.saving.stored_places import as_saved, find_incomplete, read_by_record, stored_places


def fitted(record: Record, walk: Walk, left_out: Collection[str] = ()) -> Record:
    """Returns what a record says of a model that keeps its names, its flags and its ties.

    Args:
        record: The record of the file.
        walk: The saveables to be loaded.
        left_out: The inner_paths of those that are not.
    """

    def kept(places: Iterable[Place]) -> tuple[Place, ...]:
        return tuple(place for place in places if place.inner_path not in left_out)

    stored = {place: place for place in stored_places(record, walk)}
    groups = [group.at(kept(group.places)) for group in record.tie_groups]
    groups += _ties_of_shared_layers(record, walk)
    groups += [group.at([stored.get(p, p) for p in group.places]) for group in walk.ties]
    groups = merged(group for group in groups if group.aliases)
    own = [tie.at([stored.get(p, p) for p in tie.places]) for tie in walk.transposed_ties]
    here = {place for tie in own for place in tie.aliases}
    told = [
        tie.at([tie.owner, *(place for place in kept(tie.aliases) if place not in here)])
        for tie in record.transposed_ties
        if kept([tie.owner])
    ]
    shown = tuple(tie for tie in (*told, *own) if tie.aliases)
    tied = dataclasses.replace(record, tie_groups=tuple(groups), transposed_ties=shown)
    return dataclasses.replace(
        tied,
        layers={path: layer for path, layer in _layers(record, walk, tied) if path not in left_out},
        shared_layers=(),
        exact_values=kept(record.exact_values),
        optimizer_variables={
            path: trained
            for path, trained in record.optimizer_variables.items()
            if path not in left_out
        },
        random_states=tuple(
            dataclasses.replace(one, places=places)
            for one in record.random_states
            if (places := kept(one.places))
        ),
    )


def _ties_of_shared_layers(record: Record, walk: Walk) -> Iterator[TieGroup]:
    """Yields ties between variables, where the record has one layer and the model has two."""
    others_of = {first: others for first, *others in record.shared_layers}
    for place, (_, variable) in walk.places.items() if others_of else ():
        path = place.inner_path
        ends = [*(slash.start() for slash in re.finditer("/", path)), len(path)]
        for first, rest in ((path[:end], path[end:]) for end in ends):
            others = others_of.get(first, ())
            aliases = [Place(f"{other}{rest}", place.attribute) for other in others]
            known = [alias for alias in aliases if alias in walk.places]
            if known:
                yield tie_group(place, known, variable)


def _layers(record: Record, walk: Walk, tied: Record) -> Iterator[tuple[str, LayerState]]:
    """Yields the layers of a record as the model names and flags them, in the saved order."""
    owners = tied.owners
    layers = walk.layer_states
    stored = walk.stored_places
    shown = tied.shown_transposed
    apart = record.shown_transposed.keys() - shown
    held = {
        Place(path, one.attribute): one for path, layer in layers.items() for one in layer.variables
    }
    for path, saved in record.layers.items():
        own = layers.get(path)

        def as_owned(one: HeldVariable, path: str = path) -> HeldVariable:
            place = Place(path, one.attribute)
            mine = held.get(place, one)
            owner = held.get(owners.get(place, place), mine)
            return dataclasses.replace(mine, path=owner.path, trainable=owner.trainable)

        if own and any(Place(path, one.attribute) in apart for one in own.variables):
            # What the file shows is a variable here: all go by the order of the model.
            yield path, dataclasses.replace(own, variables=tuple(map(as_owned, own.variables)))
            continue
        names = {one.attribute for one in saved.variables}
        # Of what is shown in the model, its layer has no variable.
        listed = [one for one in saved.variables if Place(path, one.attribute) not in shown]
        for one in own.variables if own else ():
            place = Place(path, one.attribute)
            if one.attribute in names:
                continue
            # What is tied in the model only, or is not stored by its layer, as LoRA is not.
            if place not in stored or (place in owners and place not in record.owners):
                listed.append(one)
        yield path, dataclasses.replace(own or saved, variables=tuple(map(as_owned, listed)))


def has_all(source: Opened, walk: Walk) -> bool:
    """Whether a file has something for each layer that stores anything, by its path."""
    return all(
        len(source.store(path)) or not stored_by(walk.layers[path])
        for path, held in walk.named.items()
        if held
    )


def misfit(walk: Walk, record: Record, told: Iterable[str]) -> RecordError | None:
    """The error for what the record describes, and the model has not; nothing is changed.

    It leaves out the layers that are told of otherwise.
    """
    problems = retying.find_problems(walk, record) | dict(_lacking(walk, record))
    others = tuple(f"{layer}/" for layer in told)
    left = {name: why for name, why in problems.items() if not name.startswith(others)}
    return retying.error_of(left, exists=True)


def _lacking(walk: Walk, record: Record) -> Iterator[tuple[str, str]]:
    """Finds the exact values that the model has no variable for."""
    exact = {p for p in _exact_values(walk, record) if not listed_only(p.attribute)}
    # What LoRA was merged into is stored by the layer itself, and needs no LoRA.
    merged_into = {place.inner_path for place in exact.intersection(walk.stored_places)}
    for place in exact.difference(walk.places, walk.raw):
        if place.inner_path not in merged_into:
            yield retying.name_of(place, walk, record), "no such variable"


def without_state(
    record: Record, weights: WeightsFile, walk: Walk
) -> tuple[Record, LoadError | None]:
    """Leaves out what layers keep beside the variables that they list, if its shape is another.

    So an RNN's states, for another batch size. An error names them.
    """
    kept: list[Place] = []
    problems = {}
    listed_here = {
        Place(path, one.attribute)
        for path, layer in record.layers.items()
        for one in layer.variables
    }
    for place in record.exact_values:
        path, held = place.dataset_path, walk.places.get(place) or walk.raw.get(place)
        if place.inner_path not in record.layers or not path or place in listed_here:
            kept.append(place)
        elif held is None:
            problems[retying.name_of(place, walk, record)] = "no such variable"
        elif weights.address(path) and not _fits(weights.shape(path), held.item.shape):
            shapes = f"{weights.shape(path)}, not {tuple(held.item.shape)}"
            problems[retying.name_of(place, walk, record)] = shapes
            kept.append(place.stored_at(None))
        else:
            kept.append(place)
    if not problems:
        return record, None
    error = LoadError(
        f"Cannot restore {listed(problems)}: layers keep this in another shape now.\n"
        f"Received: {'; '.join(f'`{name}`: {problems[name]}' for name in sorted(problems))}.\n"
        "It stays as it is. To restore it, build the model for the batch size of then."
    )
    return dataclasses.replace(record, exact_values=tuple(kept)), error


def conflict(record: Record, weights: WeightsFile, walk: Walk) -> LoadError | None:
    """The error for variables that the model ties, and that have different values in the file."""
    stored = {place: place.dataset_path for place in stored_places(record, walk)}
    aliases: dict[str, str] = {}
    for group in walk.ties:
        aliases |= _aliases(group, stored, weights)
    error = conflict_error(weights, aliases)
    for tie in walk.transposed_ties:
        shown = _aliases(tie, stored, weights)
        error = error or conflict_error(weights, shown, tie.axes)
    return error


def without_lora(
    record: Record, weights: WeightsFile, walk: Walk
) -> tuple[Record, LoadError | None]:
    """Leaves out LoRA that the model has of another rank, and ties of what LoRA was merged into.

    What the file has for layers without the same LoRA are kernels into which it was merged: where
    these were tied, several values. An error names them.
    """
    incomplete = find_incomplete(record, walk)
    merged_anew = _with_other_rank(record, weights, walk)
    stored = {place: place.dataset_path for place in stored_places(record, walk)}
    kept, apart = [], []
    for group in record.tie_groups:
        is_merged = any(place.inner_path in incomplete for place in group.places)
        differs = is_merged and weights.disagreements(_aliases(group, stored, weights))
        # A layer with LoRA stores no kernel as it is.
        is_unlike = any(p.inner_path in merged_anew and p not in stored for p in group.places)
        (apart if differs or is_unlike else kept).append(group)
    exact = tuple(place for place in record.exact_values if place.inner_path not in merged_anew)
    record = dataclasses.replace(record, exact_values=exact, tie_groups=tuple(kept))
    if not apart:
        return record, None
    names = {retying.name_of(place, walk, record) for group in apart for place in group.places}
    error = LoadError(
        f"Cannot tie {listed(names)}: in `{weights.filepath}` each has LoRA of its own.\n"
        "Expected: layers with the same. Received: others, into whose kernels it is merged.\n"
        "Call `enable_lora` on these layers before loading, with the rank of then."
    )
    return record, error


def _with_other_rank(record: Record, weights: WeightsFile, walk: Walk) -> set[str]:
    """Finds the layers that have LoRA of another rank than in the file, and load what is merged.

    Not where the model ties what it would be merged into: that is several values.
    """
    tied = {place for group in walk.ties for place in group.places}
    return {
        place.inner_path
        for place in record.exact_values
        if place.dataset_path
        and place in walk.places
        and place not in walk.stored_places
        and weights.address(place.dataset_path)
        and not _fits(weights.shape(place.dataset_path), walk.places[place].item.shape)
    } - {place.inner_path for place in record.exact_values if place in tied}


def _aliases(
    group: TieGroup, stored: Mapping[Place, str | None], weights: WeightsFile
) -> dict[str, str]:
    """Maps the dataset_paths of a group in the file to the first of them."""
    paths = [path for place in group.places if (path := stored.get(place))]
    first, *others = [path for path in paths if weights.address(path)] or [""]
    return dict.fromkeys(others, first)


def conflict_error(
    weights: WeightsFile, aliases: Mapping[str, str], axes: Sequence[int] | None = None
) -> LoadError | None:
    """The error for one variable of a model that would be given several values.

    Args:
        weights: The file.
        aliases: dataset_paths of one variable, to the first of them.
        axes: The axes of the first in the order of the others, if these show it transposed.
    """
    differing = weights.disagreements(aliases, axes)
    if not differing:
        return None
    return LoadError(
        f"Cannot load {listed(differing)} of `{weights.filepath}`: the model ties what has several "
        "values there.\n"
        f"Expected: the values at {listed({aliases[path] for path in differing})}. "
        "Received: others.\n"
        "Use `tiedio.untie` first, or load a file of a tied model."
    )


def unfit(
    walk: Walk, record: Record, weights: WeightsFile, exists: bool = False
) -> RecordError | None:
    """The error for exact values that the file has not, or the model has no room for."""
    problems = {}
    for place in _exact_values(walk, record):
        held = walk.places.get(place) or walk.raw.get(place)
        if not place.dataset_path:
            continue
        if weights.address(place.dataset_path) is None:
            problems[retying.name_of(place, walk, record)] = "no such tensor in the file"
        elif listed_only(place.attribute) or held is None:
            continue
        elif not _fits(weights.shape(place.dataset_path), held.item.shape):
            problems[retying.name_of(place, walk, record)] = "another shape"
    return retying.error_of(problems, exists)


def _exact_values(walk: Walk, record: Record) -> list[Place]:
    return [place for place in record.exact_values if place.inner_path in walk.layers]


def _fits(stored: tuple[int, ...], shape: Any) -> bool:
    """Whether a tensor has this shape, which TensorFlow may leave open for its own variables."""
    if hasattr(shape, "is_compatible_with"):
        return shape.is_compatible_with(stored)
    return stored == shape


def other_shapes(walk: Walk, record: Record, source: Opened) -> dict[str, str]:
    """Tells by layer which shapes it needs, where the file has others."""
    if source.is_by_position:  # whose lists were compared already
        return {}
    left_out = read_by_record(record, walk) | find_unbuilt(walk)
    differing = {}
    for visit in walk.parts:
        path = visit.inner_path
        # What other code stores, only it knows.
        if path not in walk.stored or path in left_out or not loads_as_keras(visit.saveable):
            continue
        expected = {name: one.shape for name, one in as_saved(record, walk, path).items()}
        received = source.store(path).shapes()
        if received != expected and (received or not expected):  # else an error of its own
            shapes = list(expected.values()), list(received.values())
            differing[walk.label(path)] = f"{shapes[0]}, received {shapes[1]}"
    return differing


def find_unbuilt(walk: Walk) -> set[str]:
    """Finds the layers of a model in use that have no variables yet, and load none, as in Keras."""
    return {
        path
        for path, layer in walk.layers.items()
        if not (layer.built or walk.named[path]) and loads_as_keras(layer)
    }


def unbuilt(walk: Walk, record: Record, source: Opened) -> LoadError | None:
    """The error for layers that are not built, and stored in a file whose record says nothing."""
    paths = find_unbuilt(walk).difference(record.layers)
    return _unbuilt(paths, walk, source, "Build all layers of the model.")


def left_unbuilt(walk: Walk, record: Record, source: Opened) -> LoadError | None:
    """The error for layers of a model of the file that its classes leave unbuilt."""
    described = {path for path, layer in record.layers.items() if layer.variables}
    paths = find_unbuilt(walk).intersection(described) - read_by_record(record, walk)
    return _unbuilt(paths, walk, source, BUILD_PARTS)


def _unbuilt(paths: Iterable[str], walk: Walk, source: Opened, advice: str) -> LoadError | None:
    stored = {
        walk.label(path): f"no variables, received {count} variables"
        for path in paths
        if (count := len(source.store(path)))
    }
    return unloadable(stored, ": they are not built", advice)


def nothing_stored(walk: Walk, record: Record, source: Opened) -> LoadError | None:
    """The error for what has variables, and nothing in the file."""
    if source.is_by_position:  # whose lists were compared already
        return None
    by_record = read_by_record(record, walk)
    lacking = {
        walk.label(visit.inner_path): f"{count} variables, received 0 variables"
        for visit in walk.parts
        if visit.inner_path not in by_record
        and not len(source.store(visit.inner_path))
        and (count := len(walk.stored.get(visit.inner_path, ())))
    }
    return unloadable(lacking, f": `{source.filepath}` has none for them")


def without_value(walk: Walk) -> LoadError | None:
    """The error for variables that were given no value, though their layers were read."""
    unread = [str(place) for place, held in walk.places.items() if not has_value(held.item)]
    if not unread:
        return None
    return LoadError(
        f"Cannot load {listed(unread)}: their layers did not read them.\n"
        "Expected: a value of the file for each variable. Received: none.\n"
        "Let the `load_own_variables` of their classes read all that is saved."
    )


def unloadable(
    expected: Mapping[str, str],
    why: str,
    advice: str = BUILD_IT,
) -> LoadError | None:
    """The error for layers of which something else is expected than the file has, if any are."""
    if not expected:
        return None
    told = "; ".join(f"`{name}`: expected {expected[name]}" for name in sorted(expected))
    return LoadError(
        f"Cannot load the weights of {listed(expected)}{why}.\nReceived: {told}.\n{advice}"
    )
