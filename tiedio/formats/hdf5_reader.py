"""Read a weights file, tensor by tensor, whoever wrote it.

Only what lies in the file itself is read, and no more memory taken than it may
need. Tensors are read from where they lie, and compared with their digests.
"""

import collections
import contextlib
import functools
import logging
import math
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import h5py
import numpy as np

from tiedio.errors import FileFormatError, first_line
from tiedio.formats import digests
from tiedio.formats.arrays import Axes, Stored, aligned, are_equal, content_of, ordered
from tiedio.formats.device_memory import DeviceMemory
from tiedio.formats.hdf5_objects import HDF5_ERRORS, Objects
from tiedio.formats.hdf5_writer import BFLOAT16, BFLOAT16_STORED, Advance, untold
from tiedio.formats.parts import Extent, Place, Reader, sums_of
from tiedio.formats.store import Store, Unread
from tiedio.storage.streams import Seeking

_log = logging.getLogger(__name__)

# Kinds of elements. Strings of any length, references and compounds are not read at all.
_KINDS = "biufcS"
# How a text may be stored: as one, or as its bytes.
_TEXTS = ((0, "S"), (1, "u"))

# What is compressed grows. A chunk takes several times its size while it is unpacked.
_ROOM = 1 << 26
_ROOM_OF_CHUNK = 1 << 25
_ROOM_IN_ALL = 1 << 28
_LARGEST_EXPANSION = 100
# Of a model whose tensors are read: bytes of an element at most, bytes of any tensor, however small
# the model's are, and tensors for a variable, its own value and those of its optimizer.
_ELEMENT = 8
_ROOM_FOR_MODEL = 1 << 20
_TENSORS = 5


class _Facts(NamedTuple):
    """What a dataset declares. h5py takes its time to tell.

    Attributes:
        shape: Its shape.
        dtype: The dtype of its values; bfloat16 is stored under another one.
        nbytes: Bytes of all values.
        stored: Bytes that they take in the file.
        chunk: Bytes of the values that lie in one piece, if they lie in several.
        offset: Where they begin, if they lie in one, just as in memory.
        is_outside: Whether they are in other files.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    nbytes: int
    stored: int
    chunk: int
    offset: int | None
    is_outside: bool


class WeightsFile(Objects):
    """A weights file open for reading, or the shards of one.

    Args:
        files: The files; what several have is read from the first of them.
        filepath: Its name for messages.
        verify: As in `Objects`.

    Attributes:
        size: Bytes of the files.
        digests: The digests that tensors must have, by dataset_path; none at first.
        axis_orders: How arrays are to lie in memory if not row by row, as in `Tensor`, by
            dataset_path.
        damaged: Datasets that could not be read, had another digest, or are missing.
        advance: Told how many bytes more are read, and of how many.
        room: Bytes that a dataset may declare without storing them, as one that is
            compressed does: at least those of the largest tensor to be read.
        room_in_all: Bytes that all that are read may declare: at least those of all tensors.

    Raises:
        FileFormatError: If it is no HDF5 file, or a damaged one.
    """

    def __init__(
        self, files: Sequence[Seeking], filepath: str, verify: Callable[[], None] | None = None
    ):
        super().__init__(files, filepath, verify)
        self.size = sum(file.size for file in files)
        self.digests: Mapping[str, str] = {}
        self.axis_orders: Mapping[str, Sequence[int]] = {}
        self.damaged: set[str] = set()
        self.advance: Advance = untold
        self.room = _ROOM
        self.room_in_all = _ROOM_IN_ALL + _LARGEST_EXPANSION * self.size
        self._declared: set[tuple[int, int]] = set()  # what was taken from it
        self._facts: dict[int, _Facts] = {}
        self._made: dict[tuple[tuple[int, int], bool], tuple[Stored | Unread, int]] = {}
        self._held = 0  # bytes of these
        self._checksums: list[int] = []
        self._summed: dict[Any, str] = {}  # digests, by the addresses of tensors
        self._reader = Reader()

    def close(self) -> None:
        self._reader.close()
        super().close()

    def expect(self, digests: Mapping[str, str]) -> None:
        """Verifies against `digests` whatever is read from now on, and that all of it is there."""
        self.digests = digests
        names = {group: set(self.names(group)) for group in set(map(posixpath.dirname, digests))}
        for path in digests:
            group, name = posixpath.split(path)
            if name not in names[group]:
                self.damaged.add(path)

    def find_damaged(self, also: Iterable[str] = ()) -> list[str]:
        """Reads all if anything has a digest, and `also` these; lists what is not as saved."""
        if self.digests:
            with contextlib.suppress(*HDF5_ERRORS):  # each by itself tells which cannot be read
                self.sum_up()
        for path in (*self.digests, *also):
            with contextlib.suppress(FileFormatError):
                self.check(path)
        return sorted(self.damaged)

    def check(self, dataset_path: str) -> None:
        """Does what `read` does to `damaged`, and notes what is missing, too.

        What `sum_up` has digested is not read again.
        """
        expected = self.digests.get(dataset_path)
        try:
            found = self._summed.get(self.address(dataset_path))
            by_parts = found and digests.are_of_parts(expected or found)
            if not by_parts or dataset_path in self.axis_orders:  # which may contradict its shape
                self.read(dataset_path)
            elif expected and found != expected:
                self.damaged.add(dataset_path)
        except (KeyError, FileFormatError) as error:
            self.damaged.add(dataset_path)
            if isinstance(error, FileFormatError):
                raise

    def digest(self, dataset_path: str) -> str:
        """Returns the digest of a tensor; `KeyError` if there is none."""
        return self._summed.get(self.address(dataset_path)) or digests.of(self.read(dataset_path))

    def sum_up(self) -> list[int]:
        """Reads each file once, digests its tensors as they pass, and returns the checksums."""
        if not self._checksums:
            checksums = []
            for window, placed in self._in_one_piece().items():
                sums = sums_of(window, placed)
                checksums.append(sums.checksum)
                for extent, parts in sums.digests.items():
                    for path, facts in placed[extent]:
                        digest = digests.of_parts(facts.dtype, facts.shape, parts)
                        self._summed[self.address(path)] = digest
            self._checksums = checksums
        return self._checksums

    def _in_one_piece(self) -> dict[Seeking, dict[Extent, list[tuple[str, _Facts]]]]:
        """Finds the tensors whose bytes are in a file as they are in memory, by where they are."""
        found: dict[Seeking, Any] = {one: collections.defaultdict(list) for one in self._windows}
        paths = []
        with contextlib.suppress(FileFormatError):  # of what cannot be walked, `read` tells more
            paths = self.below("")
        for path in paths:
            with contextlib.suppress(FileFormatError, *HDF5_ERRORS):
                dataset, window = self._placed(path)
                facts = self._facts_of(dataset, window)
                self._check(dataset, facts)
                if facts.offset is not None and not facts.is_outside:
                    found[window][Extent(facts.offset, facts.nbytes)].append((path, facts))
        return found

    def store(self, inner_path: str) -> "Store":
        """Returns what is stored for one saveable: arrays by name, read when asked for."""
        group_path = f"{inner_path}/vars".lstrip("/")
        return Store(self, {name: f"{group_path}/{name}" for name in self.names(group_path)})

    def links(self) -> list[list[str]]:
        """Lists the tensors that have several paths, each as a list of these."""
        paths = collections.defaultdict(list)
        for path, first in self.walk():
            paths[first].append(path)
        return [linked for linked in paths.values() if linked[1:] and self.address(linked[0])]

    def text(self, dataset_path: str) -> bytes | None:
        """Reads a dataset that holds one text, as such or as bytes, if it is there."""
        found: Any = self._find(dataset_path)
        if found is None:
            return None
        with self._explained(f"has no text at `{dataset_path}`"):
            is_text = isinstance(found, h5py.Dataset) and (found.ndim, found.dtype.kind) in _TEXTS
            # NumPy 1 has negative sizes for what is too long for it.
            if not is_text or not 0 <= found.nbytes <= self.size:
                raise ValueError("something else, or more")
        return self.read(dataset_path).tobytes().rstrip(b"\0")

    def shape(self, dataset_path: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, which is not read; `KeyError` if there is none."""
        return self._declared_by(dataset_path).shape

    def dtype(self, dataset_path: str) -> np.dtype:
        """Returns the dtype of a tensor, which is not read; `KeyError` if there is none."""
        return self._declared_by(dataset_path).dtype

    def _declared_by(self, dataset_path: str) -> _Facts:
        dataset, window = self._placed(dataset_path)
        with self._explained(f"has an unreadable `{dataset_path}`"):
            return self._facts_of(dataset, window)

    def read(self, dataset_path: str) -> np.ndarray:
        """Reads one tensor, and notes in `damaged` if it is not what its digest says.

        Raises:
            KeyError: If there is no such dataset.
            FileFormatError: If it cannot be read, or its bytes are outside this file.
        """
        dataset, window = self._placed(dataset_path)
        with self._noted(dataset_path, dataset, window) as facts:
            self._check(dataset, facts)
            value, parts = aligned(facts.shape, facts.dtype), None
            if facts.offset is not None:
                to_host = self._reader.to_host(content_of(value))
                parts = self._begin(facts, window, to_host)()
            else:
                _log.debug("%s is read by HDF5: it is not contiguous", dataset_path)
                dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, value.view(dataset.dtype))
                self.advance(value.nbytes, self.size)
            expected = self.digests.get(dataset_path)
            if expected and not digests.agrees(expected, value, parts):
                self.damaged.add(dataset_path)
            return ordered(value, self.axis_orders.get(dataset_path))

    def first(self, dataset_path: str, count: int) -> np.ndarray:
        """Reads the first elements of a tensor, which are not verified."""
        dataset, window = self._placed(dataset_path)
        with self._noted(dataset_path, dataset, window) as facts:
            if facts.offset is None:
                return self.read(dataset_path).reshape(-1)[:count]
            value = aligned((min(count, math.prod(facts.shape)),), facts.dtype)
            window.read_at(content_of(value), facts.offset)
            return value

    def begin_to_read(self, dataset_path: str, memory: DeviceMemory) -> Callable[[], None]:
        """Begins to read one tensor as `read` does, into the memory of one on a card.

        Returns:
            What waits for the end, and raises what `read` does.
        """
        dataset, window = self._placed(dataset_path)
        expected = self.digests.get(dataset_path)
        with self._noted(dataset_path, dataset, window) as facts:
            self._check(dataset, facts)
            by_parts = not expected or digests.are_of_parts(expected)
            if facts.offset is None or not by_parts:
                memory.copy_from(content_of(self.read(dataset_path)), 0)
                return lambda: None
            parts = self._begin(facts, window, self._reader.to_device(memory))

        @functools.cache
        def end() -> None:
            with self._noted(dataset_path, dataset, window):
                found = digests.of_parts(facts.dtype, facts.shape, parts())
                if expected and found != expected:
                    self.damaged.add(dataset_path)

        return end

    def _begin(self, facts: _Facts, window: Seeking, place: Place) -> Callable[[], list[bytes]]:
        return self._reader.begin(
            window,
            facts.offset or 0,
            facts.nbytes,
            place,
            digested=bool(self.digests),
            advance=lambda count: self.advance(count, self.size),
        )

    @contextlib.contextmanager
    def _noted(self, dataset_path: str, dataset: h5py.Dataset, window: Seeking) -> Iterator[_Facts]:
        """Notes a dataset that cannot be read."""
        try:
            facts = self._facts_of(dataset, window)
            if not facts.is_outside:
                yield facts
        except HDF5_ERRORS as error:
            self.damaged.add(dataset_path)
            raise self.error(f"has an unreadable `{dataset_path}`", first_line(error)) from error
        if facts.is_outside:
            raise self.error(f"keeps `{dataset_path}` outside itself", "an external dataset")

    def read_once(self, dataset_path: str, unread_from: float = math.inf) -> Any:
        """Reads one tensor as `read` does, but the same array for all of its paths.

        Args:
            dataset_path: Where it is.
            unread_from: Bytes from which on it is not read, and returned as `Unread`. (One
                that is to lie in memory otherwise is read.)
        """
        dataset, window = self._placed(dataset_path)
        with self._noted(dataset_path, dataset, window) as facts:
            may_wait = unread_from < math.inf and dataset_path not in self.axis_orders
            is_unread = may_wait and facts.nbytes >= unread_from
        address, paths = self._info(dataset)
        once = address, is_unread
        made, left = self._made.pop(once, (None, paths))
        if made is None and is_unread:
            made = Unread(self, dataset_path)
        elif made is None:
            memory = self.read(dataset_path)
            made = memory.view(Stored)
            made.__dict__["memory"] = memory
            self._held += made.nbytes
        if left > 1:
            self._made[once] = made, left - 1
        elif not is_unread:
            self._held -= facts.nbytes
        while self._held > self.size:  # what is kept for paths that have not asked yet
            gone, _ = self._made.pop(next(iter(self._made)))
            self._held -= gone.nbytes if isinstance(gone, Stored) else 0
        return made

    def make_room(self, sizes: Iterable[int]) -> None:
        """Lets tensors be as large as those of a model, of so many elements, and no larger."""
        elements = [0, *sizes]
        self.room = _ROOM_FOR_MODEL + _ELEMENT * max(elements)
        self.room_in_all += _ELEMENT * _TENSORS * sum(elements)

    def _check(self, dataset: h5py.Dataset, facts: _Facts) -> None:
        """Refuses a dataset that cannot hold what it declares, or no numbers."""
        if facts.dtype.kind not in _KINDS and facts.dtype != BFLOAT16:
            raise TypeError(f"values of type {facts.dtype}")
        self._check_size(dataset, facts)

    def _check_size(self, dataset: h5py.Dataset, facts: _Facts) -> None:
        # A dataset is allocated whole, and may be in a place beyond the end of the file.
        declared, stored, chunk = facts.nbytes, min(facts.stored, self.size), facts.chunk
        if declared > self.room + stored or chunk > _ROOM_OF_CHUNK + stored:
            raise ValueError(f"{max(declared, chunk)} bytes declared, {stored} stored")
        address, _ = self._info(dataset)
        if address not in self._declared:
            self._declared.add(address)
            self.room_in_all -= declared
        if self.room_in_all < 0:
            raise ValueError(f"more bytes declared in all than {self.size} bytes can hold")

    def check_sizes(self) -> None:
        """Raises an error if a dataset declares more than it stores."""
        for path in self.below(""):
            with self._explained(f"has an unreadable `{path}`"):
                dataset, window = self._placed(path)
                self._check_size(dataset, self._facts_of(dataset, window))

    def _placed(self, path: str) -> tuple[h5py.Dataset, Seeking]:
        """Returns a dataset, and the file that it is in."""
        for found, window in self._found(path):
            if isinstance(found, h5py.Dataset):
                return found, window
        raise KeyError(path)

    def _facts_of(self, dataset: h5py.Dataset, window: Seeking) -> _Facts:
        if id(dataset) not in self._facts:  # it is kept
            self._facts[id(dataset)] = self._read_facts(dataset, window)
        return self._facts[id(dataset)]

    def _read_facts(self, dataset: h5py.Dataset, window: Seeking) -> _Facts:
        one, dtype = dataset.id, dataset.dtype
        creation, nbytes, stored = one.get_create_plist(), dataset.nbytes, one.get_storage_size()
        layout, offset = creation.get_layout(), None
        if dtype == BFLOAT16_STORED and self._attribute(dataset, window, "dtype") == "bfloat16":
            dtype = BFLOAT16
        lies_as_in_memory = (
            layout == h5py.h5d.CONTIGUOUS
            and dtype.isnative
            and dtype.kind in "fiubcV"
            and stored == nbytes
            and one.get_type().get_size() == dtype.itemsize
        )
        if lies_as_in_memory:  # if anything was stored: otherwise all is its fill value
            offset = one.get_offset()
        return _Facts(
            shape=dataset.shape,
            dtype=dtype,
            nbytes=nbytes,
            stored=stored,
            chunk=math.prod(dataset.chunks or ()) * dtype.itemsize,
            offset=offset,
            is_outside=bool(creation.get_external_count()) or layout == h5py.h5d.VIRTUAL,
        )

    def twins(self, first: str, other: str) -> dict[str, str]:
        """Maps each dataset below the path `other` to the same one below `first`.

        There are none if both are one group, as tiedio writes it.
        """
        if [one for one, _ in self._found(other)] == [one for one, _ in self._found(first)]:
            return {}
        return {path: f"{first}{path.removeprefix(other)}" for path in self.below(other)}

    def disagreements(self, paths: Mapping[str, str], axes: Axes = None) -> list[str]:
        """Lists the datasets that should be, but do not equal, another one.

        Args:
            paths: dataset_paths of aliases, to those of their owners.
            axes: The axes of the owners, as the aliases have them, if otherwise.
        """
        return [alias for alias, owner in paths.items() if not self._are_equal(alias, owner, axes)]

    def _are_equal(self, alias: str, owner: str, axes: Axes) -> bool:
        address = self.address(alias)
        # One object under two paths, as tiedio writes it, needs no look at the values.
        if address is not None and address == self.address(owner):
            return True
        try:
            return are_equal(self.read(alias), self.read(owner), axes)
        except KeyError:
            return False
