"""Print reports in a terminal, with tables that cut no name off; or JSON, for programs."""

import io
import json
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import click

from tiedio.record.notebook import page
from tiedio.record.report import Command, Report, Table, printable, telling

# Wider than any table: what is read by a program is not folded.
_UNBOUND = 1 << 20

# Names are no markup, and a line is folded by whoever shows it.
_PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False, "soft_wrap": True}


def as_json(content: Any) -> None:
    """Prints a result for programs; numbers that JSON does not have are `null`."""
    click.echo(json.dumps(_finite(content), indent=2))


def line(text: str, err: bool = False) -> None:
    """Prints a line; in a terminal several that have room."""
    report([text], console_for(err=err))


def folded(text: str, err: bool = False) -> str:
    """Returns text with lines that a terminal has room for; as it is where there is none."""
    return _folded(text, console_for(err=err).width)


def _folded(text: str, room: int) -> str:
    return "\n".join("\n".join(_lines(one, room)) for one in text.split("\n"))


def _lines(text: str, room: int) -> list[str]:
    """Breaks a line between words. What is indented stays so."""
    indent = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(
        text,
        room,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def report(told: Report, console: Any = None) -> None:
    """Prints a report; commands in it are not broken."""
    console = console or console_for()
    for part in told:
        if isinstance(part, Table):
            _table(console, part.cells(), lines=part.is_tall)
        else:
            text = printable(part.replace("\n", " "))
            is_copied = isinstance(part, Command)
            console.print(f"  {text}" if is_copied else _folded(text, console.width), **_PLAIN)


def in_notebook(told: Report) -> None:
    """Displays a report as HTML."""
    from IPython import display  # pyright: ignore[reportMissingImports]

    display.display(display.HTML(page(told)))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, without the columns that have nothing to say."""
    if rows:
        _table(console_for(), telling([titles, *rows]))


def _table(console: Any, rows: Sequence[Sequence[str]], lines: bool = False) -> None:
    """Prints a table, whose first row is its titles.

    Where it has no room, its rows follow one another as paragraphs: nothing is broken inside a
    word, and no name cut off.
    """
    from rich.table import Table as Drawn
    from rich.text import Text

    titles, *rows = ([printable(cell) for cell in row] for row in rows)
    widths = _widths([*zip(titles, *rows, strict=True)], console.width)
    if widths is None:
        for row in rows:
            _paragraph(console, titles, row)
        return
    made = Drawn(show_lines=lines)
    for title, width in zip(titles, widths, strict=True):
        made.add_column(title, width=width)
    for row in rows:
        made.add_row(*map(Text, row))
    console.print(made)


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Returns how wide each column is to be; `None` if their longest words have no room."""
    from rich.cells import cell_len

    least = [max(map(cell_len, " ".join(cells).split()), default=0) for cells in columns]
    most = [max(map(cell_len, "\n".join(cells).split("\n"))) for cells in columns]
    left = room - 1 - sum(width + 3 for width in least)
    if left < 0:
        return None
    share = min(1, left / max(1, sum(most) - sum(least)))
    return [low + int((high - low) * share) for low, high in zip(least, most, strict=True)]


def _paragraph(console: Any, titles: Sequence[str], cells: Sequence[str]) -> None:
    first, *others = (" ".join(cell.split()) for cell in cells)
    told = [f"{title}: {cell}" for title, cell in zip(titles[1:], others, strict=True) if cell]
    for text in (first, f"  {'; '.join(told)}"):
        for part in _lines(text, console.width):
            console.print(part, **_PLAIN)


def console_for(line_length: int | None = None, print_fn: Any = None, *, err: bool = False) -> Any:
    """Returns where to print; with `print_fn` that is a text without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), color_system=None) if print_fn else Console(stderr=err)
    if line_length or print_fn or not console.is_terminal:
        console.width = line_length or _UNBOUND
    return console


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
