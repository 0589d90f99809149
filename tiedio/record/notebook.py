"""Reports as HTML, for notebooks. Colours are those of the page, dark or light."""

import html
from collections.abc import Sequence

from tiedio.record.report import Command, Report, Table, printable

_CELL = "text-align:left;vertical-align:top;padding:.3em .8em;border-bottom:1px solid #8888"
_NAMES = "font-family:monospace;overflow-wrap:anywhere"


class Reported:
    """A result that people are shown; a notebook shows it by itself."""

    __slots__ = ()

    def report(self) -> Report:
        """Returns what people are told of it; programs have its attributes."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return page(self.report())


def page(report: Report) -> str:
    """Returns HTML that says the same, and nothing that a name would make of it."""
    return "".join(_table(part) if isinstance(part, Table) else _line(part) for part in report)


def _line(text: str) -> str:
    tag = "pre" if isinstance(text, Command) else "p"
    return f"<{tag} style='margin:.4em 0'>{_escaped(text)}</{tag}>"


def _table(table: Table) -> str:
    titles, *rows = table.cells()
    body = "".join(_row("td", row, _NAMES) for row in rows)
    return (
        '<table style="border-collapse:collapse;color:inherit;font-size:inherit">'
        f"<thead>{_row('th', titles)}</thead><tbody>{body}</tbody></table>"
    )


def _row(tag: str, cells: Sequence[str], first: str = "") -> str:
    looks = [f"{_CELL};{first}".rstrip(";"), *[_CELL] * (len(cells) - 1)]
    made = (
        f"<{tag} style='{look}'>{_escaped(cell)}</{tag}>"
        for look, cell in zip(looks, cells, strict=True)
    )
    return f"<tr>{''.join(made)}</tr>"


def _escaped(text: str) -> str:
    return html.escape(printable(text)).replace("\n", "<br>")
