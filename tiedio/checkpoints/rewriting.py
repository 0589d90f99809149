"""Lay a checkpoint out as Keras 3 stores it, with the variables made one that were one."""

import collections
import dataclasses
import datetime
import itertools
import posixpath
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.checkpoints.stated_ties import Evidence, Tie, gathered, joined
from tiedio.checkpoints.variables import StoredVariable
from tiedio.formats.content import ASSETS, Content, OldLayout, Weight
from tiedio.formats.hdf5_writer import Layout, Tensor
from tiedio.keras_versions import optimizer_slots
from tiedio.keras_versions.optimizer_slots import Slots
from tiedio.record.record import Record
from tiedio.record.ties import METADATA_KEY, Place, TieGroup

# The oldest Keras that reads what is written here.
_WRITTEN_FOR = "3.10.0"

_OPTIMIZER = "optimizer"

T = TypeVar("T")

# What shards say of one save, and the record.
_NOT_KEPT = (METADATA_KEY, "total_size")


def content(
    checkpoint: Checkpoint,
    ties: Sequence[Tie],
    reconcile: str,
    holds_model: bool,
    assets: Path,
) -> tuple[Content, list[str]]:
    """Lays a checkpoint out.

    Args:
        checkpoint: The file.
        ties: What was one.
        reconcile: What becomes of different values, as in `files.migrate`.
        holds_model: Whether a whole model is written, or weights only.
        assets: Folder for its assets.

    Returns:
        What is to be written, and what is to be said of it.
    """
    owners = joined(ties)
    groups = gathered(checkpoint.variables, owners)
    layout, first = _variables(checkpoint, groups, reconcile)
    record = checkpoint.record or Record()
    notes: list[str] = []
    if not checkpoint.is_by_position:
        state, notes = _optimizer_state(checkpoint, ties, owners)
        _add_others(checkpoint, layout, first, without_optimizer=state is not None)
        if state is not None:
            for number, value in enumerate(state.values):
                layout.tensors[f"{_OPTIMIZER}/vars/{number}"] = _slot(checkpoint, value)
            others = {
                path: held
                for path, held in record.optimizer_variables.items()
                if path != _OPTIMIZER
            }
            record = dataclasses.replace(record, optimizer_variables={**others, **state.trained})
    elif checkpoint.old_layout and checkpoint.old_layout.optimizer:
        _, notes = _lost("weights by position are written without it")
    _put_in_order(layout)
    checkpoint.extract_assets(assets)
    known = {place.dataset_path: place for group in record.tie_groups for place in group.places}
    tie_groups = tuple(_tie_group(checkpoint, members, known) for members in groups.values())
    record = dataclasses.replace(record, tie_groups=tie_groups, digests={})
    written = Content(
        layout,
        record,
        _metadata(checkpoint),
        checkpoint.config if holds_model else None,
        assets / ASSETS,
        old_layout=_old_layout(checkpoint) if checkpoint.is_by_position else None,
    )
    return written, notes


def _variables(
    checkpoint: Checkpoint, groups: Mapping[str, Sequence[StoredVariable]], reconcile: str
) -> tuple[Layout, dict[Any, str]]:
    """Lays the variables out; returns also where each tensor of the source is written."""
    layout = Layout(groups={path: dict(held) for path, held in checkpoint.groups.items()})
    first: dict[Any, str] = {}
    members_of = {one.name: members for members in groups.values() for one in members}
    for one in checkpoint.variables:
        owner, *aliases = members_of.get(one.name, [one])
        if one is owner:
            layout.tensors[target_path(checkpoint, one)] = _tensor(
                checkpoint, [owner, *aliases], reconcile
            )
        else:
            layout.links[target_path(checkpoint, one)] = target_path(checkpoint, owner)
        first[checkpoint.tensors.address(one.source)] = target_path(checkpoint, owner)
    return layout, first


def _add_others(
    checkpoint: Checkpoint, layout: Layout, first: dict[Any, str], without_optimizer: bool
) -> None:
    """Adds what is no variable of a layer as it is, and what is one tensor once."""
    for path, source in checkpoint.others.items():
        if without_optimizer and path.startswith(f"{_OPTIMIZER}/"):
            continue
        address = checkpoint.tensors.address(source)
        if first.setdefault(address, path) != path:
            layout.links[path] = first[address]
        else:
            layout.tensors[path] = _as_is(checkpoint, source)
    layout.links.update(checkpoint.links)


def _slot(checkpoint: Checkpoint, value: Weight | np.ndarray) -> Tensor:
    if isinstance(value, np.ndarray):
        return Tensor.of(value)
    return _as_is(checkpoint, value.dataset_path)


def _tie_group(
    checkpoint: Checkpoint, members: Sequence[StoredVariable], known: Mapping[str | None, Place]
) -> TieGroup:
    """Makes a tie group; places that no record named are known by the layer's own number."""

    def place(one: StoredVariable) -> Place:
        path = target_path(checkpoint, one)
        if one.place is None or checkpoint.is_by_position:
            return known.get(path) or Place(one.layer, one.listed, path)
        return known.get(path) or one.place

    owner, *aliases = map(place, members)
    return TieGroup(
        owner,
        tuple(aliases),
        members[0].shape,
        members[0].dtype.name,
        members[0].trainable is not False,
    )


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Says when, and by which Keras, a file was saved; or of which it is in the layout."""
    kept = {key: value for key, value in checkpoint.metadata.items() if key not in _NOT_KEPT}
    if checkpoint.is_of_keras_3:
        return kept
    now = datetime.datetime.now().strftime("%Y-%m-%d@%H:%M:%S")
    version = checkpoint.keras_version or "an unknown version"
    return {
        **kept,
        "keras_version": _WRITTEN_FOR,
        "date_saved": kept.get("date_saved", now),
        "migrated_from": f"{checkpoint.kind}, by Keras {version}",
    }


def _old_layout(checkpoint: Checkpoint) -> OldLayout | None:
    """Returns the lists of weights for a file of weights only."""
    old = checkpoint.old_layout
    if old is None:
        return None

    def moved(weights: Sequence[Weight]) -> tuple[Weight, ...]:
        return tuple(
            dataclasses.replace(one, dataset_path=_within_layer(one.dataset_path))
            for one in weights
        )

    return dataclasses.replace(
        old,
        model_config=None,
        training_config=None,
        layers={name: moved(weights) for name, weights in old.layers.items()},
        top_level=old.top_level and moved(old.top_level),
        optimizer=(),
    )


def _put_in_order(layout: Layout) -> None:
    """Sorts by paths, so that what is written does not depend on the order in the source."""
    for path in [*layout.tensors, *layout.links, *layout.groups]:
        while path := posixpath.dirname(path):
            layout.groups.setdefault(path, {})
    layout.tensors = _sorted(layout.tensors)
    layout.links = _sorted(layout.links)
    layout.groups = _sorted(layout.groups)


def _sorted(held: dict[str, T]) -> dict[str, T]:
    return dict(sorted(held.items(), key=lambda item: _by_number(item[0])))


def _by_number(path: str) -> list[tuple[int, str]]:
    """A key to sort paths by: 10 comes after 9."""
    return [
        (int(part), "") if part.isdecimal() and len(part) < 10 else (-1, part)
        for part in re.split(r"(\d+)|/", path)
        if part
    ]


def _within_layer(source: str) -> str:
    """Where a file of weights by position has what that of a whole model has at a path."""
    return source.removeprefix("model_weights/")


def target_path(checkpoint: Checkpoint, variable: StoredVariable) -> str:
    """Where a variable is written: in a file of weights by position, where it was."""
    if checkpoint.is_by_position or variable.place is None:
        return _within_layer(variable.source)
    return str(variable.place.dataset_path)


def _tensor(checkpoint: Checkpoint, members: Sequence[StoredVariable], reconcile: str) -> Tensor:
    sources = [one.source for one in checkpoint.values.distinct(members)]
    if reconcile != "mean" or len(sources) == 1:
        return _as_is(checkpoint, sources[0])

    def mean() -> np.ndarray:
        # In the largest float, so that the mean of equal values is that value.
        total = np.zeros(members[0].shape)
        for one in sources:
            total += checkpoint.tensors.read(one).astype(np.float64)
        return (total / len(sources)).astype(members[0].dtype)

    return Tensor(members[0].shape, members[0].dtype, mean)


def _as_is(checkpoint: Checkpoint, source: str) -> Tensor:
    tensors = checkpoint.tensors
    return Tensor(tensors.shape(source), tensors.dtype(source), lambda: tensors.read(source))


@dataclasses.dataclass(frozen=True)
class _State:
    """The state of an optimizer as Keras 3 stores it.

    Attributes:
        values: What it stores.
        trained: What the record says of the variables that it is of, if that is known.
    """

    values: Sequence[Weight | np.ndarray]
    trained: Mapping[str, tuple[Place, ...] | None]


# Whether these were one when saved, or are to be from now on, they do not say.
_UNSURE = (Evidence.GIVEN, Evidence.CONTENTS)
# Each may have been or not: so many are tried.
_MOST_UNSURE = 8

# It was not built, and starts anew.
_NOT_BUILT = {_OPTIMIZER: None}


def _optimizer_state(
    checkpoint: Checkpoint, ties: Sequence[Tie], owners: Mapping[str, str]
) -> tuple[_State | None, list[str]]:
    """Returns the state of the optimizer if it has to be written anew, and what to say of it."""
    kept = checkpoint.slots
    if checkpoint.optimizer is None:
        # Keras 3 forgets the optimizer of a model once it has saved it as HDF5.
        is_stored = any(path.startswith(f"{_OPTIMIZER}/") for path in checkpoint.others)
        if is_stored and checkpoint.config and checkpoint.config.get("compile_config"):
            return _lost("the config does not say which optimizer it was")
        if is_stored and not all(_is_equal(checkpoint, one) for one in ties):
            return _lost("nothing says which optimizer it was")
        return None, []
    trained = [one for one in checkpoint.variables if one.trainable is not False]
    distinct = {owners.get(one.name, one.name) for one in trained}
    if kept is None:
        if checkpoint.is_of_keras_3 and len(distinct) == len(trained):
            return None, []  # as it is
        return _lost("it is of a kind that is not known here")
    if not kept.variables:
        return _State(optimizer_slots.ordered(kept, (), checkpoint.optimizer), _NOT_BUILT), []
    having = _having_slots(checkpoint, ties, trained, kept)
    if having is None:
        if len(distinct) < len(trained):
            return _lost("it does not tell which variables it is of")
        every = range(len(kept.variables))
        return _State(optimizer_slots.ordered(kept, every, checkpoint.optimizer), {}), []
    if checkpoint.is_of_keras_3 and len(having) == len(distinct):
        return None, []  # as it is
    states: dict[str, list[int]] = collections.defaultdict(list)
    for index, one in enumerate(having):
        owner = owners.get(one.name, one.name)
        states[owner].insert(0 if one.name == owner else len(states[owner]), index)

    def digests(index: int) -> tuple[str, ...]:
        return tuple(
            checkpoint.values.digest(one.dataset_path) for one in kept.variables[index].values()
        )

    diverged = [owner for owner, held in states.items() if len(set(map(digests, held))) > 1]
    notes = [
        f"The optimizer has several states of `{owner}`: that of the variable itself is kept."
        for owner in diverged
    ]
    places = tuple(place for owner in states if (place := checkpoint.by_name[owner].place))
    order = [held[0] for held in states.values()]
    values = optimizer_slots.ordered(kept, order, checkpoint.optimizer)
    return _State(values, {_OPTIMIZER: places}), notes


def _having_slots(
    checkpoint: Checkpoint,
    ties: Sequence[Tie],
    trained: Sequence[StoredVariable],
    kept: Slots,
) -> list[StoredVariable] | None:
    """Lists the variables that an optimizer has slots of, in their order, if it can be told.

    What was one when saved has slots once, where it was first used; what is tied since, each. Of
    equal contents nothing tells which it was but that the slots fit.
    """
    if not checkpoint.is_ordered:
        return None
    unsure = [one for one in ties if one.evidence in _UNSURE and _is_equal(checkpoint, one)]
    sure = [one for one in ties if one.evidence not in _UNSURE]
    if checkpoint.version.has_slots_per_use:
        unsure, sure = [], []
    sizes = range(len(unsure) + 1) if len(unsure) <= _MOST_UNSURE else (0, len(unsure))
    fits: dict[tuple[str, ...], list[StoredVariable]] = {}
    for some in itertools.chain(*(itertools.combinations(unsure, size) for size in sizes)):
        owners = joined([*sure, *some])
        having: dict[str, StoredVariable] = {}
        for one in trained:
            having.setdefault(owners.get(one.name, one.name), one)
        if _fit(having.values(), kept):
            fits[tuple(one.name for one in having.values())] = list(having.values())
    return next(iter(fits.values())) if len(fits) == 1 else None


def _is_equal(checkpoint: Checkpoint, tie: Tie) -> bool:
    return checkpoint.values.equal(*(checkpoint.by_name[name] for name in tie.names))


def _fit(variables: Collection[StoredVariable], kept: Slots) -> bool:
    """Whether these can be the variables that an optimizer has slots of."""
    return len(variables) == len(kept.variables) and all(
        not held or any(weight.shape == one.shape for weight in held.values())
        for one, held in zip(variables, kept.variables, strict=True)
    )


def _lost(why: str) -> tuple[_State, list[str]]:
    note = f"The state of the optimizer is left out, and it starts anew: {why}."
    return _State((), _NOT_BUILT), [note]
