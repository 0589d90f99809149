"""Ties that a file itself states: by its record, its hard links, or the names in its lists."""

import collections
import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tiedio.checkpoints.variables import StoredVariable

if TYPE_CHECKING:
    from tiedio.checkpoints.checkpoint import Checkpoint


class Evidence(enum.StrEnum):
    """Kinds of evidence that variables were tied when they were saved, the strongest first."""

    RECORD = "record"
    LINKS = "hard links"
    FINGERPRINT = "fingerprint"
    GRAPH = "object graph"
    SLOTS = "slots"
    GIVEN = "given"
    CONTENTS = "contents"


@dataclasses.dataclass(frozen=True)
class Tie:
    """Variables that are tied.

    Attributes:
        names: The variables; the owner first.
        evidence: The kind of evidence.
        why: The same in a sentence.
    """

    names: tuple[str, ...]
    evidence: Evidence
    why: str


def stated(checkpoint: "Checkpoint") -> Iterator[Tie]:
    """Yields the ties that a file states: in a record, by hard links, by names or a graph."""
    yield from _recorded(checkpoint)
    yield from _linked(checkpoint)
    yield from checkpoint.layout_ties
    yield from _named(checkpoint)


def joined(ties: Iterable[Tie]) -> dict[str, str]:
    """Maps each tied variable, the owner too, to the owner of its tie group."""
    owners: dict[str, str] = {}

    def owner(name: str) -> str:
        while owners.setdefault(name, name) != name:
            name = owners[name]
        return name

    for tie in ties:
        first, *others = map(owner, tie.names)
        for other in others:
            if other != first:
                owners[other] = first
    return {name: owner(name) for name in owners}


def gathered(
    variables: Sequence[StoredVariable], owners: Mapping[str, str]
) -> dict[str, list[StoredVariable]]:
    """Gathers variables that are tied by the name of their owner, which comes first."""
    groups: dict[str, list[StoredVariable]] = {}
    for one in variables:
        if owner := owners.get(one.name):
            members = groups.setdefault(owner, [])
            members.insert(0 if one.name == owner else len(members), one)
    return groups


def _recorded(checkpoint: "Checkpoint") -> Iterator[Tie]:
    """Yields the ties of the record."""
    if checkpoint.record is None:
        return
    by_source = {one.source: one.name for one in checkpoint.variables}
    for group in checkpoint.record.tie_groups:
        names = tuple(by_source[path] for path in group.dataset_paths if path in by_source)
        if len(names) > 1:
            yield Tie(names, Evidence.RECORD, "the record of the file says so")


def _linked(checkpoint: "Checkpoint") -> Iterator[Tie]:
    """Yields variables that are one tensor in the file, unless its layout says so already."""
    said = joined(checkpoint.layout_ties)
    held = collections.defaultdict(list)
    for one in checkpoint.variables:
        if said.get(one.name, one.name) == one.name:
            held[checkpoint.tensors.address(one.source)].append(one.name)
    for names in held.values():
        if len(names) > 1:
            yield Tie(tuple(names), Evidence.LINKS, "the file stores them once")


def _named(checkpoint: "Checkpoint") -> Iterator[Tie]:
    """Yields variables that the layout of Keras 2 lists under the name of another layer.

    In multi-backend Keras 2 no two variables have one name, so that equal ones say it too.
    """
    own = collections.defaultdict(list)
    foreign = []
    for one in checkpoint.variables:
        if not one.listed:
            continue
        makers = set(one.listed.split("/")[:-1])
        if not makers or makers & set(one.layer.split("/")):
            own[one.listed].append(one)
        else:
            foreign.append(one)
    layers = {name for one in checkpoint.variables for name in one.layer.split("/")}
    for one in foreign:
        owners = [other for other in own.get(one.listed, ()) if checkpoint.values.equal(one, other)]
        if len(owners) == 1 and one.listed.split("/")[-2] in layers:
            why = f"it is listed as `{one.listed}`"
            yield Tie((owners[0].name, one.name), Evidence.FINGERPRINT, why)
    if checkpoint.version.is_multi_backend:
        for name, (first, *others) in own.items():
            for other in others:
                if checkpoint.values.equal(first, other):
                    why = f"both are listed as `{name}`, which was the name of one variable"
                    yield Tie((first.name, other.name), Evidence.FINGERPRINT, why)
