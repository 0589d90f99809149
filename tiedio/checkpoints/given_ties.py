"""Ties that the user states, as `decoder/kernel=encoder/kernel`, by the names of variables."""

from collections.abc import Iterable, Sequence

from tiedio.checkpoints.variables import StoredVariable
from tiedio.errors import TieError, texts


def parsed(ties: Iterable[str]) -> list[tuple[str, str]]:
    """Reads ties such as `decoder/kernel=encoder/kernel`, or `decoder=encoder` for whole layers.

    Returns:
        What is tied, and to what.

    Raises:
        TieError: If a text is not of this form.
    """
    pairs = []
    advice = "Pass a list of such texts, as `decoder/kernel=encoder/kernel`."
    for tie in texts("ties", ties, "ties as texts", advice):
        alias, _, owner = (part.strip() for part in tie.partition("="))
        if not (alias and owner):
            raise TieError(
                f"Cannot read the tie `{tie}`.\n"
                f"Expected: two names, as in `decoder/kernel=encoder/kernel`. Received: {tie!r}.\n"
                "Name the alias, then its owner."
            )
        pairs.append((alias, owner))
    return pairs


def owner_given(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    """Returns the variable that another one is tied to, by itself or with its layer."""
    for alias, owner in pairs:
        if name == alias or name.startswith(f"{alias}/"):
            return f"{owner}{name.removeprefix(alias)}"
    return None


def given_by_name(
    pairs: Iterable[tuple[str, str]], variables: Sequence[StoredVariable]
) -> list[tuple[str, str]]:
    """Pairs variables with those that they are tied to; of two layers, those that both have."""
    names = {one.name for one in variables}
    given: set[tuple[str, str]] = set()
    for pair in pairs:
        owners = {name: owner_given(name, [pair]) for name in names}
        given.update({(name, owner) for name, owner in owners.items() if owner in names} or {pair})
    return sorted(given)
