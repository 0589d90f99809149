"""Tell which parts of a file are not as they were saved, the same to every caller.

A file is compared with the digests and the ties of its record, or with the checksum of its
container; the digests themselves are made and compared where tensors are read.
"""

import dataclasses
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tiedio import errors
from tiedio.errors import RESTORE, FileFormatError, listed
from tiedio.formats.content import Opened
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.formats.hdf5_writer import RECORD
from tiedio.record.record import Record
from tiedio.record.ties import METADATA_KEY

# The path of a layer's variable. (The layout of Keras 2, made of links, has others.)
_VARIABLE = re.compile(r"((?P<inner_path>.*)/)?vars/\d+")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A part of a file that is not as it was saved.

    Attributes:
        names: The dataset_paths that it is about.
        what: What is wrong with them.
        is_damage: Whether something wrong could come of it. Copies that are equal, where the
            record ties them, hold what was saved: whoever loads them ties them again.
    """

    names: tuple[str, ...]
    what: str
    is_damage: bool = True

    def __str__(self) -> str:
        return f"{' = '.join(self.names)}: {self.what}" if self.names else self.what


def check(opened: Opened) -> None:
    """Reads all of a file; `FileFormatError` if it is damaged."""
    if error := error_of(opened.filepath, problems(opened)):
        raise error


def error_of(filepath: str, problems: Iterable[Problem]) -> FileFormatError | None:
    """The error for damage, which names all that is damaged; `None` if nothing is."""
    found = [problem for problem in problems if problem.is_damage]
    if not found:
        return None
    names = {name for problem in found for name in problem.names}
    what = "; ".join(dict.fromkeys(problem.what for problem in found))
    return error_at(filepath, names, what) if names else errors.damaged(filepath, what)


def error_at(filepath: str, names: Iterable[str], received: str) -> FileFormatError:
    """The error for datasets that contradict the record of a file."""
    return FileFormatError(
        f"`{filepath}` is damaged at {listed(names)}.\n"
        f"Expected: the values that were saved. Received: {received}.\n"
        f"{RESTORE}"
    )


def problems(opened: Opened) -> list[Problem]:
    """Reads all of a file, and lists what is not as it was saved."""
    record = opened.read_record(verify=False)
    found = [*_checksum(opened), *_assets(opened)]
    found += _values(opened.weights, record.digests if record else {})
    if record:
        for check in (added, _lost_links, _new_links):
            found += check(opened.weights, record)
    return found


def _checksum(opened: Opened) -> Iterator[Problem]:
    try:
        if opened.verify_weights:
            opened.verify_weights()
    except FileFormatError:
        yield Problem((), "the weights do not fit the checksum of the archive")


def _assets(opened: Opened) -> Iterator[Problem]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            opened.extract_assets(Path(folder))
        except FileFormatError:
            yield Problem((), "the assets are not those that were saved")


def _values(weights: WeightsFile, digests: Mapping[str, str]) -> Iterator[Problem]:
    """Reads every tensor, and yields those that are missing, or not what was saved."""
    weights.expect(digests)
    for path in weights.find_damaged():
        known = weights.address(path)
        yield Problem((path,), "not the values that were saved" if known else "missing")
    for path in () if digests else weights.below(""):
        try:
            weights.check(path)
        except FileFormatError:
            yield Problem((path,), "cannot be read")


def added(weights: WeightsFile, record: Record) -> Iterator[Problem]:
    """Yields the tensors that the record has no digest of, if it has any."""
    digests = record.digests
    for path, first in weights.walk(preferred=digests) if digests else ():
        is_known = path != first or path in digests or path in (RECORD, METADATA_KEY)
        if not is_known and weights.address(path):
            yield Problem((path,), "added after the file was saved")


def _lost_links(weights: WeightsFile, record: Record) -> Iterator[Problem]:
    """Yields what is tied by the record, and stored apart."""
    for group in record.tie_groups:
        paths = [path for path in group.dataset_paths if weights.address(path)]
        if len({weights.address(path) for path in paths}) > 1:
            differ = weights.disagreements(dict.fromkeys(paths[1:], paths[0]))
            yield _apart(paths, bool(differ))
    for first, *others in record.shared_layers:
        for other in others:
            # In a layer that contains itself, one is below the other.
            is_inside = f"{other}/".startswith(f"{first}/".lstrip("/"))
            if weights.names(other) and not is_inside and (twins := weights.twins(first, other)):
                yield _apart((first, other), bool(weights.disagreements(twins)))


def _apart(names: Iterable[str], differ: bool) -> Problem:
    values = "different" if differ else "equal"
    what = f"tied by the record, but stored apart, with {values} values"
    return Problem(tuple(names), what, is_damage=differ)


def _new_links(weights: WeightsFile, record: Record) -> Iterator[Problem]:
    """Yields what is stored once, and is not tied by the record."""
    group_of = {p: n for n, group in enumerate(record.tie_groups) for p in group.dataset_paths}
    for linked in weights.links():
        paths = [path for path in linked if _is_of_layer(path, record)]
        groups = {group_of.get(path) for path in paths}
        if len(paths) > 1 and (None in groups or len(groups) > 1):
            yield Problem(tuple(paths), "not tied by the record, but stored once")


def _is_of_layer(path: str, record: Record) -> bool:
    """Whether a layer keeps a variable there: metrics and the like may share too."""
    found = _VARIABLE.fullmatch(path)
    # A record made of a file alone names no layers.
    return bool(found) and (not record.is_complete or (found["inner_path"] or "") in record.layers)
