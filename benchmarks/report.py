"""What is shown of the figures: tables for the console and for the docs, and a picture."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import methods
import models
from measure import Figures
from rich.table import Table

STOCK, OURS = (method.name for method in methods.OF_MODELS)


class Row(NamedTuple):
    """One figure, and the goal for it: a limit, or to be no more than stock Keras."""

    figure: str
    label: str
    limit: float | None
    unit: str

    @property
    def goal(self) -> str:
        return "<= stock, flat" if self.limit is None else f"<= {self.limit}"


def rows(figures: Figures) -> list[Row]:
    """Lists the headline figures that were measured."""
    counts = sorted(int(figure.split()[1]) for figure in figures if figure.startswith("find "))
    all_ = [
        Row(f"{flavour} {figure}", label + with_, limit, unit)
        for flavour, with_ in {"plain": "", "Adam": ", with Adam's slots"}.items()
        for figure, label, limit, unit in (
            ("save", "save / raw write", 1.3, "x"),
            ("load", "load / raw read", 2.5, "x"),
            ("save memory", "extra memory to save / unique bytes", 0.15, ""),
            ("load memory", "memory to load / unique bytes", 1.25, ""),
        )
    ]
    all_ += [
        Row(f"{act} {count}", f"{act}, per layer of {count:,}", None, "ms")
        for act in ("save", "load")
        for count in counts
    ]
    all_ += [
        Row(f"{act} config {count}", f"{act} / Keras' own config, of {count:,} layers", 2, "x")
        for act in ("save", "load")
        for count in counts
    ]
    all_ += [
        Row(f"find {count}", f"find the ties of {count:,} layers / save", 0.05, "")
        for count in counts[-1:]
    ]
    all_ += [
        Row(f"files {figure}", label, limit, unit)
        for figure, label, limit, unit in (
            ("verify", "verify 2 GB / raw read", 1.1, "x"),
            ("migrate", "migrate / raw read and write", 1.5, "x"),
            ("migrate memory", "extra memory to migrate / largest tensor", 1.2, ""),
            ("shards", "save in shards / raw write", 1.3, "x"),
            ("remote", "save to fsspec's memory / write the same bytes there", 1.3, "x"),
        )
    ]
    all_ += [
        Row(f"start {name}", f"CPU of `{call}`", limit, "s")
        for name, call, limit in (
            ("import", "import tiedio", 0.06),
            ("inspect", "tiedio inspect", 0.25),
            ("plan", "tiedio plan", 0.25),
            ("verify", "tiedio verify", 0.25),
        )
    ]
    all_ += [
        Row(f"{act} {name}", f"{act}, {name}", None, "ms")
        for name in models.KNOWN
        for act in ("save", "load")
    ]
    return [row for row in all_ if OURS in figures.get(row.figure, ())]


def headline(figures: Figures) -> list[list[str]]:
    """Fills in the headline table: its heading, then a line for each figure."""
    table = [["", STOCK, OURS, "goal"]]
    for row in rows(figures):
        cells = [_number(figures[row.figure].get(name), row.unit) for name in (STOCK, OURS)]
        table.append([row.label, *cells, row.goal])
    return table


def peers(figures: Figures) -> list[list[str]]:
    """Fills in the table of all methods; not all are installed."""
    acts = {"save": "save / raw write", "load": "load / raw read", "warm load": "load / warm read"}
    table = [["", "saves", *acts.values(), "raw write, read"]]
    for name, method in methods.METHODS.items():
        cells = [_number(figures.get(f"plain {act}", {}).get(name), "x") for act in acts]
        if not method.is_installed():
            cells[0] = "not installed"
        raw = [figures.get(f"plain raw {act} seconds", {}).get(name) for act in ("save", "load")]
        # Beside a slow one, every ratio looks good: shows whether the machine was disturbed.
        cells.append(", ".join(f"{1000 * one:.0f} ms" for one in raw if one))
        table.append([name, method.what, *cells])
    return table


def stalls(figures: Figures) -> list[list[str]]:
    """Fills in the table of callbacks: for how long training waits for each."""
    first = methods.CHECKPOINTS[0].name
    table = [["", "saves", "training waits", f"/ {first}", "next step takes"]]
    what = {m.name: m.what if m.is_installed() else "not installed" for m in methods.CHECKPOINTS}
    for name, saved in {**what, methods.NO_CALLBACK: ""}.items():
        waits, step = (figures.get(f"{act} seconds", {}).get(name) for act in ("stall", "step"))
        cells = [_number(time and 1000 * time, "ms", 0) for time in (waits, step)]
        cells.insert(1, _number(figures.get("stall", {}).get(name), "x"))
        table.append([name, saved, *cells])
    return table


def as_rich(table: list[list[str]], met: Sequence[bool] = ()) -> Table:
    """Draws a table for the console; `met` colours what tiedio needs, line by line."""
    heading, *lines = table
    drawn = Table(heading[0])
    for title in heading[1:]:
        drawn.add_column(title, justify="right")
    for (label, stock, ours, *others), good in itertools.zip_longest(lines, met):
        color = {None: "default", True: "green", False: "red"}[good]
        drawn.add_row(label, stock, f"[{color}]{ours}[/]", *others)
    return drawn


def goals_met(figures: Figures) -> list[bool]:
    """Says for each line of the headline table whether tiedio reaches the goal."""
    met = []
    for row in rows(figures):
        values = figures[row.figure]
        met.append(values[OURS] <= (values.get(STOCK, 0) if row.limit is None else row.limit))
    return met


def as_markdown(table: list[list[str]]) -> str:
    """Writes a table as in `docs/performance.md`."""
    heading, *lines = table
    rule = ["---"] + ["---:"] * (len(heading) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, rule, *lines))


def draw(figures: Figures, header: str, filepath: Path) -> None:
    """Draws saving and loading of every method as multiples of raw I/O."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown = [name for name in methods.METHODS if name in figures.get("plain save", ())]
    # Of Okabe and Ito's colours, which all eyes tell apart.
    colors = ["#E69F00" if n == STOCK else "#0072B2" if n == OURS else "#BBBBBB" for n in shown]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.42 * len(shown) + 1.4), sharey=True)
    for ax, act, title in zip(
        axes, ("save", "load"), ("Save / raw write", "Load / raw read"), strict=True
    ):
        bars = ax.barh(shown, [figures[f"plain {act}"][name] for name in shown], color=colors)
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over the line
        ax.bar_label(bars, fmt="%.1f", padding=4, bbox=ground)
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_title(title, loc="left", fontsize=12)
        ax.margins(x=0.12)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set_xticks([])
    axes[0].invert_yaxis()
    figure.text(
        0.01,
        0.01,
        f"{header}\nGrey: bare tensors, no model. Line: raw I/O of the same bytes.",
        fontsize=8,
        color="#555555",
    )
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(filepath, dpi=150)


def _number(value: Any, unit: str, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f} {unit}".rstrip()
