"""Compare the values of a checkpoint's variables without keeping them in memory."""

import collections
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tiedio.checkpoints.variables import StoredVariable, Tensors
from tiedio.formats import digests
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
        self._different: dict[str, int] = {}

    def digest(self, source: str) -> str:
        """Returns a digest of the tensor at a path."""
        if source not in self._digests:
            value = self._tensors.read(source)
            self._digests[source] = digests.of(value)
            # The first few nearly always tell, without sorting all of them.
            first = len(np.unique(value.reshape(-1)[:_FIRST]))
            self._different[source] = first if first >= _FEWEST_VALUES else len(np.unique(value))
        return self._digests[source]

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
        self.digest(variable.source)
        many = math.prod(variable.shape) >= _FEWEST_ELEMENTS
        return bool(many) and self._different[variable.source] >= _FEWEST_VALUES

    def is_constant(self, variable: StoredVariable) -> bool:
        """Whether it may never have been trained, for all that its values say."""
        self.digest(variable.source)
        return self._different[variable.source] < 2

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
