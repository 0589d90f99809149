"""What a migration would do, or did, in words and numbers."""

import dataclasses
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from tiedio.checkpoints.stated_ties import Evidence
from tiedio.keras_versions.lambdas import options
from tiedio.record import runs
from tiedio.record.json_fields import Written
from tiedio.record.notebook import Reported
from tiedio.record.report import Command, Report, Table, notes
from tiedio.record.ties import transposed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal(Written):
    """Variables to tie, and the evidence.

    Attributes:
        owner: The variable that the others are tied to.
        aliases: The others.
        evidence: The kind of evidence.
        why: The same in a sentence.
        shape: Their shape.
        dtype: Their dtype.
        bytes_saved: Bytes that storing them once saves.
        largest_difference: Between the values of the owner and of the others.
        mean_difference: The same on average.
        needs: The options without which it is not applied.
        axes: The axes of the owner in the order of the others, if these show it transposed.
    """

    owner: str
    aliases: tuple[str, ...]
    evidence: Evidence
    why: str
    shape: tuple[int, ...]
    dtype: str
    bytes_saved: int
    largest_difference: float = 0.0
    mean_difference: float = 0.0
    needs: tuple[str, ...] = ()
    axes: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The owner, then the aliases."""
        return (self.owner, *self.aliases)

    @property
    def not_tied(self) -> str:
        """Why they were not tied, though they are equal."""
        return f"Not tied: {' = '.join(runs.told(self.names))}: {self.why}."

    @property
    def row(self) -> tuple[tuple[str, ...], str, int | str, str, str, str]:
        """The cells of a table for people: names, evidence, bytes, differences, needs."""
        differ = self.largest_difference != 0
        return (
            (self.owner, *(transposed(name, self.axes) for name in self.aliases)),
            self.why,
            self.bytes_saved or "",  # what is stored once already
            f"{self.largest_difference:.3g}" if differ else "",
            f"{self.mean_difference:.3g}" if differ else "",
            " ".join(self.needs),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Written, Reported):
    """The plan of a migration, or its outcome.

    Attributes:
        filepath: The file.
        kind: What it is, in words.
        keras_version: The version of Keras that wrote it; empty if it does not say.
        proposals: Variables to tie.
        forbidden: Variables that are equal, and were not tied.
        calls: How often the model calls the layers with variables that it calls several times.
        notes: Further notes.
        code: The functions that it holds as code no Python from 3.11 on runs, by what they are to
            the model, and which Python compiled each.
        refused: Why nothing can be written of it, or not without `--config`; empty if it can.
        lacks_config: Whether it can with `--config`.
        offers: Options that it does without, and that would do more.
        unused: Names that functions were given for, and that have none in this file.
        target: The file that was written, or would be by a dry run; empty for a plan.
        is_written: Whether it was written. Not compared.
    """

    filepath: str
    kind: str
    keras_version: str
    proposals: tuple[Proposal, ...]
    forbidden: tuple[Proposal, ...]
    calls: Mapping[str, int]
    notes: tuple[str, ...]
    code: Mapping[str, str] = dataclasses.field(default_factory=dict)
    refused: str = ""
    lacks_config: bool = False
    offers: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    target: str = ""
    is_written: bool = dataclasses.field(default=False, compare=False)

    @property
    def needs(self) -> tuple[str, ...]:
        """The options without which it is not done."""
        of_code = (options([name]) for name in self.code)
        of_ties = (need for one in self.proposals for need in one.needs)
        return (*["--config FILENAME"] * self.lacks_config, *of_code, *dict.fromkeys(of_ties))

    def report(self) -> Report:
        version = f", by Keras {self.keras_version}" if self.keras_version else ""
        titles = ("tied variables", "evidence", "saves", "largest difference", "mean", "needs")
        told: Report = [f"{self.filepath}: {self.kind}{version}"]
        if self.proposals:
            told.append(Table(titles, [one.row for one in self.proposals]))
        else:
            told.append(_nothing_to_tie(self.calls))
        told += (one.not_tied for one in self.forbidden)
        told += notes((*self.notes, *map(unused, self.unused)))
        if self.target:
            told.append(f"{'Wrote' if self.is_written else 'Would write'} {self.target}")
        if self.offers:
            told.append("To have more done, beside what was given:")
            told.append(Command(command(self.filepath, self, (*self.needs, *self.offers))))
        return told

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "needs": list(self.needs)}


def unused(name: str) -> str:
    """Says that a function was given for nothing."""
    return f"There is no function at `{name}`: `--lambda {name}=...` is not used."


def command(filepath: str, found: Plan | None, options: Iterable[str]) -> str:
    """Returns the command that migrates one file by itself, with options.

    Args:
        filepath: The file.
        found: What became of it, if that is known.
        options: The options.
    """
    target = found.target if found else ""
    told = ["tiedio migrate", shlex.quote(filepath), shlex.quote(target) if target else "DST"]
    return " ".join([*told, *["--overwrite"] * bool(found and found.is_written), *options])


def _nothing_to_tie(calls: Mapping[str, int]) -> str:
    """Says so; of layers that are called several times also that they are shared as it is."""
    if not calls:
        return "There is nothing to tie, as far as the file tells."
    layers = f"{len(calls)} layers are" if len(calls) > 1 else "1 layer is"
    if len(times := {*calls.values()}) == 1:
        often, told = f"{times.pop()} times", ", ".join(runs.told([*calls]))
    else:
        often, told = "several times", ", ".join(f"{one} ({n})" for one, n in calls.items())
    return f"No variable is tied; {layers} called {often}, which needs no tie: {told}."
