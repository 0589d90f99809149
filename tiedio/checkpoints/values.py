"""Compare the values of a checkpoint's variables without keeping them in memory."""

import collections
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tiedio.checkpoints.variables import StoredVariable, Tensors
from tiedio.formats.arrays import are_equal

# Fewer elements, or fewer different ones, may be equal by chance: constants, identities.
_FEWEST_ELEMENTS = 8
_FEWEST_VALUES = 3
_FIRST = 1024

Variables = Sequence[StoredVariable]


class Values:
    """The values of a checkpoint's variables, as far as they have been compared."""

    def __init__(self, tensors: Tensors):
        self._tensors = tensors
        self._digests: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def digest(self, source: str) -> str:
        """Returns a digest of the tensor at a path."""
        if source not in self._digests:
            self._digests[source] = self._tensors.digest(source)
        return self._digests[source]

    def _count(self, source: str) -> int:
        """Returns how many different values a tensor has, or some of them if these are enough."""
        if source not in self._counts:
            # The first few nearly always tell, without reading and sorting all of them.
            count = _different(self._tensors.first(source, _FIRST))
            enough = count >= _FEWEST_VALUES
            self._counts[source] = count if enough else _different(self._tensors.read(source))
        return self._counts[source]

    def equal(self, *variables: StoredVariable) -> bool:
        """Whether variables have the same shape, dtype and bytes."""
        kinds = {(one.shape, one.dtype) for one in variables}
        return len(kinds) == 1 and len({self.digest(one.source) for one in variables}) == 1

    def are_transposed(
        self, owner: StoredVariable, other: StoredVariable, axes: Sequence[int]
    ) -> bool:
        """Whether a variable is another one with its axes in this order."""
        shape = tuple(owner.shape[axis] for axis in axes if axis < len(owner.shape))
        if len(owner.shape) != len(axes) or (shape, owner.dtype) != (other.shape, other.dtype):
            return False
        return are_equal(self._tensors.read(other.source), self._tensors.read(owner.source), axes)

    def are_telling(self, variable: StoredVariable) -> bool:
        """Whether equality is evidence: constants and tiny tensors are equal by chance."""
        many = math.prod(variable.shape) >= _FEWEST_ELEMENTS
        return many and self._count(variable.source) >= _FEWEST_VALUES

    def is_constant(self, variable: StoredVariable) -> bool:
        """Whether it may never have been trained, for all that its values say."""
        return self._count(variable.source) < 2

    def beside(
        self, taken: Iterable[Variables], groups: Iterable[Variables]
    ) -> Iterator[list[StoredVariable]]:
        """Yields those of groups of equal variables whose layers also hold other equal ones.

        A bias of two elements says nothing by itself, but much beside the kernels of its layers.
        What looks as a layer begins says nothing there, either.

        Args:
            taken: Groups of variables whose equality is evidence.
            groups: Others.
        """
        near = collections.defaultdict(set)
        for number, others in enumerate(taken):
            for one in others:
                near[one.layer].add(number)
        for group in groups:
            held = collections.defaultdict(list)
            for one in group:
                for number in near[one.layer]:
                    held[number, one.name.rpartition("/")[2]].append(one)
            found = {tuple(one.name for one in alike): alike for alike in held.values()}
            if near and not self._looks_initial(group[0]):
                yield from (alike for alike in found.values() if len(alike) > 1)

    def _looks_initial(self, variable: StoredVariable) -> bool:
        value = self._tensors.read(variable.source)
        is_repeated = value.size > 1 and self.is_constant(variable)
        return bool(is_repeated or np.isin(value, (0, 1)).all())

    def is_zero(self, source: str) -> bool:
        return not np.any(self._tensors.read(source))

    def distinct(self, variables: Iterable[StoredVariable]) -> list[StoredVariable]:
        """Lists variables of different tensors: the first of those that one tensor is."""
        first: dict[Any, StoredVariable] = {}
        for one in variables:
            first.setdefault(self._tensors.address(one.source), one)
        return list(first.values())

    def equal_ones(self, variables: Iterable[StoredVariable]) -> Iterator[list[StoredVariable]]:
        """Yields the variables that have equal values, several at a time."""
        kinds = collections.defaultdict(list)
        for one in variables:
            kinds[one.shape, one.dtype].append(one)
        for alike in kinds.values():
            if len(self.distinct(alike)) < 2:
                continue  # what nothing else is like need not be read
            held = collections.defaultdict(list)
            for one in alike:
                held[self.digest(one.source)].append(one)
            yield from (group for group in held.values() if len(group) > 1)


def _different(value: np.ndarray) -> int:
    # With counts: without them NumPy imports its masked arrays, which takes longer than all else.
    return len(np.unique(value, return_counts=True)[0])
