"""Tell whether a file is still as it was saved.

Here is what is compared with what; the digests are made and compared where tensors are read.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any

from tiedio.errors import FileFormatError
from tiedio.formats import table
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.record.record import Record
from tiedio.record.ties import METADATA_KEY
from tiedio.storage.locating import at

# Where a layer keeps a variable, but for the layout of Keras 2, which is made of links.
_VARIABLE = re.compile(r"((?P<inner_path>.*)/)?vars/\d+")


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is not as it was saved.

    Attributes:
        names: The dataset_paths that it is about.
        what: What is wrong with them.
    """

    names: tuple[str, ...]
    what: str

    def __str__(self) -> str:
        return f"{' = '.join(self.names)}: {self.what}" if self.names else self.what


@dataclasses.dataclass(frozen=True)
class Verification:
    """Whether a file is as it was saved.

    Attributes:
        filepath: The file.
        against: What it was compared with: `"digests"` of the record, the `"checksum"` of a
            zip archive, or nothing, if it has neither.
        tensors: How many tensors were read.
        problems: What is not as it was saved.
    """

    filepath: str
    against: str
    tensors: int
    problems: tuple[Problem, ...]

    @property
    def is_verified(self) -> bool:
        """Whether there was something to compare it with, and it is the same."""
        return bool(self.against) and not self.problems

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
    source = at(filepath)
    with table.reading(source) as opened:
        weights = opened.weights
        record = opened.read_record(verify=False)
        digests = dict(record.digests) if record else {}
        problems: list[Problem] = []
        against = "digests" if digests else ""
        if table.format_of(source).has_checksum:
            against = against or "checksum"
            try:
                opened.verify_weights()
            except FileFormatError:
                problems.append(Problem((), "the weights do not fit the checksum of the archive"))
        problems += _tensors(weights, digests)
        if record:
            problems += itertools.chain(_lost_links(weights, record), _new_links(weights, record))
        tensors = len(digests) or len(weights.below(""))
    return Verification(opened.filepath, against, tensors, tuple(problems))


def _tensors(weights: WeightsFile, digests: dict[str, str]) -> Iterator[Problem]:
    """Reads every tensor, and yields those that are missing, or not what was saved."""
    weights.expect(digests)
    for path in weights.find_damaged():
        known = weights.address(path)
        yield Problem((path,), "not the values that were saved" if known else "missing")
    for path, first in weights.walk(preferred=digests):
        if path != first or path in digests or not weights.address(path):
            continue
        if digests and path != METADATA_KEY:
            yield Problem((path,), "added after the file was saved")
        elif not digests:
            try:
                weights.read(path)
            except FileFormatError:
                yield Problem((path,), "cannot be read")


def _lost_links(weights: WeightsFile, record: Record) -> Iterator[Problem]:
    """Yields what is one by the record, and stored apart."""
    for group in record.tie_groups:
        paths = [path for path in group.dataset_paths if weights.address(path)]
        if len({weights.address(path) for path in paths}) > 1:
            differ = weights.disagreements(dict.fromkeys(paths[1:], paths[0]))
            yield Problem(tuple(paths), _apart(bool(differ)))
    for first, *others in record.shared_layers:
        for other in others:
            # In a layer that contains itself, one is below the other.
            if weights.names(other) and not f"{other}/".startswith(f"{first}/".lstrip("/")):
                twins = weights.twins(first, other)
                if twins:
                    yield Problem((first, other), _apart(bool(weights.disagreements(twins))))


def _apart(differ: bool) -> str:
    values = "different" if differ else "equal"
    return f"one by the record, but stored apart, with {values} values"


def _new_links(weights: WeightsFile, record: Record) -> Iterator[Problem]:
    """Yields what is stored as one, and two by the record."""
    groups = [set(group.dataset_paths) for group in record.tie_groups]
    linked = collections.defaultdict(list)
    for path, first in weights.walk():
        found = _VARIABLE.fullmatch(path)
        if not found:
            continue
        # Metrics and the like may share too. A record made of a file alone names no layers.
        if not record.is_complete or (found["inner_path"] or "") in record.layers:
            linked[first].append(path)
    for paths in linked.values():
        if len(paths) > 1 and not any(held.issuperset(paths) for held in groups):
            yield Problem(tuple(paths), "two by the record, but stored as one")
