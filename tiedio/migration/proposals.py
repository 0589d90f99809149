"""What a migration would do, or did, in words and numbers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tiedio.checkpoints.stated_ties import Evidence
from tiedio.keras_versions.lambdas import options
from tiedio.record.json_fields import Written


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Written):
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

    @property
    def needs(self) -> tuple[str, ...]:
        """The options without which it is not done."""
        of_code = (options([name]) for name in self.code)
        of_ties = (need for one in self.proposals for need in one.needs)
        return (*["--config FILENAME"] * self.lacks_config, *of_code, *dict.fromkeys(of_ties))

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "needs": list(self.needs)}
