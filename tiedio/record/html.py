"""Tie groups as HTML, for notebooks. Colours are those of the page, dark or light."""

import html
from collections.abc import Iterable, Sequence

_CELL = "text-align:left;vertical-align:top;padding:.3em .8em;border-bottom:1px solid #8888"


def tie_table(groups: Iterable[tuple[str, Sequence[str], str, str, bool]]) -> str:
    """Returns a table with a row for each tie group: owner, aliases, shape, dtype, trainable."""
    rows = [
        (
            _names(owner),
            _names(*aliases),
            html.escape(shape),
            html.escape(dtype),
            "yes" if trainable else "no",
        )
        for owner, aliases, shape, dtype, trainable in groups
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
