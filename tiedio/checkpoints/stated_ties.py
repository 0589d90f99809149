"""Ties that a file itself states: by its record, its hard links, or the names in its lists."""

import bisect
import collections
import dataclasses
import enum
import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tiedio.checkpoints.variables import StoredVariable, Tensors

if TYPE_CHECKING:
    from tiedio.checkpoints.checkpoint import Checkpoint

RECORDED = "the record of the file says so"


class Evidence(enum.StrEnum):
    """Kinds of evidence that variables were tied when they were saved, the strongest first.

    Attributes:
        RECORD: The record of the file says so.
        LINKS: The file stores them once.
        FINGERPRINT: The file lists one under the name of the other, or does not list it again.
        GRAPH: They are one node of a graph of objects, as TensorFlow stores it.
        SLOTS: Their contents are equal, and the optimizer has slots for one of them only.
        TRANSPOSED: Their contents are, transposed, and the optimizer has slots for one only.
        GIVEN: You said so.
        CONTENTS: Their contents are equal, which proves nothing.
    """

    RECORD = "record"
    LINKS = "hard links"
    FINGERPRINT = "fingerprint"
    GRAPH = "object graph"
    SLOTS = "slots"
    TRANSPOSED = "transposed contents and slots"
    GIVEN = "given"
    CONTENTS = "contents"


@dataclasses.dataclass(frozen=True)
class Tie:
    """Variables that are tied.

    Attributes:
        names: The variables; the owner first.
        evidence: The kind of evidence.
        why: The same in a sentence.
        axes: The axes of the owner in the order of the others, if these are it transposed.
    """

    names: tuple[str, ...]
    evidence: Evidence
    why: str
    axes: tuple[int, ...] = ()


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
            owners[name] = name = owners[owners[name]]  # a shorter way, for the next time
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


def stored_once(
    variables: Iterable[StoredVariable], tensors: Tensors, evidence: Evidence, why: str
) -> Iterator[Tie]:
    """Yields variables that are one tensor as tied."""
    names = collections.defaultdict(list)
    for one in variables:
        names[tensors.address(one.source)].append(one.name)
    for tied in names.values():
        if len(tied) > 1:
            yield Tie(tuple(tied), evidence, why)


def _recorded(checkpoint: "Checkpoint") -> Iterator[Tie]:
    if checkpoint.record is None:
        return
    by_source = {one.source: one.name for one in checkpoint.variables}
    for group in checkpoint.record.tie_groups:
        names = tuple(by_source[path] for path in group.dataset_paths if path in by_source)
        if len(names) > 1:
            yield Tie(names, Evidence.RECORD, RECORDED)


def _linked(checkpoint: "Checkpoint") -> Iterator[Tie]:
    """Yields variables that are one tensor in the file, unless its layout says so already."""
    said = joined(checkpoint.layout_ties)
    others = [one for one in checkpoint.variables if said.get(one.name, one.name) == one.name]
    return stored_once(others, checkpoint.tensors, Evidence.LINKS, "the file stores them once")


def _named(checkpoint: "Checkpoint") -> Iterator[Tie]:
    """Yields variables that are listed, in the layout of Keras 2, under the name of one variable.

    That is so where it is another layer's own. Where each could be a layer's own, as in two nested
    models with members of one name, equal names say it of layers that were trained as one: Keras
    cannot save two slots of one name. In multi-backend Keras 2 no two variables have one.
    """
    listed = [one for one in checkpoint.variables if one.listed]
    layers = {name for one in listed if one.layer[:1] != "/" for name in one.layer.split("/")}
    own = collections.defaultdict(list)
    foreign = []
    for one in listed:
        (own[one.listed] if _is_own(one, layers) else foreign).append(one)
    for one in foreign:
        owners = [other for other in own.get(one.listed, ()) if checkpoint.values.equal(one, other)]
        if len(owners) == 1:
            why = f"it is listed as `{one.listed}`"
            yield Tie((owners[0].name, one.name), Evidence.FINGERPRINT, why)
    old, is_multi_backend = checkpoint.old_layout, checkpoint.version.is_multi_backend
    slots = sorted(posixpath.basename(weight.name) for weight in old.optimizer) if old else []

    def has_slots(path: str) -> bool:
        start = path.replace("/", "_") + "_"
        first = slots[bisect.bisect_left(slots, start) :][:1]
        return "/" in path and any(slot.startswith(start) for slot in first)

    once = {
        posixpath.dirname(path)
        for path, variables in own.items()
        if is_multi_backend
        or (sum(one.trainable is True for one in variables) > 1 and has_slots(path))
    }
    evidence = Evidence.FINGERPRINT if is_multi_backend else Evidence.SLOTS
    for path, (first, *others) in own.items():
        for other in others if posixpath.dirname(path) in once else ():
            if checkpoint.values.equal(first, other):
                why = f"both are listed as `{path}`, which was the name of one variable"
                yield Tie((first.name, other.name), evidence, why)


def _is_own(variable: StoredVariable, layers: Collection[str]) -> bool:
    """Whether a variable's layer made it, or one around it, as far as its listed name tells.

    Names in it that are none of `layers`, as that of the model itself, say nothing; that of the
    top-level layer whose list it is in says enough.
    """
    makers, around = variable.listed.split("/")[:-1], variable.layer.split("/")
    others = [name for name in makers if name in layers and name not in around]
    is_here = not others or around[0] in makers
    return not makers or (is_here and not set(makers).isdisjoint(around))
