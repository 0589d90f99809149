"""Tell by the state of an optimizer which equal variables were tied.

An optimizer keeps slots once for each variable, and not for each place of a tied one. So as
many variables as have no slots were aliases: the slot deficit.
"""

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence

from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.checkpoints.stated_ties import Evidence, Tie
from tiedio.checkpoints.variables import StoredVariable
from tiedio.formats.content import Weight

_TRANSPOSED = "equal contents, transposed, and no state of its own in the optimizer"

# Whether equal variables were tied (`None`: that may be), and why.
_Verdict = tuple[bool | None, str]
_Judgement = tuple[Sequence[StoredVariable], *_Verdict]


class SlotDeficit:
    """The evidence of an optimizer's state about equal variables.

    Attributes:
        notes: Notes on what it leaves open.
        transposed: Variables that have no slots, and are others transposed.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.notes: list[str] = []
        self.transposed: list[Tie] = []
        self._values = checkpoint.values
        self._slots = checkpoint.slots
        self._per_use = checkpoint.version.is_multi_backend
        # The slots of each variable, where each use has its own, and none is missing.
        self._of_use: dict[str, Mapping[str, Weight]] = {}
        names = [one.name for one in checkpoint.variables if one.trainable is not False]
        if self._per_use and self._slots and len(names) == len(self._slots.variables):
            self._of_use = dict(zip(names, self._slots.variables, strict=True))
        self._distinct = [one for one in checkpoint.untied if one.trainable is not False]
        self._groups = collections.defaultdict(list)
        for group in checkpoint.values.equal_ones(checkpoint.untied):
            trained = [one for one in group if one.trainable is not False]
            if len(trained) > 1:
                self._groups[group[0].shape].append(trained)
        self._copies = self._count()

    def _count(self) -> dict[tuple[int, ...], int] | None:
        """Counts the aliases of each shape: variables, less those that have slots."""
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
        unexplained: dict[tuple[int, ...], int] = {}
        for shape, count in copies.items():
            equal = sum(len(group) - 1 for group in self._groups[shape])
            shown = self._find_transposed(shape) if count > equal else []
            if len(shown) == count - equal:
                self.transposed += shown
            elif count > equal:
                unexplained[shape] = count - equal
        if unexplained:
            told = ", ".join(f"{count} of shape {shape}" for shape, count in unexplained.items())
            self.notes.append(
                "The optimizer has no state of some variables, and no others equal them: "
                f"{told}. They were frozen while it was used, or tied and changed since."
            )
        return copies

    def _find_transposed(self, shape: tuple[int, ...]) -> list[Tie]:
        """Finds variables of a shape that are others transposed, where that is no chance.

        The axes are reversed, as in a `Dense`, or the last two of them, as in a convolution.
        """
        orders = _orders(len(shape))
        ties = []
        for number, one in enumerate(self._distinct):
            if one.shape != shape or not self._values.are_telling(one):
                continue
            # Of two of one shape, the first has the slots.
            others = self._distinct[:number] if shape == shape[::-1] else self._distinct
            found = [
                Tie((other.name, one.name), Evidence.TRANSPOSED, _TRANSPOSED, axes)
                for other in others
                for axes in orders
                if self._values.are_transposed(other, one, axes)
            ]
            ties += found[:1]
        return ties

    def judged(self, group: Sequence[StoredVariable]) -> Iterator[_Judgement]:
        """Judges parts of a group of equal variables.

        What may have been tied, but is likely to be equal by chance, is left out.
        """
        trained = [one for one in group if one.trainable is not False]
        frozen = [one for one in group if one.trainable is False]
        is_telling = self._values.are_telling(group[0])
        if frozen and is_telling:
            several = [*trained[:1], *frozen]
            if len(several) > 1:
                yield several, None, f"equal contents; {len(frozen)} of them not trained"
        if len(trained) < 2:
            return
        if self._of_use:
            yield from self._judged_by_use(trained)
        elif self._copies is not None:
            if verdict := self._verdict(trained, self._copies[trained[0].shape]):
                yield trained, *verdict
        elif is_telling:
            yield trained, None, "equal contents"

    def _verdict(self, trained: Sequence[StoredVariable], copies: int) -> _Verdict | None:
        """Judges by the count of variables without slots; `None` if nothing can be said."""
        if copies <= 0:
            return False, "equal contents, but each has a state of its own in the optimizer"
        groups = self._groups[trained[0].shape]
        possible = sum(len(one) - 1 for one in groups)
        unsure = any(
            one.trainable is None for one in self._distinct if one.shape == trained[0].shape
        )
        is_constant = self._values.is_constant(trained[0])  # a frozen one looks the same
        if not unsure and possible == copies:
            why = f"equal contents, and {copies} fewer in the optimizer's state"
            if is_constant:
                return None, f"{why}, but never trained, for all that the values say"
            return True, why
        named = self._told_by_names(groups)
        if named is not None and len(named) == copies and not unsure:
            mine = [one for one in trained if one.name in named]
            if not mine:
                return False, "equal contents, but the optimizer's state names each"
            if len(mine) == len(trained) - 1 and not is_constant:
                return True, "equal contents, and the optimizer's state names one of them"
        if self._values.are_telling(trained[0]):
            many = f"{copies} variables of this shape have" if copies > 1 else "1 of this shape has"
            return None, f"equal contents, and {many} no state in the optimizer"
        return None

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

    def _judged_by_use(self, trained: Sequence[StoredVariable]) -> Iterator[_Judgement]:
        held = collections.defaultdict(list)
        for one in trained:
            paths = [weight.dataset_path for weight in self._of_use[one.name].values()]
            held[tuple(map(self._values.digest, paths))].append((one, paths))
        for alike in held.values():
            if len(alike) > 1:
                moved = any(not self._values.is_zero(path) for path in alike[0][1])
                why = "equal contents, and equal states in the optimizer"
                if moved or self._values.are_telling(trained[0]):
                    yield [one for one, _ in alike], moved or None, why
        if len(held) == len(trained):
            yield trained, False, "equal contents, but other states in the optimizer"


def _orders(rank: int) -> list[tuple[int, ...]]:
    """Lists how the axes of a variable may be transposed."""
    if rank < 2:
        return []
    axes = tuple(range(rank))
    return list(dict.fromkeys([axes[::-1], (*axes[:-2], axes[-1], axes[-2])]))
