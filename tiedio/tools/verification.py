"""Tell whether a file is still as it was saved.

What counts as damage is decided in `tiedio.formats.damage`.
"""

import dataclasses
from typing import Any

from tiedio.formats import damage, table
from tiedio.formats.damage import Problem
from tiedio.keras_versions.keras_version import check_known
from tiedio.storage.locating import at


@dataclasses.dataclass(frozen=True)
class Verification:
    """Whether a file is as it was saved.

    Attributes:
        filepath: The file.
        against: The standard of comparison: `"digests"` of the record, the `"checksum"` of a
            zip archive, or nothing, if it has neither.
        tensors: How many tensors were read.
        problems: The parts that are not as they were saved.
    """

    filepath: str
    against: str
    tensors: int
    problems: tuple[Problem, ...]

    @property
    def is_verified(self) -> bool:
        """Whether there was something to compare it with, and nothing is damaged."""
        return bool(self.against) and not any(problem.is_damage for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "is_verified": self.is_verified}


def verify(filepath: Any) -> Verification:
    """Compares a file with what its record says of it: every tensor, and every hard link.

    Args:
        filepath: The file, as `load_tied` takes it.

    Raises:
        MissingFileError: If there is no such file.
        FileFormatError: If so little of it is left that it cannot be read.
        RecordError: If its record cannot be read.

    Example:

    >>> import keras, tiedio
    >>> from tiedio.files import verify
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    >>> tiedio.save_tied(model, "model.keras")
    >>> verify("model.keras").is_verified
    True
    """
    with table.reading(at(filepath)) as opened:
        check_known(opened.filepath, opened.keras_version)
        found = tuple(damage.problems(opened))
        digests = opened.weights.digests
        against = "digests" if digests else "checksum" if opened.verify_weights else ""
        tensors = len(digests) or len(opened.weights.below(""))
    return Verification(opened.filepath, against, tensors, found)
