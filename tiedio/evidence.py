"""Find out from a file which of its variables were one, and how sure that is.

A record, hard links, names and object graphs say it. Equal contents do not: an optimizer
keeps its slots once for each variable, so these say how many of the equal ones were copies.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tiedio.checkpoint import Checkpoint, Evidence, StoredVariable, Tie
from tiedio.contents import Contents, equal_ones
from tiedio.deficit import SlotDeficit
from tiedio.errors import TieError, listed


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a file says of ties.

    Attributes:
        ties: Those that something speaks for.
        forbidden: Those of equal contents that the optimizer's state speaks against.
        notes: What could not be explained.
    """

    ties: tuple[Tie, ...]
    forbidden: tuple[Tie, ...]
    notes: tuple[str, ...]


def find(checkpoint: Checkpoint, given: Sequence[tuple[str, str]], contents: Contents) -> Findings:
    """Finds the ties of a checkpoint.

    Args:
        checkpoint: The file.
        given: Names of variables, each with that of one that it is one with.
        contents: Its values.

    Raises:
        TieError: If `given` names variables that are not there, or of other shapes.
    """
    by_name = {one.name: one for one in checkpoint.variables}
    _check_given(checkpoint, given, by_name)
    ties = stated(checkpoint, contents)
    known = joined(ties)
    given_ties = [Tie((owner, alias), Evidence.GIVEN, "given by you") for alias, owner in given]
    slots = SlotDeficit(checkpoint, known, contents)
    confirmed, proposed, forbidden = [], [], []
    together = joined([*ties, *given_ties])
    for group in equal_ones(checkpoint, known, contents):
        for part, verdict, why in slots.judged(group):
            tie = Tie(tuple(one.name for one in part), Evidence.CONTENTS, why)
            if verdict is True:
                confirmed.append(dataclasses.replace(tie, evidence=Evidence.SLOTS))
            elif len({together.get(name, name) for name in tie.names}) > 1:  # not said already
                (proposed if verdict is None else forbidden).append(tie)
    return Findings(
        (*ties, *given_ties, *confirmed, *proposed), tuple(forbidden), tuple(slots.notes)
    )


def stated(checkpoint: Checkpoint, contents: Contents) -> list[Tie]:
    """Lists the ties that a file states: in a record, by hard links, by names or a graph."""
    return [
        *_recorded(checkpoint),
        *_linked(checkpoint),
        *checkpoint.ties,
        *_named(checkpoint, contents),
    ]


def joined(ties: Iterable[Tie]) -> dict[str, str]:
    """Maps each variable that is tied to the owner of all that it is one with."""
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


def _check_given(
    checkpoint: Checkpoint, given: Sequence[tuple[str, str]], by_name: Mapping[str, StoredVariable]
) -> None:
    unknown = {name for pair in given for name in pair if name not in by_name}
    if unknown:
        raise TieError(
            f"`{checkpoint.filepath}` has no {listed(unknown)}.\n"
            f"Expected: some of {listed(by_name)}. Received: {listed(unknown)}.\n"
            "Name variables as `tiedio plan` prints them, or layers."
        )
    differing = {
        alias: owner
        for alias, owner in given
        if (by_name[alias].shape, by_name[alias].dtype)
        != (by_name[owner].shape, by_name[owner].dtype)
    }
    if differing:
        facts = (
            f"`{name}`: {by_name[name].shape} {by_name[name].dtype}"
            for pair in differing.items()
            for name in pair
        )
        raise TieError(
            f"Cannot tie {listed(differing)}: shapes or dtypes differ.\n"
            f"Expected: equal ones. Received: {'; '.join(dict.fromkeys(facts))}.\n"
            "Tie only variables of equal shape and dtype."
        )


def _recorded(checkpoint: Checkpoint) -> Iterator[Tie]:
    """Yields the ties of the record."""
    if checkpoint.record is None:
        return
    by_source = {one.source: one.name for one in checkpoint.variables}
    for group in checkpoint.record.tie_groups:
        names = tuple(by_source[path] for path in group.dataset_paths if path in by_source)
        if len(names) > 1:
            yield Tie(names, Evidence.RECORD, "the record of the file says so")


def _linked(checkpoint: Checkpoint) -> Iterator[Tie]:
    """Yields what is one tensor in the file, unless its layout says so already."""
    said = joined(checkpoint.ties)
    held = collections.defaultdict(list)
    for one in checkpoint.variables:
        if said.get(one.name, one.name) == one.name:
            held[checkpoint.tensors.address(one.source)].append(one.name)
    for names in held.values():
        if len(names) > 1:
            yield Tie(tuple(names), Evidence.LINKS, "the file stores them once")


def _named(checkpoint: Checkpoint, contents: Contents) -> Iterator[Tie]:
    """Yields what the layout of Keras 2 lists under the name of another layer.

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
        owners = [other for other in own.get(one.listed, ()) if contents.equal(one, other)]
        if len(owners) == 1 and one.listed.split("/")[-2] in layers:
            why = f"it is listed as `{one.listed}`"
            yield Tie((owners[0].name, one.name), Evidence.FINGERPRINT, why)
    if checkpoint.has_slots_per_use:
        for name, (first, *others) in own.items():
            for other in others:
                if contents.equal(first, other):
                    why = f"both are listed as `{name}`, which was the name of one variable"
                    yield Tie((first.name, other.name), Evidence.FINGERPRINT, why)


def parsed(ties: Iterable[str]) -> list[tuple[str, str]]:
    """Reads ties such as `decoder/kernel=encoder/kernel`, or `decoder=encoder` for whole layers.

    Returns:
        What is tied, and to what.

    Raises:
        TieError: If one is no such text.
    """
    pairs = []
    for tie in ties:
        alias, _, owner = (part.strip() for part in tie.partition("="))
        if not (alias and owner):
            raise TieError(
                f"Cannot read the tie `{tie}`.\n"
                f"Expected: two names, as in `decoder/kernel=encoder/kernel`. Received: {tie!r}.\n"
                "Name the variable that is tied, then the one that it is."
            )
        pairs.append((alias, owner))
    return pairs


def owner_given(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    """Returns the variable that another one is tied to, by itself or with its layer."""
    for alias, owner in pairs:
        if name == alias or name.startswith(f"{alias}/"):
            return f"{owner}{name.removeprefix(alias)}"
    return None


def given_by_name(
    pairs: Iterable[tuple[str, str]], variables: Sequence[StoredVariable]
) -> list[tuple[str, str]]:
    """Pairs variables with those that they are tied to; of two layers, those that both have."""
    names = {one.name for one in variables}
    given: set[tuple[str, str]] = set()
    for pair in pairs:
        owners = {name: owner_given(name, [pair]) for name in names}
        given.update({(name, owner) for name, owner in owners.items() if owner in names} or {pair})
    return sorted(given)
