"""Tell whether a file is still as it was saved.

What counts as damage is decided in `tiedio.formats.damage`.
"""

import dataclasses
from typing import Any

from tiedio.errors import FileFormatError, explained
from tiedio.formats import damage, table, tensorflow_paths
from tiedio.formats.damage import Problem
from tiedio.keras_versions.keras_version import check_known
from tiedio.record.notebook import Reported
from tiedio.record.report import Report
from tiedio.storage.locating import at


@dataclasses.dataclass(frozen=True)
class Verification(Reported):
    """Whether a file is as it was saved.

    Attributes:
        filepath: The file.
        against: The standard of comparison: `"digests"` of the record, the `"checksum"` of a
            zip archive, the `"checksums"` of a checkpoint of TensorFlow; nothing, if it has none.
        tensors: How many tensors were read, each once, whatever is tied to it.
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

    @property
    def error(self) -> FileFormatError | None:
        """What is damaged; `None` if nothing is, as far as there is something to compare with."""
        return damage.error_of(self.filepath, self.problems)

    def report(self) -> Report:
        against = {
            "digests": "the digests of its record",
            "checksum": "the archive's checksum",
            "checksums": "their checksums",
        }
        if any(problem.is_damage for problem in self.problems):
            told = f"{self.filepath} is not as it was saved. Problems: {len(self.problems)}"
        elif self.against:
            told = f"{self.filepath}: {self.tensors} tensors agree with {against[self.against]}."
        else:
            told = (
                f"{self.filepath}: {self.tensors} tensors can be read, and there is nothing to "
                "verify them against: no digests, and no checksum."
            )
        return [*map(str, self.problems), told]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "is_verified": self.is_verified}


def verify(filepath: Any) -> Verification:
    """Compares a file with what its record says of it: every tensor, and every hard link.

    Of an archive, all else is compared with its checksums, too.

    Args:
        filepath: The file, as `load_tied` takes it.

    Returns:
        What it was compared with, and what is not as it was saved. Damage raises nothing.

    Raises:
        ArgumentError: If something else is passed than a path, a URL or an open file.
        MissingFileError: If there is no such file.
        FileFormatError: If so little of it is left that it cannot be read.
        RecordError: If its record cannot be read.
        MissingPackageError: If it is of TensorFlow, which is not installed.

    Example:

    >>> import keras, tiedio
    >>> from tiedio.files import verify
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    >>> tiedio.save_tied(model, "model.keras")
    >>> verify("model.keras").is_verified
    True
    """
    source = at(filepath)
    if saved := tensorflow_paths.find(source):
        from tiedio.checkpoints import tensorflow_files  # few files need it

        with explained(saved.name, Exception):  # whatever TensorFlow raises
            tensors, damaged = tensorflow_files.checked(saved)
        problems = tuple(Problem((key,), "not the values that were saved") for key in damaged)
        return Verification(source.name, "checksums", tensors, problems)
    with table.reading(source) as opened:
        check_known(opened.filepath, opened.keras_version)
        found = tuple(damage.problems(opened))
        digests = opened.weights.digests
        against = "digests" if digests else "checksum" if opened.verify_weights else ""
        tensors = len({*map(opened.weights.address, digests or opened.weights.below(""))})
    return Verification(opened.filepath, against, tensors, found)
