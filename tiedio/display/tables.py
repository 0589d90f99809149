"""Print what the command line found: lines, and tables that cut no name off.

How results look is decided here, and nothing else.
"""

import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tiedio.migration.many import Outcome
    from tiedio.migration.planning import Plan, Proposal
    from tiedio.tools.comparison import Comparison, Difference
    from tiedio.tools.export import Export
    from tiedio.tools.inspection import Group, Inspection
    from tiedio.tools.verification import Verification


# Wider than any table: what is read by a program is not folded.
_UNBOUND = 1 << 20

# Names are no markup, and a line is folded by whoever shows it.
_PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


def as_json(content: Any) -> None:
    """Prints a result for programs; numbers that JSON does not have are `null`."""
    click.echo(json.dumps(_finite(content), indent=2))


def inspection(found: "Inspection") -> None:
    """Prints what a file is."""
    many = f"{len(found.models)} models" if found.models else "a whole model"
    _line(f"{found.filepath}: {found.kind.replace('a whole model', many)}")
    _line(
        f"Written by Keras {found.keras_version or '(it does not say which)'}"
        + (f", {found.date_saved}" if found.date_saved else "")
        + (f", with a record of version {found.record_version}" if found.record_version else "")
    )
    if found.models:
        _line(f"Models: {', '.join(found.models)}")
    _line(f"Variables: {found.variables}; tie groups: {len(found.tie_groups)}")
    _line(f"Optimizer: {found.optimizer or 'none'}")
    _line(
        f"Stores {_bytes(found.bytes_stored)}; sharing saves {_bytes(found.bytes_shared)}, "
        f"equal copies waste {_bytes(found.bytes_wasted)}"
    )
    for title, verb, groups in (
        ("tied", "saves", found.tie_groups),
        ("equal copies", "waste", found.copies),
    ):
        if groups:
            _console().print(_groups(title, verb, groups, with_evidence=True))
    for names in found.shared_layers:
        _line(_in_places(names, found.models))
    _notes(found.notes)


def sharing(
    name: str,
    groups: "Sequence[Group]",
    layers: Sequence[Sequence[str]],
    models: Sequence[str],
    *,
    line_length: int | None,
    print_fn: Callable[[str], Any] | None,
) -> None:
    """Prints what a model shares, or a file, or several models if it has no name."""
    console = _console(line_length, print_fn)
    *others, last = (f'"{shown(one)}"' for one in ([name] if name else models))
    subject = f"{', '.join(others)} and {last}" if others else last
    if groups:
        total = sum(len(group.names) for group in groups)
        console.print(f"Tied variables of {subject}", **_PLAIN)
        console.print(_groups("tied", "saves", groups))
        console.print(
            f"{len(groups)} tie group{'s'[: len(groups) > 1]} of {total:,} variables; to store and "
            f"hold them once saves {_bytes(sum(group.nbytes for group in groups))}.",
            **_PLAIN,
        )
    elif layers:
        console.print(f"Shared in {subject}:", **_PLAIN)
    else:
        console.print(f"{subject} {'have' if others else 'has'} no tied variables.", **_PLAIN)
    for names in layers:
        console.print(shown(_in_places(names, models)), **_PLAIN)
    if print_fn:
        for line in console.file.getvalue().splitlines():
            print_fn(line)


def _in_places(names: Sequence[str], models: Sequence[str]) -> str:
    kind = "model" if {*names} & {*models} else "layer"
    places = sorted(names, key=lambda name: name.count("/"))
    return f"One {kind} in {len(names)} places: {' = '.join(places)}"


def verification(found: "Verification") -> None:
    """Prints whether a file is as it was saved."""
    for problem in found.problems:
        _line(str(problem))
    against = {"digests": "the digests of its record", "checksum": "the archive's checksum"}
    if any(problem.is_damage for problem in found.problems):
        _line(f"{found.filepath} is not as it was saved. Problems: {len(found.problems)}")
    elif found.against:
        _line(f"{found.filepath}: {found.tensors} tensors agree with {against[found.against]}.")
    else:
        _line(
            f"{found.filepath}: {found.tensors} tensors can be read, and there is nothing to "
            "verify them against: no digests, and no checksum."
        )


def comparison(found: "Comparison") -> None:
    """Prints how two files differ."""
    if found.is_equal:
        _line(f"{found.compared} variables and all ties are equal.")
    for file, ties, names in (
        (found.a, found.ties_only_in_a, found.only_in_a),
        (found.b, found.ties_only_in_b, found.only_in_b),
    ):
        for held in ties:
            _line(f"Tied only in {file}: {' = '.join(held)}")
        for name in names:
            _line(f"Only in {file}: {name}")
    if found.differences:
        _table(
            ("variable", "largest difference", "mean", "elements"),
            [_difference(one) for one in found.differences],
        )
        _line(f"{len(found.differences)} of {found.compared} variables differ.")


def plan(found: "Plan", dry_run: bool = False) -> None:
    """Prints what a migration would do, or did."""
    version = f", by Keras {found.keras_version}" if found.keras_version else ""
    _line(f"{found.filepath}: {found.kind}{version}")
    _table(
        ("tied variables", "evidence", "saves", "largest difference", "mean", "needs"),
        [_proposal(one) for one in found.proposals],
    )
    if not found.proposals:
        _line(_nothing_to_tie(found.calls))
    for one in found.forbidden:
        told = f"Not tied: {' = '.join(one.names)}: {one.why}"
        _line(f"{told}. To tie them: {', '.join(one.needs)}")
    _notes(found.notes)
    if found.target:
        _line(f"{'Would write' if dry_run else 'Wrote'} {found.target}")


def outcomes(found: "Sequence[Outcome]") -> None:
    """Prints what became of many files."""
    _table(("file", "new file", "ties", "saves"), [_outcome(one) for one in found])
    for one in found:
        _notes(one.plan.notes if one.plan and not one.error else (), f"{one.filepath}: ")
    for one in found:
        if one.error:
            click.echo(f"{shown(one.filepath)}: {shown(one.error)}", err=True)


def exported(found: "Export") -> None:
    """Prints what was exported."""
    _line(f"Wrote {found.target}. Tensors: {found.tensors}; aliases: {len(found.aliases)}")
    _notes(found.notes)


def shown(text: str) -> str:
    """Returns text without what a terminal would take for commands."""
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode()
        for one in text
    )


def _line(text: str) -> None:
    click.echo(shown(text.replace("\n", " ")))


def _notes(notes: Iterable[str], about: str = "") -> None:
    for note in notes:
        _line(f"Note: {about}{note}")


def _groups(title: str, verb: str, groups: "Sequence[Group]", with_evidence: bool = False) -> Any:
    """Makes a table of groups. Those have two variables at least, and so a row has two lines."""
    titles = [title, "shape, dtype", verb, "trainable", *["by"] * with_evidence]
    rows = [
        (
            " =\n".join(group.names),
            f"{group.shape}\n{group.dtype}",
            _bytes(group.nbytes),
            {True: "yes", False: "no", None: "unknown"}[group.trainable],
            ",\n".join(group.evidence) or "equal contents",
        )[: len(titles)]
        for group in groups
    ]
    return _made(titles, rows, lines=True)


def _proposal(one: "Proposal") -> tuple[str, ...]:
    differ = one.largest_difference != 0
    return (
        " = ".join(one.names) + " transposed" * bool(one.axes),
        one.why,
        _bytes(one.bytes_saved),
        f"{one.largest_difference:.3g}" if differ else "",
        f"{one.mean_difference:.3g}" if differ else "",
        " ".join(one.needs),
    )


def _nothing_to_tie(calls: Mapping[str, int]) -> str:
    """Says so; of layers that are called several times also that they are shared as it is."""
    if not calls:
        return "There is nothing to tie, as far as the file tells."
    layers = f"{len(calls)} layers are" if len(calls) > 1 else "1 layer is"
    if len(times := {*calls.values()}) == 1:
        often, told = f"{times.pop()} times", ", ".join(calls)
    else:
        often, told = "several times", ", ".join(f"{one} ({n})" for one, n in calls.items())
    return f"No variable is tied; {layers} called {often}, which needs no tie: {told}."


def _outcome(one: "Outcome") -> tuple[str, ...]:
    if one.plan is None:
        return one.filepath, "failed", "", ""
    target = "failed" if one.error else one.plan.target or "fine"
    ties = one.plan.proposals
    return one.filepath, target, str(len(ties)), _bytes(sum(tie.bytes_saved for tie in ties))


def _difference(one: "Difference") -> tuple[str, ...]:
    name = one.name if one.name == one.name_in_b else f"{one.name} ({one.name_in_b})"
    if one.shape != one.shape_in_b:
        return name, f"shapes {one.shape}, {one.shape_in_b}", "", ""
    infinite = f", {one.infinite} of them by no number" if one.infinite else ""
    kinds = f" ({one.dtype}, {one.dtype_in_b})" if one.dtype != one.dtype_in_b else ""
    return name, f"{one.largest:.3g}{kinds}", f"{one.mean:.3g}", f"{one.elements:,}{infinite}"


def _bytes(count: int) -> str:
    return f"{count:,} bytes"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        _console().print(_made(titles, rows))


def _made(titles: Sequence[str], rows: Sequence[Sequence[str]], lines: bool = False) -> Any:
    from rich.table import Table
    from rich.text import Text

    made = Table(*titles, show_lines=lines)
    for column in made.columns:
        column.overflow = "fold"  # a narrow terminal shows long names on several lines
    for row in rows:
        made.add_row(*(Text(shown(cell)) for cell in row))
    return made


def _console(line_length: int | None = None, print_fn: Any = None) -> Any:
    """Returns where to print; with `print_fn` that is a text without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), color_system=None) if print_fn else Console()
    if line_length or print_fn or not console.is_terminal:
        console.width = line_length or _UNBOUND
    return console


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
