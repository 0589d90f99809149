"""Lay a checkpoint out as Keras 3 stores it, with shared variables tied again."""

import dataclasses
import datetime
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tiedio.checkpoints import optimizer_state
from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.checkpoints.optimizer_state import NOT_BUILT, OPTIMIZER, Lost, Rewritten
from tiedio.checkpoints.stated_ties import Tie, gathered, joined
from tiedio.checkpoints.variables import StoredVariable
from tiedio.formats.content import ASSETS, Content, OldLayout, Weight
from tiedio.formats.hdf5_writer import Layout, Tensor
from tiedio.record.record import Record
from tiedio.record.ties import METADATA_KEY, Place, TieGroup, TransposedTie

# The oldest Keras that reads what is written here.
_WRITTEN_FOR = "3.10.0"

T = TypeVar("T")

# Metadata of one save in shards, and the record.
_NOT_KEPT = (METADATA_KEY, "total_size")


def content(
    checkpoint: Checkpoint, ties: Sequence[Tie], *, reconcile: str, holds_model: bool, assets: Path
) -> tuple[Content, list[str]]:
    """Lays a checkpoint out.

    Args:
        checkpoint: The file.
        ties: What is tied.
        reconcile: What becomes of different values, as in `files.migrate`.
        holds_model: Whether a whole model is written, or weights only.
        assets: Folder for its assets.

    Returns:
        What is to be written, and what is to be said of it.
    """
    old = checkpoint.old_layout
    groups = gathered(checkpoint.variables, joined(one for one in ties if not one.axes))
    layout, first = _variables(checkpoint, groups, reconcile)
    record = checkpoint.record or Record()
    notes: list[str] = []
    values, trained = None, record.optimizer_variables
    match optimizer_state.of(checkpoint, ties, holds_model=holds_model):
        case Lost(why):
            values, trained = (), NOT_BUILT
            notes.append(f"The state of the optimizer is left out, and it starts anew: {why}.")
        case Rewritten(values, trained, told):
            notes += told
    if not checkpoint.is_by_position:
        _add_others(checkpoint, layout, first, without_optimizer=values is not None)
        for number, value in enumerate(values or ()):
            is_new = isinstance(value, np.ndarray)
            tensor = Tensor.of(value) if is_new else _as_is(checkpoint, value.dataset_path)
            layout.tensors[f"{OPTIMIZER}/vars/{number}"] = tensor
        # Other optimizers, of models inside it, are as they were.
        kept = {p: t for p, t in record.optimizer_variables.items() if p != OPTIMIZER}
        record = dataclasses.replace(record, optimizer_variables={**kept, **trained})
    _put_in_order(layout)
    checkpoint.extract_assets(assets)
    known = {place.dataset_path: place for group in record.tie_groups for place in group.places}
    tie_groups = tuple(_tie_group(checkpoint, members, known) for members in groups.values())
    shown = [_transposed_tie(checkpoint, tie, known) for tie in ties if tie.axes]
    written = Content(
        layout=layout,
        record=dataclasses.replace(
            record,
            tie_groups=tie_groups,
            transposed_ties=(*record.transposed_ties, *shown),
            digests={},
        ),
        metadata=_metadata(checkpoint),
        config=checkpoint.config if holds_model else None,
        assets=assets / ASSETS,
        old_layout=_of_weights_only(old) if old and checkpoint.is_by_position else None,
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
        members = members_of.get(one.name, [one])
        path, owner_path = target_path(checkpoint, one), target_path(checkpoint, members[0])
        if one is members[0]:
            layout.tensors[path] = _tensor(checkpoint, members, reconcile)
        else:
            layout.links[path] = owner_path
        first[checkpoint.tensors.address(one.source)] = owner_path
    return layout, first


def _add_others(
    checkpoint: Checkpoint, layout: Layout, first: dict[Any, str], without_optimizer: bool
) -> None:
    """Copies everything else unchanged; each tensor is stored once."""
    for path, source in checkpoint.others.items():
        if without_optimizer and path.startswith(f"{OPTIMIZER}/"):
            continue
        address = checkpoint.tensors.address(source)
        if first.setdefault(address, path) != path:
            layout.links[path] = first[address]
        else:
            layout.tensors[path] = _as_is(checkpoint, source)
    layout.links.update(checkpoint.links)


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
        shape=members[0].shape,
        dtype=members[0].dtype.name,
        trainable=members[0].trainable is not False,
    )


def _transposed_tie(
    checkpoint: Checkpoint, tie: Tie, known: Mapping[str | None, Place]
) -> TransposedTie:
    group = _tie_group(checkpoint, [checkpoint.by_name[name] for name in tie.names], known)
    facts = group.shape, group.dtype, group.trainable
    return TransposedTie(group.owner, group.aliases, *facts, tie.axes)


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns `keras_version` and `date_saved`; for an older layout, the version written for."""
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


def _of_weights_only(old: OldLayout) -> OldLayout:
    """Returns the lists for a file of weights only."""

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
    """Maps a path in a whole-model file to the path in a weights-only file."""
    return source.removeprefix("model_weights/")


def target_path(checkpoint: Checkpoint, variable: StoredVariable) -> str:
    """Returns the path to write a variable to: its old one in a file of weights by position."""
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
