"""Tell what was shared where the record of a file does not say so, or where there is none."""

import collections
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence

import keras

from tiedio.errors import RecordError, listed
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.model.visits import Visit
from tiedio.model.walk import Walk, tie_group
from tiedio.record.record import Record
from tiedio.record.ties import Place, TieGroup, merged
from tiedio.saving.stored_places import stored_places


def of_model(record: Record | None, walk: Walk, weights: WeightsFile) -> Record:
    """Returns what a record says, by attributes, and what can be told without one.

    A record that was made of a file alone knows variables by the number under which they are
    stored, and nothing of layers. What it does not say, hard links do, and what is stored
    under another path only. The model was built from the same code.
    """
    known = _by_attribute(record or Record(), walk)
    if known.is_complete:
        return known
    return dataclasses.replace(
        known,
        tie_groups=tuple(merged([*known.tie_groups, *_find_linked(known, walk, weights)])),
        shared_layers=_find_shared_layers(walk, weights),
    )


def _by_attribute(record: Record, walk: Walk) -> Record:
    trained = record.optimizer_variables
    groups = (*record.tie_groups, *record.transposed_ties)
    places = [place for group in groups for place in group.places]
    places += [place for held in trained.values() for place in held or ()]
    if not any(place.attribute.isdigit() for place in places):
        return record
    stored = {place.dataset_path: place for place in walk.stored_places}

    def named(places: Sequence[Place]) -> tuple[Place, ...]:
        return tuple(
            stored.get(place.dataset_path, place) if place.attribute.isdigit() else place
            for place in places
        )

    return dataclasses.replace(
        record,
        tie_groups=tuple(merged(group.at(named(group.places)) for group in record.tie_groups)),
        transposed_ties=tuple(tie.at(named(tie.places)) for tie in record.transposed_ties),
        optimizer_variables={path: held and named(held) for path, held in trained.items()},
    )


def by_name(walk: Walk, record: Record) -> dict[str, str]:
    """Finds where the file has the layers that a model has in another order, by their names.

    Only members of lists, whose paths are numbers and no names, and only where those of a kind
    have all been given names by somebody, the same in the model as in the file.

    Returns:
        Paths of the model, to those of the file; below these, all goes by the model's paths.
    """
    saved = _named_members({path: layer.name for path, layer in record.layers.items()})
    own = _named_members({path: layer.name for path, layer in walk.layers.items()})
    found: dict[str, str] = {}
    for (folder, kind), members in own.items():  # what is around others stands before them
        stored = saved.get((_moved(folder, found), kind), {})
        if stored.keys() == members.keys():
            found.update({path: stored[name] for name, path in members.items()})
    return {} if all(path == stored for path, stored in found.items()) else found


def _named_members(names: Mapping[str, str]) -> dict[tuple[str, str], dict[str, str]]:
    """Maps names to paths, for the layers of each kind in each list, if all have one."""
    members = collections.defaultdict(list)
    for path, name in names.items():
        folder, _, item = path.rpartition("/")
        if folder not in names:  # otherwise it is an attribute of a layer
            members[folder, re.sub(r"(_\d+)+$", "", item)].append((name, path))
    return {
        (folder, kind): dict(pairs)
        for (folder, kind), pairs in members.items()
        if len(dict(pairs)) == len(pairs)
        # As Keras would call it, which counts the layers that were made before.
        and not any(re.fullmatch(rf"{kind}(_\d+)*", name) for name, _ in pairs)
    }


def renamed(walk: Walk, moved: Mapping[str, str]) -> Walk:
    """Returns a walk by the paths that the file has for what is by other paths in the model."""
    if not moved:
        return walk

    def there(paths: Sequence[str]) -> list[str]:
        return [_moved(path, moved) for path in paths]

    return Walk(
        dataclasses.replace(visit, inner_paths=there(visit.inner_paths), views=there(visit.views))
        for visit in walk.visits
    )


def _moved(path: str, moved: Mapping[str, str]) -> str:
    if not moved:
        return path
    around = max((p for p in (path, *_parents(path)) if p in moved), key=len, default="")
    return moved[around] + path.removeprefix(around) if around else path


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def located(walk: Walk, weights: WeightsFile) -> Walk:
    """Returns a walk with the path first under which the file stores each saveable.

    Another class may reach a layer by other paths before, and versions of Keras differ, where
    some visit a part of the model that others do not.
    """
    found: list[Visit] = []
    moved: dict[str, str] = {}
    for visit in walk.visits:
        candidates = [_moved(visit.inner_path, moved), *visit.inner_paths[1:], *visit.views]
        stored = next((one for one in candidates if weights.names(one)), visit.inner_path)
        if stored != visit.inner_path:
            moved[visit.inner_path] = stored
        others = [one for one in visit.inner_paths if one != stored]
        found.append(dataclasses.replace(visit, inner_paths=[stored, *others]))
    return Walk(found)


def unrecorded_links(walk: Walk, weights: WeightsFile, record: Record) -> RecordError | None:
    """The error for variables that are separate by the record, and share a tensor in the file."""
    owners = record.owners
    found = [
        group
        for group in _find_linked(record, walk, weights)
        if group.owner not in owners or len(set(map(owners.get, group.places))) > 1
    ]
    if not found:
        return None
    return RecordError(
        f"The record of `{weights.filepath}` does not say that these are tied: "
        f"{listed(str(place) for group in found for place in group.places)}.\n"
        "Expected: a tie group for tensors that hard links share. Received: none.\n"
        "The file was changed after it was saved; save it again."
    )


def _find_linked(record: Record, walk: Walk, weights: WeightsFile) -> Iterator[TieGroup]:
    """Yields the variables that share a tensor in the file, and are separate in the model."""
    paths = collections.defaultdict(set)
    for inner_path in walk.layers:
        group_path = f"{inner_path}/vars".lstrip("/")
        for name in weights.names(group_path):
            dataset_path = f"{group_path}/{name}"
            paths[weights.address(dataset_path)].add(dataset_path)
    linked = {path: address for address, held in paths.items() if len(held) > 1 for path in held}
    if not linked:
        return
    held_by = collections.defaultdict(list)
    for place, variable in stored_places(record, walk).items():
        if place.dataset_path in linked:
            held_by[linked[place.dataset_path]].append((place, variable))
    for (owner, variable), *others in held_by.values():
        if any(other is not variable for _, other in others):
            aliases = (place for place, _ in others)
            yield tie_group(owner, aliases, variable)


def _find_shared_layers(walk: Walk, weights: WeightsFile) -> tuple[tuple[str, str], ...]:
    """Finds the layers that the file stores under another path only.

    Keras stores a layer that is reached by two paths under the first of them. Of two
    equal layers, one with nothing stored is taken for the other.
    """
    twins = collections.defaultdict(list)
    empty = {}
    for inner_path, layer in walk.layers.items():
        below = f"{inner_path}/".lstrip("/")
        parts = [p for p, held in walk.named.items() if held and f"{p}/".startswith(below)]
        if any(len(weights.store(path)) for path in parts):
            twins[type(layer), layer.name].append((inner_path, layer))
        elif parts:
            empty[inner_path] = layer
    found: list[tuple[str, str]] = []
    for inner_path, layer in empty.items():
        if any(inner_path.startswith(f"{done}/") for _, done in found):
            continue
        equal = [
            path for path, twin in twins[type(layer), layer.name] if _config(twin) == _config(layer)
        ]
        if len(equal) == 1:
            found.append((equal[0], inner_path))
    return tuple(found)


def _config(layer: keras.Layer) -> str:
    text = json.dumps(keras.saving.serialize_keras_object(layer), default=str)
    # Keras marks what it meets twice while a model is being loaded.
    config = json.loads(text, object_hook=lambda part: {**part, "shared_object_id": None})
    return json.dumps(config, sort_keys=True)
