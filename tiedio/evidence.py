"""Find out from a file which of its variables were one, and how sure that is.

A record, hard links, names and object graphs say it. Equal contents do not: an optimizer
keeps its slots once for each variable, so these say how many of the equal ones were copies.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from tiedio.checkpoint import Checkpoint, Evidence, StoredVariable, Tie
from tiedio.errors import TieError, listed
from tiedio.hdf5 import CHUNK, begin_digest, cut

# Fewer elements, or fewer different ones, may be equal by chance: constants, identities.
_FEWEST_ELEMENTS = 8
_FEWEST_VALUES = 3


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a file says of ties.

    Attributes:
        ties: Those that something speaks for.
        forbidden: Those of equal contents that the optimizer's state speaks against.
        notes: What could not be explained.
    """

    ties: tuple[Tie, ...]
    forbidden: tuple[Tie, ...]
    notes: tuple[str, ...]


class Contents:
    """The values of a checkpoint's variables, compared without keeping them in memory."""

    def __init__(self, checkpoint: Checkpoint):
        self._tensors = checkpoint.tensors
        self._digests: dict[str, str] = {}
        self._telling: dict[str, bool] = {}

    def digest(self, source: str) -> str:
        """Returns a digest of the tensor at a path."""
        if source not in self._digests:
            value = np.ascontiguousarray(self._tensors.read(source))
            digest = begin_digest(value.dtype, value.shape)
            for part in cut(value, CHUNK):
                digest.update(part)
            self._digests[source] = digest.hexdigest()
            few = value.size < _FEWEST_ELEMENTS
            self._telling[source] = not few and len(np.unique(value)) >= _FEWEST_VALUES
        return self._digests[source]

    def equal(self, *variables: StoredVariable) -> bool:
        """Whether variables have the same shape, dtype and bytes."""
        kinds = {(one.shape, one.dtype) for one in variables}
        return len(kinds) == 1 and len({self.digest(one.source) for one in variables}) == 1

    def are_telling(self, variable: StoredVariable) -> bool:
        """Whether that another one is equal says anything."""
        self.digest(variable.source)
        return self._telling[variable.source]

    def is_zero(self, source: str) -> bool:
        return not np.any(self._tensors.read(source))


def find(checkpoint: Checkpoint, given: Mapping[str, str], contents: Contents) -> Findings:
    """Finds the ties of a checkpoint.

    Args:
        checkpoint: The file.
        given: Names of variables that are one with others, and of those.
        contents: Its values.

    Raises:
        TieError: If `given` names variables that are not there, or of other shapes.
    """
    by_name = {one.name: one for one in checkpoint.variables}
    _check_given(checkpoint, given, by_name)
    ties = stated(checkpoint, contents)
    known = joined(ties)
    given_ties = [
        Tie((owner, alias), Evidence.GIVEN, "given by you") for alias, owner in given.items()
    ]
    slots = _SlotCount(checkpoint, known, contents)
    confirmed, proposed, forbidden = [], [], []
    together = joined([*ties, *given_ties])
    for group in _equal(checkpoint, known, contents):
        names = tuple(one.name for one in group)
        if len({together.get(name, name) for name in names}) == 1:
            continue  # said already
        for part, verdict, why in slots.judged(group):
            tie = Tie(tuple(one.name for one in part), Evidence.CONTENTS, why)
            if verdict is True:
                confirmed.append(dataclasses.replace(tie, evidence=Evidence.SLOTS))
            elif verdict is False:
                forbidden.append(tie)
            elif contents.are_telling(part[0]):
                proposed.append(tie)
    return Findings(
        (*ties, *given_ties, *confirmed, *proposed), tuple(forbidden), tuple(slots.notes)
    )


def stated(checkpoint: Checkpoint, contents: Contents) -> list[Tie]:
    """Lists the ties that a file states: in a record, by hard links, by names or a graph."""
    return [
        *_recorded(checkpoint),
        *_linked(checkpoint),
        *checkpoint.ties,
        *_named(checkpoint, contents),
    ]


def joined(ties: Iterable[Tie]) -> dict[str, str]:
    """Maps each variable that is tied to the owner of all that it is one with."""
    owners: dict[str, str] = {}

    def owner(name: str) -> str:
        while owners.setdefault(name, name) != name:
            name = owners[name]
        return name

    for tie in ties:
        first, *others = map(owner, tie.names)
        for other in others:
            if other != first:
                owners[other] = first
    return {name: owner(name) for name in owners}


def _check_given(
    checkpoint: Checkpoint, given: Mapping[str, str], by_name: Mapping[str, StoredVariable]
) -> None:
    unknown = {name for pair in given.items() for name in pair if name not in by_name}
    if unknown:
        raise TieError(
            f"`{checkpoint.filepath}` has no {listed(unknown)}.\n"
            f"Expected: some of {listed(by_name)}. Received: {listed(unknown)}.\n"
            "Name variables as `tiedio plan` prints them, or layers."
        )
    differing = {
        alias: owner
        for alias, owner in given.items()
        if (by_name[alias].shape, by_name[alias].dtype)
        != (by_name[owner].shape, by_name[owner].dtype)
    }
    if differing:
        facts = (
            f"`{name}`: {by_name[name].shape} {by_name[name].dtype}"
            for pair in differing.items()
            for name in pair
        )
        raise TieError(
            f"Cannot tie {listed(differing)}: shapes or dtypes differ.\n"
            f"Expected: equal ones. Received: {'; '.join(dict.fromkeys(facts))}.\n"
            "Tie only variables of equal shape and dtype."
        )


def _recorded(checkpoint: Checkpoint) -> Iterator[Tie]:
    """Yields the ties of the record."""
    if checkpoint.record is None:
        return
    by_source = {one.source: one.name for one in checkpoint.variables}
    for group in checkpoint.record.tie_groups:
        names = tuple(by_source[path] for path in group.dataset_paths if path in by_source)
        if len(names) > 1:
            yield Tie(names, Evidence.RECORD, "the record of the file says so")


def _linked(checkpoint: Checkpoint) -> Iterator[Tie]:
    """Yields what is one tensor in the file, unless its layout says so already."""
    said = joined(checkpoint.ties)
    held = collections.defaultdict(list)
    for one in checkpoint.variables:
        if said.get(one.name, one.name) == one.name:
            held[checkpoint.tensors.address(one.source)].append(one.name)
    for names in held.values():
        if len(names) > 1:
            yield Tie(tuple(names), Evidence.LINKS, "the file stores them once")


def _named(checkpoint: Checkpoint, contents: Contents) -> Iterator[Tie]:
    """Yields what the layout of Keras 2 lists under the name of another layer.

    In multi-backend Keras 2 no two variables have one name, so that equal ones say it too.
    """
    own = collections.defaultdict(list)
    foreign = []
    for one in checkpoint.variables:
        if not one.listed:
            continue
        makers = set(one.listed.split("/")[:-1])
        if not makers or makers & set(one.layer.split("/")):
            own[one.listed].append(one)
        else:
            foreign.append(one)
    layers = {name for one in checkpoint.variables for name in one.layer.split("/")}
    for one in foreign:
        owners = [other for other in own.get(one.listed, ()) if contents.equal(one, other)]
        if len(owners) == 1 and one.listed.split("/")[-2] in layers:
            why = f"it is listed as `{one.listed}`"
            yield Tie((owners[0].name, one.name), Evidence.FINGERPRINT, why)
    if checkpoint.has_slots_per_use:
        for name, (first, *others) in own.items():
            for other in others:
                if contents.equal(first, other):
                    why = f"both are listed as `{name}`, which was the name of one variable"
                    yield Tie((first.name, other.name), Evidence.FINGERPRINT, why)


def _equal(
    checkpoint: Checkpoint, known: Mapping[str, str], contents: Contents
) -> Iterator[list[StoredVariable]]:
    """Yields the variables of equal contents; of those known to be one, the owner only."""
    distinct = [one for one in checkpoint.variables if known.get(one.name, one.name) == one.name]
    kinds = collections.defaultdict(list)
    for one in distinct:
        kinds[one.shape, one.dtype].append(one)
    for alike in kinds.values():
        if len(alike) < 2:
            continue
        held = collections.defaultdict(list)
        for one in alike:
            held[contents.digest(one.source)].append(one)
        yield from (group for group in held.values() if len(group) > 1)


class _SlotCount:
    """What the state of the optimizer says of variables that are equal.

    Attributes:
        notes: What it leaves open.
    """

    def __init__(self, checkpoint: Checkpoint, known: Mapping[str, str], contents: Contents):
        self.notes: list[str] = []
        self._contents = contents
        self._slots = checkpoint.slots if checkpoint.slots and checkpoint.slots.kinds else None
        self._per_use = checkpoint.has_slots_per_use
        self._trained = [one for one in checkpoint.variables if one.trainable is not False]
        self._distinct = [one for one in self._trained if known.get(one.name, one.name) == one.name]
        self._groups = collections.defaultdict(list)
        for group in _equal(checkpoint, known, contents):
            trained = [one for one in group if one.trainable is not False]
            if len(trained) > 1:
                self._groups[group[0].shape].append(trained)
        self._copies = self._count()

    def _count(self) -> dict[tuple[int, ...], int] | None:
        """Counts the copies of each shape: variables, less those that have slots."""
        if self._slots is None or self._per_use or not self._slots.variables:
            return None
        stored = collections.Counter(one.shape for one in self._distinct)
        with_slots = collections.Counter(
            next(iter(kinds.values())).shape for kinds in self._slots.variables
        )
        copies = {shape: count - with_slots[shape] for shape, count in stored.items()}
        if min(copies.values(), default=0) < 0 or set(with_slots) - set(stored):
            self.notes.append(
                "The optimizer's state does not fit the variables of the layers, and says nothing "
                "of ties."
            )
            return None
        for shape, count in copies.items():
            equal = sum(len(group) - 1 for group in self._groups[shape])
            if count > equal:
                self.notes.append(
                    f"{count} variables of shape {shape} have no state in the optimizer, and only "
                    f"{equal} equal others: they were frozen, or tied and changed since."
                )
        return copies

    def judged(
        self, group: Sequence[StoredVariable]
    ) -> Iterator[tuple[Sequence[StoredVariable], bool | None, str]]:
        """Yields parts of a group of equal variables, and whether each is one variable.

        `None` means that nothing says so, or denies it.
        """
        trained = [one for one in group if one.trainable is not False]
        frozen = [one for one in group if one.trainable is False]
        if len(frozen) > 1:
            yield frozen, None, "equal contents; they are not trained"
        if len(trained) < 2:
            return
        if self._per_use and self._slots:
            yield from self._judged_by_use(trained)
        elif self._copies is None:
            yield trained, None, "equal contents"
        else:
            yield self._judged_by_count(trained, self._copies[trained[0].shape])

    def _judged_by_count(
        self, trained: Sequence[StoredVariable], copies: int
    ) -> tuple[Sequence[StoredVariable], bool | None, str]:
        groups = self._groups[trained[0].shape]
        possible = sum(len(one) - 1 for one in groups)
        if copies <= 0:
            return (
                trained,
                False,
                "equal contents, but each has a state of its own in the optimizer",
            )
        unsure = any(
            one.trainable is None for one in self._distinct if one.shape == trained[0].shape
        )
        if possible == copies and not unsure:
            return trained, True, f"equal contents, and {copies} fewer in the optimizer's state"
        named = self._told_by_names(groups)
        if named is not None and len(named) == copies and not unsure:
            mine = [one for one in trained if one.name in named]
            if not mine:
                return trained, False, "equal contents, but the optimizer's state names each"
            if len(mine) == len(trained) - 1:
                return trained, True, "equal contents, and the optimizer's state names one of them"
        return (
            trained,
            None,
            f"equal contents; of {possible} such copies the optimizer's state has {copies}",
        )

    def _told_by_names(self, groups: Sequence[Sequence[StoredVariable]]) -> set[str] | None:
        """Names the variables without slots, where the names of slots tell."""
        hints = {hint.replace("/", "_") for hint in self._slots.hints} if self._slots else set()
        if "" in hints or not hints:
            return None
        of = {one.name: one.listed.replace("/", "_") for one in itertools.chain(*groups)}
        names = collections.Counter(of.values())
        if "" in names or max(names.values()) > 1:
            return None
        return {name for name, listed_as in of.items() if listed_as not in hints}

    def _judged_by_use(
        self, trained: Sequence[StoredVariable]
    ) -> Iterator[tuple[Sequence[StoredVariable], bool | None, str]]:
        slots = self._slots.variables if self._slots else ()
        if len(slots) != len(self._trained):
            yield trained, None, "equal contents"
            return
        of = {one.name: kinds for one, kinds in zip(self._trained, slots, strict=True)}
        held = collections.defaultdict(list)
        for one in trained:
            paths = [weight.dataset_path for weight in of[one.name].values()]
            held[tuple(map(self._contents.digest, paths))].append((one, paths))
        for alike in held.values():
            if len(alike) > 1:
                moved = any(not self._contents.is_zero(path) for path in alike[0][1])
                why = "equal contents, and equal states in the optimizer"
                yield [one for one, _ in alike], moved or None, why
        if len(held) == len(trained):
            yield trained, False, "equal contents, but other states in the optimizer"


def parsed(ties: Iterable[str]) -> list[tuple[str, str]]:
    """Reads ties such as `decoder/kernel=encoder/kernel`, or `decoder=encoder` for whole layers.

    Returns:
        What is tied, and to what.

    Raises:
        TieError: If one is no such text.
    """
    pairs = []
    for tie in ties:
        alias, _, owner = (part.strip() for part in tie.partition("="))
        if not (alias and owner):
            raise TieError(
                f"Cannot read the tie `{tie}`.\n"
                f"Expected: two names, as in `decoder/kernel=encoder/kernel`. Received: {tie!r}.\n"
                "Name the variable that is tied, then the one that it is."
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
) -> dict[str, str]:
    """Maps variables to those that they are tied to; of two layers, those that both have."""
    names = {one.name for one in variables}
    given = {}
    for pair in pairs:
        owners = {name: owner_given(name, [pair]) for name in names}
        given.update(
            {name: owner for name, owner in owners.items() if owner in names} or {pair[0]: pair[1]}
        )
    return dict(sorted(given.items()))
