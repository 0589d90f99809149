"""Find what counts up in many names: `block_0 … block_59` says it of sixty.

Nothing else decides which names are left out for people.
"""

import re
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

# Of fewer names in a row, all are shown.
_FEWEST = 4
# The second name of a row is looked for among so many: a block may have as many parts alike.
_AHEAD = 16
_NUMBER = re.compile("([0-9]{1,9})")

_Numbers = tuple[int, ...]


class Run(NamedTuple):
    """Items whose names count up.

    Attributes:
        size: How many these are.
        shown: The positions of those that stand for all: the first and the last one; the second
            one as well, if they do not count up by one. Of a single item its own.
    """

    size: int
    shown: tuple[int, ...]


def told(names: Sequence[str]) -> list[str]:
    """Returns names with those left out that are between others that count up.

    The first name, which may be that of an owner, stays the first.
    """
    found = runs([(name,) for name in names])
    if found and found[0].shown[0] != 0:
        others = runs([(name,) for name in names[1:]])
        moved = [run._replace(shown=tuple(place + 1 for place in run.shown)) for run in others]
        found = [Run(1, (0,)), *moved]
    return [joined([names[position] for position in run.shown]) for run in found]


def joined(names: Sequence[str]) -> str:
    """Returns one name, or what stands for all of those that count up."""
    *first, last = names
    return f"{', '.join(first)} … {last}" if first else last


def runs(items: Sequence[Sequence[str]], marks: Sequence[Hashable] | None = None) -> list[Run]:
    """Sorts items into runs whose names differ in numbers only, by the same from each to the next.

    Args:
        items: The names of each item.
        marks: What those of one run have in common, beside their names.

    Returns:
        The runs, in the order of the first of their items.
    """
    alike: dict[Hashable, dict[_Numbers, int]] = {}
    found: list[tuple[int, Run]] = []
    for position, names in enumerate(items):
        words = _NUMBER.split("\n".join(names))
        of_kind = alike.setdefault((*words[::2], marks and marks[position]), {})
        if of_kind.setdefault(tuple(map(int, words[1::2])), position) != position:
            found.append((position, Run(1, (position,))))  # a zero more, and else the same
    for of_kind in alike.values():
        for run, by_one in _runs(sorted(of_kind)):
            held = [of_kind[numbers] for numbers in run]
            shown = held if len(held) == 1 else [*held[: 1 if by_one else 2], held[-1]]
            found.append((min(held), Run(len(held), tuple(shown))))
    return [run for _, run in sorted(found)]


def _runs(held: Sequence[_Numbers]) -> Iterator[tuple[list[_Numbers], bool]]:
    """Yields those that follow one another by the same steps, and whether one of these is one."""
    left = set(held)
    for place, first in enumerate(held):
        if first not in left:
            continue
        near = held[place + 1 : place + 1 + _AHEAD]
        steps = [[b - a for a, b in zip(first, second, strict=True)] for second in near]
        run, by_one = [first], False
        for by_one in (True, False):
            chosen = [one for one in steps if min(one) >= 0 and (1 in one) == by_one]
            longest = max((_walk(first, one, left) for one in chosen), key=len, default=[])
            if len(longest) >= _FEWEST:
                run = longest
                break
        left.difference_update(run)
        yield run, by_one


def _walk(first: _Numbers, steps: Sequence[int], left: set[_Numbers]) -> list[_Numbers]:
    walked = []
    while first in left:
        walked.append(first)
        first = tuple(number + step for number, step in zip(first, steps, strict=True))
    return walked
