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
