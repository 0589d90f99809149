"""Find out from a file which of its variables are tied, and how sure that is.

A record, hard links, names and object graphs say it. Equal contents do not: an optimizer
keeps its slots once for each variable, so these say how many of the equal ones were copies.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.checkpoints.slot_deficit import SlotDeficit
from tiedio.checkpoints.stated_ties import Evidence, Tie, joined
from tiedio.checkpoints.values import Variables
from tiedio.checkpoints.variables import StoredVariable
from tiedio.errors import TieError, listed


@dataclasses.dataclass(frozen=True)
class Findings:
    """The ties that a file gives evidence of.

    Attributes:
        ties: Those that something speaks for.
        forbidden: Those of equal contents that the optimizer's state speaks against.
        transposed: Those of variables that are others transposed.
        notes: Notes on what could not be explained.
    """

    ties: tuple[Tie, ...]
    forbidden: tuple[Tie, ...]
    transposed: tuple[Tie, ...]
    notes: tuple[str, ...]


def find(checkpoint: Checkpoint, given: Sequence[tuple[str, str]]) -> Findings:
    """Finds the ties of a checkpoint.

    Args:
        checkpoint: The file.
        given: Names of aliases, each with that of its owner.

    Raises:
        TieError: If `given` names variables that are not there, or of other shapes.
    """
    _check_given(checkpoint, given)
    given_ties = [Tie((owner, alias), Evidence.GIVEN, "given by you") for alias, owner in given]
    together = joined([*checkpoint.ties, *given_ties])

    def is_news(tie: Tie) -> bool:
        return len({together.get(name, name) for name in tie.names}) > 1

    slots, values = SlotDeficit(checkpoint), checkpoint.values
    confirmed, proposed, forbidden = [], [], []
    taken: list[Variables] = []
    open_ones: list[Variables] = []
    for group in values.equal_ones(checkpoint.untied):
        judged = list(slots.judged(group))
        open_ones += [] if judged else [group]
        for part, verdict, why in judged:
            tie = _of_contents(part, why)
            if verdict is True:
                confirmed.append(dataclasses.replace(tie, evidence=Evidence.SLOTS))
            elif is_news(tie):
                (proposed if verdict is None else forbidden).append(tie)
                taken += [part] if verdict is None else []
    for part in values.beside(taken, open_ones):
        tie = _of_contents(part, "equal contents, beside others of their layers")
        proposed += [tie] if is_news(tie) else []
    return Findings(
        (*checkpoint.ties, *given_ties, *confirmed, *proposed),
        tuple(forbidden),
        tuple(slots.transposed),
        tuple(slots.notes),
    )


def _of_contents(variables: Iterable[StoredVariable], why: str) -> Tie:
    return Tie(tuple(one.name for one in variables), Evidence.CONTENTS, why)


def _check_given(checkpoint: Checkpoint, given: Sequence[tuple[str, str]]) -> None:
    by_name = checkpoint.by_name
    unknown = {name for pair in given for name in pair if name not in by_name}
    if unknown:
        expected = (f"`{one.name}` {one.shape}" for one in checkpoint.variables)
        raise TieError(
            f"`{checkpoint.filepath}` has no {listed(unknown)}.\n"
            f"Expected: some of {', '.join(sorted(expected))}. Received: {listed(unknown)}.\n"
            "Name variables as in this list, or layers, by name or by their path in the file."
        )
    kinds = {name: f"{one.shape} {one.dtype}" for name, one in by_name.items()}
    differing = {alias: owner for alias, owner in given if kinds[alias] != kinds[owner]}
    if differing:
        facts = (f"`{name}`: {kinds[name]}" for pair in differing.items() for name in pair)
        raise TieError(
            f"Cannot tie {listed(differing)}: shapes or dtypes differ.\n"
            f"Expected: equal ones. Received: {'; '.join(dict.fromkeys(facts))}.\n"
            "Tie only variables of equal shape and dtype."
        )
