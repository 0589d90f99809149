"""Tie groups as HTML, for notebooks. Colours are those of the page, dark or light."""

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiedio.ties import TieGroup

_CELL = "text-align:left;vertical-align:top;padding:.3em .8em;border-bottom:1px solid #8888"


def tie_groups(groups: "Iterable[TieGroup]") -> str:
    """Returns a table with a row for each tie group."""
    rows = [
        (
            _names(str(group.owner)),
            _names(*map(str, group.aliases)),
            html.escape(str(group.shape)),
            html.escape(group.dtype),
            "yes" if group.trainable else "no",
        )
        for group in groups
    ]
    if not rows:
        return "<p>No variables are tied.</p>"
    titles = ("owner", "aliases", "shape", "dtype", "trainable")
    body = "".join(_row("td", row) for row in rows)
    return (
        '<table style="border-collapse:collapse;color:inherit;font-size:inherit">'
        f"<thead>{_row('th', titles)}</thead><tbody>{body}</tbody></table>"
    )


def _names(*names: str) -> str:
    listed = "<br>".join(map(html.escape, names))
    return f'<span style="font-family:monospace;overflow-wrap:anywhere">{listed}</span>'


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag} style={_CELL!r}>{cell}</{tag}>' for cell in cells)}</tr>"
