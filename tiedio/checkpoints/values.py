"""Compare the values of a checkpoint's variables without keeping them in memory."""

import collections
from collections.abc import Iterator, Mapping

import numpy as np

from tiedio.checkpoints.checkpoint import Checkpoint, StoredVariable
from tiedio.formats.hdf5_writer import CHUNK, begin_digest, cut

# Fewer elements, or fewer different ones, may be equal by chance: constants, identities.
_FEWEST_ELEMENTS = 8
_FEWEST_VALUES = 3
_FIRST = 1024


class Contents:
    """The values of a checkpoint's variables, as far as they have been compared."""

    def __init__(self, checkpoint: Checkpoint):
        self._tensors = checkpoint.tensors
        self._digests: dict[str, str] = {}
        self._different: dict[str, int] = {}

    def digest(self, source: str) -> str:
        """Returns a digest of the tensor at a path."""
        if source not in self._digests:
            value = np.ascontiguousarray(self._tensors.read(source))
            digest = begin_digest(value.dtype, value.shape)
            for part in cut(value, CHUNK):
                digest.update(part)
            self._digests[source] = digest.hexdigest()
            # The first few nearly always tell, without sorting all of them.
            first = len(np.unique(value.reshape(-1)[:_FIRST]))
            self._different[source] = first if first >= _FEWEST_VALUES else len(np.unique(value))
        return self._digests[source]

    def equal(self, *variables: StoredVariable) -> bool:
        """Whether variables have the same shape, dtype and bytes."""
        kinds = {(one.shape, one.dtype) for one in variables}
        return len(kinds) == 1 and len({self.digest(one.source) for one in variables}) == 1

    def are_telling(self, variable: StoredVariable) -> bool:
        """Whether that another one is equal says anything."""
        self.digest(variable.source)
        many = np.prod(variable.shape, dtype=object) >= _FEWEST_ELEMENTS
        return bool(many) and self._different[variable.source] >= _FEWEST_VALUES

    def is_constant(self, variable: StoredVariable) -> bool:
        """Whether it may never have been trained, for all that its values say."""
        self.digest(variable.source)
        return self._different[variable.source] < 2

    def is_zero(self, source: str) -> bool:
        return not np.any(self._tensors.read(source))


def equal_ones(
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
