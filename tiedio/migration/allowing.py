"""Tell what has to be allowed before a plan is carried out, and whether it was."""

import dataclasses
from collections.abc import Collection, Sequence

from tiedio.checkpoints.given_ties import found
from tiedio.checkpoints.stated_ties import Evidence
from tiedio.checkpoints.variables import StoredVariable
from tiedio.errors import MigrationError, OptionNeededError, listed, texts
from tiedio.keras_versions.config_translation import Translated
from tiedio.keras_versions.lambdas import options
from tiedio.migration.proposals import Plan, Proposal

RECONCILE = ("error", "owner", "mean")
ACCEPT_CONTENTS, RECONCILE_OWNER = "--accept contents", "--reconcile owner"


def check_rule(reconcile: str) -> None:
    """Raises `MigrationError` if there is no such rule to reconcile copies."""
    if reconcile not in RECONCILE:
        raise MigrationError(
            f"There is no rule `{reconcile}` to reconcile copies.\n"
            f"Expected: one of {listed(RECONCILE)}. Received: {reconcile!r}.\n"
            "Pass one of these as `--reconcile`."
        )


def check_used(translated: Translated, filepath: str) -> None:
    """Raises `MigrationError` if functions were given for what has none, as if misspelled."""
    if translated.unused:
        code = listed({one.name for one in translated.code})
        error = MigrationError(
            f"`{filepath}` has no functions at {listed(translated.unused)}.\n"
            f"Expected: {f'some of {code}' if code else 'no more functions'}. "
            f"Received: {listed(translated.unused)}.\n"
            "Give functions by the names that `tiedio plan` lists."
        )
        error.unused = translated.unused
        raise error


def narrowed(
    planned: Plan,
    accept: Collection[str],
    reconcile: str,
    *,
    variables: Sequence[StoredVariable],
    as_model: bool,
) -> Plan:
    """Returns a plan without what was not accepted; the rest needs only what was not given.

    Args:
        planned: The plan.
        accept: As in `migrate`.
        reconcile: As in `migrate`.
        variables: Those of the file.
        as_model: Whether a model is written, and not weights only, which need no functions.

    Raises:
        MigrationError: If `accept` names what is not proposed.
    """
    accept = texts("accept", accept, "`contents`, `none` or names", "Pass a list of these.")
    names = {name for one in planned.proposals for name in one.names}
    called = {*accept} - {"contents", "none"}
    chosen = {text: names & {one.name for one in found(text, variables)} for text in called}
    if unknown := [text for text, held in chosen.items() if not held]:
        raise MigrationError(
            f"Nothing is proposed for {listed(unknown)}.\n"
            f"Expected: `contents`, `none`, or some of {listed(names) or 'no variables'}. "
            f"Received: {listed(unknown)}.\n"
            "`tiedio plan` lists what is proposed; `--tie` ties other variables."
        )
    accepted = set[str]().union(*chosen.values())

    def is_chosen(one: Proposal) -> bool:
        is_weak = one.evidence is Evidence.CONTENTS
        return (
            not (is_weak and accept) or "contents" in accept or not accepted.isdisjoint(one.names)
        )

    given = {ACCEPT_CONTENTS: bool(accept), RECONCILE_OWNER: reconcile != "error"}
    return dataclasses.replace(
        planned,
        code=planned.code if as_model else {},
        proposals=tuple(
            dataclasses.replace(one, needs=tuple(need for need in one.needs if not given.get(need)))
            for one in planned.proposals
            if is_chosen(one)
        ),
    )


def check(planned: Plan) -> None:
    """Raises an error if a plan cannot be carried out as it is.

    Raises:
        OptionNeededError: If an option is needed. The error names it, and has the plan.
        MigrationError: If none helps.
    """
    if planned.refused and not planned.lacks_config:
        raise MigrationError(planned.refused)
    if error := _option_needed(planned):
        error.plan, error.needs = planned, planned.needs
        raise error


def _option_needed(planned: Plan) -> OptionNeededError | None:
    if planned.refused:
        return OptionNeededError(planned.refused)
    if planned.code:
        return OptionNeededError(
            f"Cannot migrate `{planned.filepath}` as a model: it holds the functions of "
            f"{listed(planned.code)} as code.\n"
            f"Expected: names of functions. Received: "
            f"{', '.join(sorted({*planned.code.values()}))}, which does not run in Python 3.11 or "
            "later.\n"
            f"Pass `{options(planned.code)}`, or a path ending in `.weights.h5` for weights only."
        )
    weak = [one for one in planned.proposals if ACCEPT_CONTENTS in one.needs]
    if weak:
        return OptionNeededError(
            f"Cannot tell whether these were tied: {listed(' = '.join(one.names) for one in weak)}."
            "\nExpected: more than equal contents. Received: no more.\n"
            "Pass `--accept contents` to tie them all, `--accept NAME` to tie those equal to NAME, "
            "or `--accept none`."
        )
    diverged = [one for one in planned.proposals if RECONCILE_OWNER in one.needs]
    if diverged:
        told = (
            f"{' = '.join(one.names)} by up to {one.largest_difference:.3g}" for one in diverged
        )
        return OptionNeededError(
            f"The copies of {listed(one.owner for one in diverged)} have different values.\n"
            f"Expected: equal ones. Received: {'; '.join(told)}.\n"
            "Pass `--reconcile owner` to keep the value of the first, or `--reconcile mean`."
        )
    return None
