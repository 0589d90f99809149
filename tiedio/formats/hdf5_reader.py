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
from typing import Any

import h5py
import numpy as np
from h5py import h5l, h5o  # pyright: ignore[reportAttributeAccessIssue]  (compiled, untyped)

from tiedio.errors import FileFormatError, first_line, listed
from tiedio.formats import digests
from tiedio.formats.arrays import Axes, Stored, aligned, are_equal, content_of, ordered
from tiedio.formats.device_memory import DeviceMemory
from tiedio.formats.hdf5_writer import BFLOAT16, BFLOAT16_STORED, Advance, untold
from tiedio.formats.parts import Place, Reader
from tiedio.formats.store import Store, Unread
from tiedio.storage.streams import Seeking

_log = logging.getLogger(__name__)

# Kinds of elements. Strings of any length, references and compounds are not read at all.
_KINDS = "biufcS"
# How a text may be stored: as one, or as its bytes.
_TEXTS = ((0, "S"), (1, "u"))

# Errors of h5py for damaged files, whichever part of HDF5 meets the damage.
_HDF5_ERRORS = (
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    MemoryError,
)

_DAMAGED = "The file is damaged; restore it from a copy or save the model again."


class WeightsFile:
    """A weights file open for reading, or the shards of one.

    Args:
        files: The files; what several have is read from the first of them.
        filepath: Its name for messages.

    Attributes:
        size: Bytes of the files.
        digests: The digests that tensors must have, by dataset_path; none at first.
        axis_orders: How arrays are to lie in memory if not row by row, as in `Tensor`, by
            dataset_path.
        damaged: Datasets that could not be read, had another digest, or are missing.
        advance: Told how many bytes more are read, and of how many.
        room: Bytes that a dataset may declare without storing them, as one that is
            compressed does: at least those of the largest tensor to be read.

    Raises:
        FileFormatError: If it is no HDF5 file, or a damaged one.
    """

    def __init__(self, files: Sequence[Seeking], filepath: str):
        self.filepath = filepath
        self.size = sum(file.size for file in files)
        self.digests: Mapping[str, str] = {}
        self.axis_orders: Mapping[str, Sequence[int]] = {}
        self.damaged: set[str] = set()
        self.advance: Advance = untold
        self.room = 1 << 28
        self._members: dict[tuple[int, str], h5py.Group | h5py.Dataset | None] = {}
        self._made: dict[tuple[tuple[int, int], bool], Stored | Unread] = {}
        self._windows = files
        self._files: list[h5py.File] = []
        self._reader = Reader()
        try:
            for file in files:
                self._files.append(h5py.File(file, "r"))
        except _HDF5_ERRORS as error:
            raise self.error("is not an HDF5 file", str(error)) from error

    def close(self) -> None:
        self._reader.close()
        for file in self._files:
            file.close()

    def expect(self, digests: Mapping[str, str]) -> None:
        """Verifies against `digests` whatever is read from now on, and that all of it is there."""
        self.digests = digests
        names = {group: set(self.names(group)) for group in set(map(posixpath.dirname, digests))}
        for path in digests:
            group, name = posixpath.split(path)
            if name not in names[group]:
                self.damaged.add(path)

    def find_damaged(self, also: Iterable[str] = ()) -> list[str]:
        """Reads whatever has a digest, and `also` these; lists all that is not what was saved."""
        for path in (*self.digests, *also):
            try:
                self.read(path)
            except (KeyError, FileFormatError):
                self.damaged.add(path)
        return sorted(self.damaged)

    def store(self, inner_path: str) -> "Store":
        """Returns what is stored for one saveable: arrays by name, read when asked for."""
        group_path = f"{inner_path}/vars".lstrip("/")
        return Store(self, {name: f"{group_path}/{name}" for name in self.names(group_path)})

    def names(self, group_path: str) -> list[str]:
        """Lists the names in a group, of all files that have it."""
        with self._explained(f"has an unreadable `{group_path}`"):
            return list(dict.fromkeys(name for group in self._groups(group_path) for name in group))

    def below(self, group_path: str) -> list[str]:
        """Lists the datasets in a group, and in the groups inside it, by their paths."""
        return [path for path, _ in self.walk(group_path) if self.address(path)]

    def walk(
        self, group_path: str = "", preferred: Iterable[str] = ()
    ) -> Iterator[tuple[str, str]]:
        """Yields all that is in a group: its path, and the first path of the same object.

        What is in a group is yielded below its first path only: it may be inside itself.

        Args:
            group_path: The group; `""` is the root.
            preferred: Paths of datasets that come first of all that these, and the groups
                they are in, have.
        """
        first: dict[tuple[int, int], str] = {}

        def is_first(path: str) -> bool:
            addresses = [self._info(found)[0] for found in self._found(path)]
            return path in [first.setdefault(address, path) for address in addresses]

        for path in preferred:
            names = path.split("/")
            parents = ("/".join(names[:count]) for count in range(len(names) + 1))
            all(is_first(parent) for parent in parents)  # up to one with a path before it
        pending = [group_path]
        while pending:
            path = pending.pop()
            found = self._find(path)
            if found is None:
                continue
            if not is_first(path):
                yield path, first[self._info(found)[0]]
                continue
            yield path, path
            if isinstance(found, h5py.Group):
                pending += [posixpath.join(path, name) for name in reversed(self.names(path))]

    def links(self) -> list[list[str]]:
        """Lists the tensors that have several paths, each as a list of these."""
        paths = collections.defaultdict(list)
        for path, first in self.walk():
            paths[first].append(path)
        return [linked for linked in paths.values() if linked[1:] and self.address(linked[0])]

    def attributes(self, group_path: str) -> list[dict[str, Any]]:
        """Returns the attributes of a group (`""` is the root), in each file that has it."""
        with self._explained(f"has unreadable attributes at `/{group_path}`"):
            return [dict(group.attrs) for group in self._groups(group_path)]

    def text(self, dataset_path: str) -> bytes | None:
        """Reads a dataset that holds one text, as such or as bytes, if it is there."""
        found: Any = self._find(dataset_path)
        if found is None:
            return None
        with self._explained(f"has no text at `{dataset_path}`"):
            is_text = isinstance(found, h5py.Dataset) and (found.ndim, found.dtype.kind) in _TEXTS
            if not is_text or found.nbytes > self.size:
                raise ValueError("something else, or more")
        return self.read(dataset_path).tobytes().rstrip(b"\0")

    def shape(self, dataset_path: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, which is not read; `KeyError` if there is none."""
        return self._placed(dataset_path)[0].shape

    def dtype(self, dataset_path: str) -> np.dtype:
        """Returns the dtype of a tensor, which is not read; `KeyError` if there is none."""
        return _dtype(self._placed(dataset_path)[0])

    def address(self, dataset_path: str) -> tuple[int, int] | None:
        """Tells one tensor from another: all of its paths have one address."""
        found = self._find(dataset_path)
        return self._info(found)[0] if isinstance(found, h5py.Dataset) else None

    def _info(self, found: h5py.Group | h5py.Dataset) -> tuple[tuple[int, int], int]:
        """Returns where an object is, and how many paths it has."""
        with self._explained("has an unreadable object"):
            info = h5o.get_info(found.id)
            return (info.fileno, info.addr), info.rc

    def read(self, dataset_path: str) -> np.ndarray:
        """Reads one tensor, and notes in `damaged` if it is not what its digest says.

        Raises:
            KeyError: If there is no such dataset.
            FileFormatError: If it cannot be read, or its bytes are outside this file.
        """
        dataset, window = self._placed(dataset_path)
        with self._noted(dataset_path, dataset):
            value, parts = aligned(dataset.shape, self._checked_dtype(dataset)), None
            if _is_laid_out(dataset, value.dtype):
                to_host = self._reader.to_host(content_of(value))
                parts = self._begin(dataset, window, to_host)()
            else:
                _log.debug("%s is read by HDF5: it is not contiguous", dataset_path)
                value[...] = np.asarray(dataset[()]).view(value.dtype)
                self.advance(value.nbytes, self.size)
            expected = self.digests.get(dataset_path)
            if expected and not digests.agrees(expected, value, parts):
                self.damaged.add(dataset_path)
            return ordered(value, self.axis_orders.get(dataset_path))

    def begin_to_read(self, dataset_path: str, memory: DeviceMemory) -> Callable[[], None]:
        """Begins to read one tensor as `read` does, into the memory of one on a card.

        Returns:
            What waits for the end, and raises what `read` does.
        """
        dataset, window = self._placed(dataset_path)
        expected = self.digests.get(dataset_path)
        with self._noted(dataset_path, dataset):
            dtype = self._checked_dtype(dataset)
            by_parts = not expected or digests.are_of_parts(expected)
            if not (by_parts and _is_laid_out(dataset, dtype)):
                memory.copy_from(content_of(self.read(dataset_path)), 0)
                return lambda: None
            parts = self._begin(dataset, window, self._reader.to_device(memory))

        @functools.cache
        def end() -> None:
            with self._noted(dataset_path, dataset):
                found = digests.of_parts(dtype, dataset.shape, parts())
                if expected and found != expected:
                    self.damaged.add(dataset_path)

        return end

    def _begin(
        self, dataset: h5py.Dataset, window: Seeking, place: Place
    ) -> Callable[[], list[bytes]]:
        return self._reader.begin(
            window,
            dataset.id.get_offset() or 0,
            dataset.nbytes,
            place,
            digested=bool(self.digests),
            advance=lambda count: self.advance(count, self.size),
        )

    @contextlib.contextmanager
    def _noted(self, dataset_path: str, dataset: h5py.Dataset) -> Iterator[None]:
        """Notes a dataset that cannot be read."""
        try:
            creation = dataset.id.get_create_plist()
            outside = creation.get_external_count() or creation.get_layout() == h5py.h5d.VIRTUAL
            if not outside:
                yield
        except _HDF5_ERRORS as error:
            self.damaged.add(dataset_path)
            raise self.error(f"has an unreadable `{dataset_path}`", first_line(error)) from error
        if outside:
            raise self.error(f"keeps `{dataset_path}` outside itself", "an external dataset")

    def read_once(self, dataset_path: str, unread_from: float = math.inf) -> Any:
        """Reads one tensor as `read` does, but the same array for all of its paths.

        Args:
            dataset_path: Where it is.
            unread_from: Bytes from which on it is not read, and returned as `Unread`. (One
                that is to lie in memory otherwise is read.)
        """
        dataset, _ = self._placed(dataset_path)
        is_unread = dataset.nbytes >= unread_from and dataset_path not in self.axis_orders
        address, paths = self._info(dataset)
        once = address, is_unread
        if once in self._made:
            return self._made[once]
        if is_unread:
            made = Unread(self, dataset_path)
        else:
            memory = self.read(dataset_path)
            made = memory.view(Stored)
            made.__dict__["memory"] = memory
        if paths > 1:
            self._made[once] = made
        return made

    def _checked_dtype(self, dataset: h5py.Dataset) -> np.dtype:
        """Returns the dtype of a dataset, if it can hold what it declares."""
        dtype = _dtype(dataset)
        if dtype.kind not in _KINDS and dtype != BFLOAT16:
            raise TypeError(f"values of type {dtype}")
        self._check_size(dataset)
        return dtype

    def _check_size(self, dataset: h5py.Dataset) -> None:
        # A dataset is allocated whole, and may be in a place beyond the end of the file.
        declared, stored = dataset.nbytes, min(dataset.id.get_storage_size(), self.size)
        if declared > max(self.room, stored):
            raise ValueError(f"{declared} bytes declared, {stored} stored")

    def check_sizes(self) -> None:
        """Raises an error if a dataset declares more than it stores."""
        for path in self.below(""):
            with self._explained(f"has an unreadable `{path}`"):
                self._check_size(self._placed(path)[0])

    def _placed(self, path: str) -> tuple[h5py.Dataset, Seeking]:
        """Returns a dataset, and the file that it is in."""
        for file, window in zip(self._files, self._windows, strict=True):
            dataset = self._at(file, path)
            if isinstance(dataset, h5py.Dataset):
                return dataset, window
        raise KeyError(path)

    def twins(self, first: str, other: str) -> dict[str, str]:
        """Maps each dataset below the path `other` to the same one below `first`.

        There are none if both are one group, as tiedio writes it.
        """
        if self._found(other) == self._found(first):
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
        found = self._find(alias)
        # One object under two paths, as tiedio writes it, needs no look at the values.
        if found is not None and found == self._find(owner):
            return True
        try:
            return are_equal(self.read(alias), self.read(owner), axes)
        except KeyError:
            return False

    def _find(self, path: str) -> h5py.Group | h5py.Dataset | None:
        """Returns the first object at `path`, or `None`; only hard links are followed."""
        return next(iter(self._found(path)), None)

    def _groups(self, path: str) -> list[Any]:
        return [found for found in self._found(path) if isinstance(found, h5py.Group)]

    def _found(self, path: str) -> list[h5py.Group | h5py.Dataset]:
        """Returns the objects at `path` of all files that have one."""
        return [found for file in self._files if (found := self._at(file, path)) is not None]

    def _at(self, file: h5py.File, path: str) -> h5py.Group | h5py.Dataset | None:
        found: Any = file
        for name in path.split("/") if path else ():
            place = id(found), name  # of an object that is kept, here or as a file
            if place not in self._members:
                with self._explained(f"has an unreadable `{path}`"):
                    self._members[place] = self._member(found, name.encode())
            found = self._members[place]
            if found is None:
                break
        return found

    def _member(self, group: Any, name: bytes) -> h5py.Group | h5py.Dataset | None:
        if not (name and isinstance(group, h5py.Group) and group.id.links.exists(name)):
            return None
        if group.id.links.get_info(name).type != h5l.TYPE_HARD:
            raise ValueError("a link that is not a hard one")
        found = h5o.open(group.id, name)
        if isinstance(found, h5py.h5g.GroupID):
            return h5py.Group(found)
        return h5py.Dataset(found) if isinstance(found, h5py.h5d.DatasetID) else None

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turns any error of HDF5 into a `FileFormatError`."""
        try:
            yield
        except _HDF5_ERRORS as error:
            raise self.error(what, first_line(error)) from error

    def error(self, what: str, received: str) -> FileFormatError:
        return FileFormatError(
            f"`{self.filepath}` {what}.\n"
            f"Expected: weights as Keras stores them. Received: {received}.\n{_DAMAGED}"
        )


def _dtype(dataset: h5py.Dataset) -> np.dtype:
    bfloat16 = dataset.dtype == BFLOAT16_STORED and dataset.attrs.get("dtype") == "bfloat16"
    return BFLOAT16 if bfloat16 else dataset.dtype


def _is_laid_out(dataset: h5py.Dataset, dtype: np.dtype) -> bool:
    """Whether the bytes of a dataset lie in the file as they do in memory."""
    return (
        dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
        and dtype.isnative
        and dtype.kind in "fiubcV"
        # Nothing was ever stored in a dataset without a place: it has its fill value.
        and dataset.id.get_offset() is not None
        and dataset.id.get_storage_size() == dataset.nbytes
        and dataset.id.get_type().get_size() == dtype.itemsize
    )


def damaged(filepath: str, names: Iterable[str], received: str) -> FileFormatError:
    """The error for datasets that contradict the record of a file."""
    return FileFormatError(
        f"`{filepath}` is damaged at {listed(names)}.\n"
        f"Expected: the values that were saved. Received: {received}.\n"
        f"{_DAMAGED}"
    )
