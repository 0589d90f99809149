"""Print what the command line found.

How results look is decided here, and nothing else.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tiedio.display.printing import PLAIN, bytes_of, console_for, line, notes, show, shown, table

if TYPE_CHECKING:
    from tiedio.migration.proposals import Plan, Proposal
    from tiedio.tools.comparison import Comparison, Difference
    from tiedio.tools.export import Export
    from tiedio.tools.inspection import Group, Inspection
    from tiedio.tools.installation import Part
    from tiedio.tools.verification import Verification


def inspection(found: "Inspection") -> None:
    """Prints what a file is."""
    many = f"{len(found.models)} models" if found.models else "a whole model"
    line(f"{found.filepath}: {found.kind.replace('a whole model', many)}")
    line(
        f"Written by Keras {found.keras_version or '(it does not say which)'}"
        + (f", {found.date_saved}" if found.date_saved else "")
        + (f", with a record of version {found.record_version}" if found.record_version else "")
    )
    if found.models:
        line(f"Models: {', '.join(found.models)}")
    line(f"Variables: {found.variables}; tie groups: {len(found.tie_groups)}")
    line(f"Optimizer: {found.optimizer or 'none'}")
    line(
        f"Stores {bytes_of(found.bytes_stored)}; sharing saves {bytes_of(found.bytes_shared)}, "
        f"equal copies waste {bytes_of(found.bytes_wasted)}"
    )
    for title, verb, groups in (
        ("tied", "saves", found.tie_groups),
        ("equal copies", "waste", found.copies),
    ):
        if groups:
            show(console_for(), *_groups(title, verb, groups, with_evidence=True), lines=True)
    for names in found.shared_layers:
        line(_in_places(names, found.models))
    notes(found.notes)


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
    console = console_for(line_length, print_fn)
    *others, last = (f'"{shown(one)}"' for one in ([name] if name else models))
    subject = f"{', '.join(others)} and {last}" if others else last
    if groups:
        total = sum(len(group.names) for group in groups)
        console.print(f"Tied variables of {subject}", **PLAIN)
        show(console, *_groups("tied", "saves", groups), lines=True)
        console.print(
            f"{len(groups)} tie group{'s'[: len(groups) > 1]} of {total:,} variables; to store and "
            f"hold them once saves {bytes_of(sum(group.nbytes for group in groups))}.",
            **PLAIN,
        )
    elif layers:
        console.print(f"Shared in {subject}:", **PLAIN)
    else:
        console.print(f"{subject} {'have' if others else 'has'} no tied variables.", **PLAIN)
    for names in layers:
        console.print(shown(_in_places(names, models)), **PLAIN)
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
        line(str(problem))
    against = {
        "digests": "the digests of its record",
        "checksum": "the archive's checksum",
        "checksums": "their checksums",
    }
    if any(problem.is_damage for problem in found.problems):
        line(f"{found.filepath} is not as it was saved. Problems: {len(found.problems)}")
    elif found.against:
        line(f"{found.filepath}: {found.tensors} tensors agree with {against[found.against]}.")
    else:
        line(
            f"{found.filepath}: {found.tensors} tensors can be read, and there is nothing to "
            "verify them against: no digests, and no checksum."
        )


def comparison(found: "Comparison") -> None:
    """Prints how two files differ."""
    if found.is_equal:
        line(f"{found.compared} variables and all ties are equal.")
    if not found.is_of_one_model:
        line(
            f"These are different models: fewer than half of the variables of {found.a} or "
            f"{found.b} have a counterpart of their name and shape. Nothing was compared."
        )
        return
    for file, ties, names in (
        (found.a, found.ties_only_in_a, found.only_in_a),
        (found.b, found.ties_only_in_b, found.only_in_b),
    ):
        for held in ties:
            line(f"Tied only in {file}: {' = '.join(held)}")
        for name in names:
            line(f"Only in {file}: {name}")
    if found.differences:
        table(
            ("variable", "largest difference", "mean", "elements"),
            [_difference(one) for one in found.differences],
        )
        line(f"{len(found.differences)} of {found.compared} variables differ.")


def plan(found: "Plan", dry_run: bool = False) -> None:
    """Prints what a migration would do, or did."""
    version = f", by Keras {found.keras_version}" if found.keras_version else ""
    line(f"{found.filepath}: {found.kind}{version}")
    table(
        ("tied variables", "evidence", "saves", "largest difference", "mean", "needs"),
        [_proposal(one) for one in found.proposals],
    )
    if not found.proposals:
        line(_nothing_to_tie(found.calls))
    for one in found.forbidden:
        line(not_tied(one))
    notes((*found.notes, *map(unused, found.unused)))
    if found.target:
        line(f"{'Would write' if dry_run else 'Wrote'} {found.target}")
    if found.offers:
        options = (*found.needs, *found.offers)
        told = command(found.filepath, found, options, is_written=not dry_run)
        line("To have more done, beside what was given:")
        line(f"  {told}", whole=True)  # to be copied


def exported(found: "Export") -> None:
    """Prints what was exported."""
    line(f"Wrote {found.target}. Tensors: {found.tensors}; aliases: {len(found.aliases)}")
    notes(found.notes)


def _groups(
    title: str, verb: str, groups: "Sequence[Group]", with_evidence: bool = False
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns titles and rows. Groups have two variables at least, and so a row has two lines."""
    titles = [title, "shape, dtype", verb, "trainable", *["by"] * with_evidence]
    rows = [
        (
            " =\n".join(group.names),
            f"{group.shape}\n{group.dtype}",
            bytes_of(group.nbytes),
            {True: "yes", False: "no", None: "unknown"}[group.trainable],
            ",\n".join(group.evidence) or "equal contents",
        )[: len(titles)]
        for group in groups
    ]
    return titles, rows


def not_tied(one: "Proposal") -> str:
    """Says why variables that are equal were not tied."""
    return f"Not tied: {' = '.join(one.names)}: {one.why}."


def unused(name: str) -> str:
    """Says that a function was given for nothing."""
    return f"There is no function at `{name}`: `--lambda {name}=...` is not used."


def command(
    filepath: str, found: "Plan | None", options: Iterable[str], *, is_written: bool
) -> str:
    """Returns the command that migrates one file by itself, with options.

    Args:
        filepath: The file.
        found: What became of it, if that is known.
        options: The options.
        is_written: Whether its target was written, if it has one.
    """
    target = found.target if found else ""
    told = ["tiedio migrate", shlex.quote(filepath), shlex.quote(target) if target else "DST"]
    return " ".join([*told, *["--overwrite"] * bool(target and is_written), *options])


def _proposal(one: "Proposal") -> tuple[str, ...]:
    differ = one.largest_difference != 0
    return (
        " = ".join(one.names) + " transposed" * bool(one.axes),
        one.why,
        bytes_of(one.bytes_saved),
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


def _difference(one: "Difference") -> tuple[str, ...]:
    name = one.name if one.name == one.name_in_b else f"{one.name} ({one.name_in_b})"
    if one.shape != one.shape_in_b:
        return name, f"shapes {one.shape}, {one.shape_in_b}", "", ""
    infinite = f", {one.infinite} of them by no number" if one.infinite else ""
    kinds = f" ({one.dtype}, {one.dtype_in_b})" if one.dtype != one.dtype_in_b else ""
    return name, f"{one.largest:.3g}{kinds}", f"{one.mean:.3g}", f"{one.elements:,}{infinite}"


def installation(parts: "Iterable[Part]") -> None:
    """Prints what is installed, one line each, as it can be pasted anywhere. Needs no package."""
    for part in parts:
        told = [part.version or "missing", *filter(None, [part.note])]
        line(f"{part.name:<18}{', '.join(told)}", whole=True)
