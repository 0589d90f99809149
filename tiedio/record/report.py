"""A report: what people are told of a result, in lines and tables, whatever shows it."""

import dataclasses
from collections.abc import Iterable, Sequence

from tiedio.record import runs


@dataclasses.dataclass(frozen=True)
class Table:
    """A row for each variable, or for variables that are tied or equal.

    Attributes:
        titles: The titles of the columns; names come first.
        rows: The names, then the other cells of each row; numbers are bytes.
        is_tall: Whether each name has a line of its own.
        is_whole: Whether names that count up are all told.
    """

    titles: Sequence[str]
    rows: Sequence[tuple[Sequence[str], *tuple[str | int, ...]]]
    is_tall: bool = False
    is_whole: bool = False

    def cells(self) -> list[list[str]]:
        """Returns the rows as text, without columns that have nothing to say; titles first.

        Rows that are alike, with names that count up, are one.
        """
        found = [runs.Run(1, (number,)) for number in range(len(self.rows))]
        if not self.is_whole:
            found = runs.runs([row[0] for row in self.rows], [row[1:] for row in self.rows])
        return telling([list(self.titles), *map(self._row, found)])

    def _row(self, run: runs.Run) -> list[str]:
        _, *others = self.rows[run.shown[0]]
        times = f"{run.size} x " if run.size > 1 else ""
        told = (times + bytes_of(one) if isinstance(one, int) else one for one in others)
        return [self._names(run), *told]

    def _names(self, run: runs.Run) -> str:
        held = [self.rows[number][0] for number in run.shown]
        if max(map(len, held)) == 1:
            return runs.joined([name for (name,) in held])
        told = held if self.is_whole else map(runs.told, held)
        *first, last = map((" =\n" if self.is_tall else " = ").join, told)
        if not first:
            return last
        return "\n".join(["\nand\n".join(first), f"… {run.size} of these, to", last])


class Command(str):
    """A line that is to be copied, and so is not broken."""


Report = list[str | Table]


def telling(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Returns rows, of which the first one are titles, without columns that are empty below."""
    kept = [number for number in range(len(rows[0])) if any(row[number] for row in rows[1:])]
    return [[row[number] for number in kept] for row in rows]


def printable(text: str) -> str:
    """Returns text without what would be taken for commands by whatever shows it."""
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode()
        for one in text
    )


def bytes_of(count: int) -> str:
    """Says how many bytes there are."""
    return f"{count:,} bytes"


def notes(told: Iterable[str]) -> Report:
    """Returns notes, a line each."""
    return [f"Note: {note}" for note in told]
