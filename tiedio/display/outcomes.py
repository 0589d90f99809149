"""Print what became of many files: a table, the errors by what to do, and one line of totals."""

import collections
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tiedio.display.printing import bytes_of, line, table
from tiedio.display.tables import not_tied

if TYPE_CHECKING:
    from tiedio.files.many import Outcome


def inspected(outcomes: "Sequence[Outcome]") -> None:
    """Prints what files are."""

    def cells(found: Any) -> tuple[str, ...]:
        wasted = bytes_of(found.bytes_wasted) if found.bytes_wasted else ""
        counts = str(found.variables), str(len(found.tie_groups))
        return found.kind, found.keras_version, *counts, bytes_of(found.bytes_stored), wasted

    _states(("kind", "by Keras", "variables", "ties", "stores", "copies waste"), outcomes, cells)
    _errors(outcomes)
    _totals(outcomes, fine="Inspected")


def verified(outcomes: "Sequence[Outcome]") -> None:
    """Prints whether files are as they were saved."""

    def cells(found: Any) -> tuple[str, ...]:
        return str(found.tensors), found.against

    _states(("tensors", "compared with"), outcomes, cells)
    _errors(outcomes)
    _totals(outcomes, fine="As they were saved")


def planned(outcomes: "Sequence[Outcome]") -> None:
    """Prints which variables of files were tied."""
    _states(("ties", "saves", "needs"), outcomes, lambda plan: (*_ties(plan), _needs(plan)))
    _remarks(outcomes)
    _errors(outcomes)
    _totals(outcomes, fine="With ties", without="nothing to tie")


def migrated(outcomes: "Sequence[Outcome]", dry_run: bool = False) -> None:
    """Prints what became of files that were migrated, or would be."""
    would = "would write" if dry_run else "wrote"
    _states(
        (would, "ties", "saves", "needs"),
        outcomes,
        lambda plan: (plan.target, *_ties(plan), _needs(plan)),
    )
    _remarks(outcomes)
    _errors(outcomes)
    if not dry_run and any(one.state == "needs an option" for one in outcomes):
        line("Run it again with an option that is needed, and `--skip-existing`, for what is left.")
    fine = "Would be migrated with ties" if dry_run else "Migrated with ties"
    _totals(outcomes, fine=fine, without="with nothing to tie")


def passed_over(counted: str) -> None:
    """Prints how many files of folders were not looked at, as `listing.counted` says it."""
    if counted:
        line(f"Not looked at, for what their names end in: {counted}. Name them to have them read.")


def _ties(plan: Any) -> tuple[str, str]:
    saved = sum(one.bytes_saved for one in plan.proposals)
    return str(len(plan.proposals)), bytes_of(saved) if saved else ""


def _needs(plan: Any) -> str:
    needs = plan.needs, *(one.needs for one in plan.proposals)
    return " ".join(dict.fromkeys(itertools.chain(*needs)))


def _states(
    titles: Sequence[str], outcomes: "Sequence[Outcome]", cells: Callable[[Any], tuple[str, ...]]
) -> None:
    empty = ("",) * len(titles)
    rows = []
    for one in outcomes:
        told = cells(one.result) if one.result else (one.skipped, *empty[1:])
        rows.append((one.filepath, str(one.state), *told))
    table(("file", "state", *titles), rows)


def _remarks(outcomes: "Sequence[Outcome]") -> None:
    """Prints hints and notes, each once, with the files that they are of."""
    files = collections.defaultdict(list)
    for one in outcomes:
        hints = map(not_tied, one.result.forbidden) if one.result else ()
        notes = (f"Note: {note}" for note in one.result.notes) if one.result else ()
        for remark in (*hints, *notes):
            files[remark].append(one.filepath)
    for remark, held in files.items():
        line(f"{remark.removesuffix('.')}. Files: {', '.join(held)}")


def _errors(outcomes: "Sequence[Outcome]") -> None:
    """Prints errors, those together that ask for the same."""
    by_advice = collections.defaultdict(list)
    for one in outcomes:
        if one.error:
            *told, advice = str(one.error).splitlines() or [type(one.error).__name__]
            what = " ".join(told or [advice]).removeprefix(f"`{one.filepath}` ")
            by_advice[one.state, advice if told else "It failed:"].append((one.filepath, what))
    for (state, advice), held in sorted(by_advice.items(), key=lambda item: item[0][0] == "failed"):
        need = "needs an option" if len(held) == 1 else "need an option"
        line(f"{_files(len(held))} {'failed' if state == 'failed' else need}. {advice}", err=True)
        for filepath, what in held:
            line(f"  {filepath}: {what}", err=True)


def _totals(outcomes: "Sequence[Outcome]", fine: str, without: str = "") -> None:
    """Prints how many files are in each state; those without ties apart, if that has a name."""
    counts = collections.Counter(str(one.state) for one in outcomes)
    told = {fine: counts["fine"]}
    if without:
        told[without] = sum(one.state == "fine" and not one.result.proposals for one in outcomes)
        told[fine] -= told[without]
    told |= {state: counts[state] for state in ("skipped", "needs an option", "failed")}
    told = {name: count for name, count in told.items() if count or name in (fine, "failed")}
    line(f"{_files(len(outcomes))}. {'; '.join(f'{n}: {c}' for n, c in told.items())}")


def _files(count: int) -> str:
    return f"{count} file{'s'[: count != 1]}"
