"""Print what became of many files: a table, the errors by what to do, and one line of totals."""

import collections
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tiedio.display.printing import line, report, table
from tiedio.record.report import Command, bytes_of, notes

if TYPE_CHECKING:
    from tiedio.files.many import Outcome

UNVERIFIED = "nothing to verify against"
_DONE = ("fine", "read")
# Options that are of one file, and not of all that are migrated.
_OWN = ("--config", "--tie")


def inspected(outcomes: "Sequence[Outcome]") -> None:
    """Prints what files are."""

    def cells(found: Any) -> tuple[str, ...]:
        wasted = bytes_of(found.bytes_wasted) if found.bytes_wasted else ""
        counts = str(found.variables), str(len(found.tie_groups))
        return found.kind, found.keras_version, *counts, bytes_of(found.bytes_stored), wasted

    titles = ("kind", "by Keras", "variables", "ties", "stores", "copies waste")
    _states(titles, outcomes, cells)
    _errors(outcomes)
    _totals(outcomes, fine="Inspected")


def verified(outcomes: "Sequence[Outcome]") -> None:
    """Prints whether files are as they were saved."""

    def cells(found: Any) -> tuple[str, ...]:
        return str(found.tensors), found.against

    _states(("tensors", "compared with"), outcomes, cells)
    if any(one.state == UNVERIFIED for one in outcomes):
        line("What has neither digests nor a checksum gets digests from `tiedio migrate`.")
    _errors(outcomes)
    _totals(outcomes, fine="As they were saved")


def planned(outcomes: "Sequence[Outcome]") -> None:
    """Prints which variables of files were tied."""
    _states(("ties", "saves"), outcomes, _ties)
    _remarks(outcomes)
    _errors(outcomes)
    _by_itself(outcomes)
    _totals(outcomes, fine="With ties", without="nothing to tie")


def migrated(outcomes: "Sequence[Outcome]", dry_run: bool = False) -> None:
    """Prints what became of files that were migrated, or would be."""
    would = "would write" if dry_run else "wrote"
    _states((would, "ties", "saves"), outcomes, lambda plan: (plan.target, *_ties(plan)))
    _remarks(outcomes)
    _errors(outcomes)
    _by_itself(outcomes)
    needs = dict.fromkeys(need for one in outcomes for need in one.needs)
    if shared := [f"`{need}`" for need in needs if not need.startswith((*_OWN, "--overwrite"))]:
        told = f"with `--skip-existing` and {', '.join(shared)}"
        line(f"For what is left, {'run it' if dry_run else 'run it again'} {told}.")
    fine = "Would be migrated with ties" if dry_run else "Migrated with ties"
    _totals(outcomes, fine=fine, without="with nothing to tie")


def passed_over(counted: str) -> None:
    """Prints how many files of folders were not looked at, as `listing.counted` says it."""
    if counted:
        line(f"Not looked at, for what their names end in: {counted}. Name them to have them read.")


def _ties(plan: Any) -> tuple[str, str]:
    saved = sum(one.bytes_saved for one in plan.proposals)
    return str(len(plan.proposals)), bytes_of(saved) if saved else ""


def _states(
    titles: Sequence[str], outcomes: "Sequence[Outcome]", cells: Callable[[Any], tuple[str, ...]]
) -> None:
    """Prints a row for each file of which there is more to say than why it failed."""
    empty = ("",) * len(titles)
    rows = [
        (
            one.filepath,
            str(one.state),
            *(cells(one.result) if one.result else empty),
            " ".join(one.needs),
        )
        for one in outcomes
        if one.result or one.needs
    ]
    table(("file", "state", *titles, "needs"), rows)


def _remarks(outcomes: "Sequence[Outcome]") -> None:
    """Prints hints and notes, each once, with the files that they are of."""
    from tiedio.migration.proposals import unused

    files = collections.defaultdict(list)
    for one in outcomes:
        hints = (equal.not_tied for equal in one.result.forbidden) if one.result else ()
        told = (f"Note: {note}" for note in one.result.notes) if one.result else ()
        for remark in (*hints, *told):
            files[remark].append(one.filepath)
    for remark, held in files.items():
        line(f"{remark.removesuffix('.')}. Files: {', '.join(held)}")
    idle = [{*one.result.unused} for one in outcomes if one.result]
    report(notes(map(unused, sorted(set.intersection(*idle) if idle else ()))))


def _by_itself(outcomes: "Sequence[Outcome]") -> None:
    """Prints commands for what an option does that is of one file only."""
    from tiedio.migration.proposals import command

    told = []
    for one in outcomes:
        offers = one.result.offers if one.result else ()
        if offers or any(need.startswith(_OWN) for need in one.needs):
            options = (*one.needs, *offers)
            told.append(Command(command(one.filepath, one.result, options)))
    if told:
        report(["To have more done, with a file by itself, beside what was given:", *told])


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
        each = "For each: " if len(held) > 1 else ""
        line(f"{_files(len(held))} {'failed' if state == 'failed' else need}. {each}{advice}")
        for filepath, what in held:
            line(f"  {filepath}: {what}")


def _totals(outcomes: "Sequence[Outcome]", fine: str, without: str = "") -> None:
    """Prints how many files are in each state; those without ties apart, if that has a name."""
    counts = collections.Counter(str(one.state) for one in outcomes)
    done = [one for one in outcomes if one.state in _DONE]
    told = {fine: len(done)}
    if without:
        told[without] = sum(not one.result.proposals for one in done)
        told[fine] -= told[without]
    others = (UNVERIFIED, "skipped", "needs an option", "failed")
    told |= {state: counts[state] for state in others}
    told = {name: count for name, count in told.items() if count or name in (fine, "failed")}
    line(f"{_files(len(outcomes))}. {'; '.join(f'{n}: {c}' for n, c in told.items())}")


def _files(count: int) -> str:
    return f"{count} file{'s'[: count != 1]}"
