"""Ties that the user states, as `decoder/kernel=encoder/kernel`: what they call variables."""

import posixpath
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


def found(called: str, variables: Sequence[StoredVariable]) -> list[StoredVariable]:
    """Finds variables by what a person calls them, or their layer.

    That is a name as `plan` prints it, and else a path in the file, where layers go by the
    attributes of their model: `decoder/out`. Where the file has no names, that of the only
    variable of a layer is taken as the live model has it: `dense/kernel` for `dense/0`.
    """
    layer, _, name = called.rpartition("/")
    return (
        [one for one in variables if _is_within(one.name, called)]
        or [one for one in variables if one.place and _is_within(_path(one), called)]
        or _only_one(layer, name, variables)
    )


def given_by_name(
    pairs: Iterable[tuple[str, str]], variables: Sequence[StoredVariable]
) -> list[tuple[str, str]]:
    """Pairs variables with those that they are tied to; of two layers, those that both have."""
    given: set[tuple[str, str]] = set()
    for pair in pairs:
        several = [found(called, variables) for called in pair]
        is_named = all(
            _is_within(one.name, called)
            for called, held in zip(pair, several, strict=True)
            for one in held
        )
        aliases, owners = (
            {one.name.removeprefix(called): one for one in held} if is_named else _by_path(held)
            for called, held in zip(pair, several, strict=True)
        )
        both = {(one.name, owners[key].name) for key, one in aliases.items() if key in owners}
        given.update(both or {pair})
    return sorted(given)


def _is_within(path: str, around: str) -> bool:
    return f"{path}/".startswith(f"{around}/")


def _path(variable: StoredVariable) -> str:
    return str(variable.place and variable.place.dataset_path)


def _only_one(layer: str, name: str, variables: Sequence[StoredVariable]) -> list[StoredVariable]:
    """The variable of a layer that has one, if the file does not say what that is called.

    A layer with one variable has no bias.
    """
    if name == "bias" or name.isdecimal():
        return []
    held = [one for one in variables if layer in (_layer(one.name), _layer(_path(one), "/vars"))]
    return held if len(held) == 1 and held[0].name.rpartition("/")[2].isdecimal() else []


def _layer(path: str, ending: str = "") -> str:
    return path.rpartition("/")[0].removesuffix(ending)


def _by_path(held: Sequence[StoredVariable]) -> dict[str, StoredVariable]:
    """Maps paths, below what is around all of these, to variables."""
    if len(held) == 1:
        return {"": held[0]}
    around = posixpath.commonpath([posixpath.dirname(_path(one)) for one in held]) if held else ""
    return {_path(one).removeprefix(around): one for one in held}
