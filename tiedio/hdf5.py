"""Lay out, stream and map a weights file; shared tensors are hard links.

Writer and reader mirror each other. The writer lets HDF5 lay the file out
without any tensor in it, then streams the laid-out bytes and the tensors to a
file that need not seek: one pass, one tensor in memory at a time.
"""

import collections
import dataclasses
import io
import logging
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import h5py
import ml_dtypes
import numpy as np
import xxhash

from tiedio.errors import FileFormatError, first_line, listed

_log = logging.getLogger(__name__)

# HDF5 has no bfloat16: Keras stores the two bytes and says so in an attribute.
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_BFLOAT16_STORED = np.dtype("V2")

# What tensors are made of. Strings of any length, references and compounds are not read at all.
_KINDS = "biufcS"

# Large tensors are read and written in parts that fit into a processor's cache.
CHUNK = 1 << 20  # bytes

# What h5py raises for damaged files, whichever part of HDF5 meets the damage.
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


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array to be written, made only when its turn comes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclasses.dataclass
class Layout:
    """What a weights file holds.

    Attributes:
        groups: Attributes of each HDF5 group, by path; parents need no mention.
        tensors: The tensors by dataset_path.
        links: Second paths of tensors, or of groups, to the first ones.
    """

    groups: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    links: dict[str, str] = dataclasses.field(default_factory=dict)


def write(layout: Layout, stream: IO[bytes]) -> dict[str, str]:
    """Writes `layout` as an HDF5 file to a stream, from its start to its end.

    Returns:
        The digest of each tensor, by dataset_path, linked ones included.
    """
    sheet = _Sheet()
    with h5py.File(sheet, "w") as file:
        placed = sorted(_lay_out(layout, file))
    digests = {}
    position = 0
    for offset, path in placed:
        tensor = layout.tensors[path]
        content = np.ascontiguousarray(tensor.read(), dtype=tensor.dtype)
        digest = _digest(tensor.dtype, tensor.shape)
        if content.nbytes:
            stream.write(sheet.between(position, offset))
            for part in _parts(content):
                digest.update(part)
                stream.write(part)
            position = offset + content.nbytes
        digests[path] = digest.hexdigest()
    stream.write(sheet.between(position, sheet.size))
    linked = {path: digests[first] for path, first in layout.links.items() if first in digests}
    return digests | linked


def _digest(dtype: np.dtype, shape: tuple[int, ...]) -> xxhash.xxh3_64:
    """Begins the digest of a tensor: its dtype and shape, before its bytes."""
    return xxhash.xxh3_64(f"{dtype.name}{list(shape)}".encode())


def _parts(array: np.ndarray) -> Iterator[memoryview]:
    """Cuts the bytes of a contiguous array."""
    content = array.reshape(-1).view(np.uint8).data
    return (content[start : start + CHUNK] for start in range(0, array.nbytes, CHUNK))


def _lay_out(layout: Layout, file: h5py.File) -> list[tuple[int, str]]:
    """Creates every object of `layout`; returns the offset and path of each tensor."""
    for path, attributes in layout.groups.items():
        file.require_group(path).attrs.update(attributes)
    # Allocated at once and never filled, a dataset gets its place and no bytes.
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    placed = []
    for path, tensor in layout.tensors.items():
        parent, name = posixpath.split(path)
        bfloat16 = tensor.dtype == _BFLOAT16
        dataset = h5py.Dataset(
            h5py.h5d.create(
                file.require_group(parent).id,
                name.encode(),
                h5py.h5t.py_create(_BFLOAT16_STORED if bfloat16 else tensor.dtype, logical=True),
                h5py.h5s.create_simple(tensor.shape)
                if tensor.shape
                else h5py.h5s.create(h5py.h5s.SCALAR),
                creation,
            )
        )
        if bfloat16:
            dataset.attrs["dtype"] = "bfloat16"
        # What is empty has no place.
        placed.append((dataset.id.get_offset() if dataset.nbytes else 0, path))
    for path, target in layout.links.items():
        # A shared layer may have stored nothing.
        if target in file:
            file.require_group(posixpath.dirname(path))
            file[path] = file[target]
    return placed


class _Sheet(io.RawIOBase):
    """A file in memory that keeps only the pages HDF5 has written to."""

    PAGE = 4096

    def __init__(self):
        self.pages: dict[int, bytearray] = {}
        self.position = 0
        self.size = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def truncate(self, size: int | None = None) -> int:
        self.size = self.position if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        done = 0
        while done < len(data):
            number, start = divmod(self.position, self.PAGE)
            page = self.pages.setdefault(number, bytearray(self.PAGE))
            part = data[done : done + self.PAGE - start]
            page[start : start + len(part)] = part
            done += len(part)
            self.position += len(part)
        self.size = max(self.size, self.position)
        return done

    def readinto(self, buffer: Any) -> int:
        content = self.between(self.position, min(self.position + len(buffer), self.size))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)

    def between(self, start: int, end: int) -> bytes:
        """Returns the bytes from `start` to `end`, zeros where nothing was written."""
        if end <= start:
            return b""
        first, last = start // self.PAGE, (end - 1) // self.PAGE
        blank = bytes(self.PAGE)
        pages = b"".join(self.pages.get(number, blank) for number in range(first, last + 1))
        return pages[start - first * self.PAGE : end - first * self.PAGE]


class WeightsFile:
    """A weights file open for reading.

    Args:
        file: A seekable binary file.
        filepath: Its name for messages.

    Attributes:
        digests: The digests that tensors must have, by dataset_path; none at first.
        damaged: Datasets that were read and had another digest, or are missing.
        room: Bytes that a dataset may declare without storing them, as one that is
            compressed does: at least those of the largest tensor to be read.

    Raises:
        FileFormatError: If it is no HDF5 file, or a damaged one.
    """

    def __init__(self, file: IO[bytes], filepath: str):
        self.filepath = filepath
        self.digests: Mapping[str, str] = {}
        self.damaged: set[str] = set()
        self.room = 1 << 28
        self._bytes: Any = file
        self._size = file.seek(0, io.SEEK_END)
        try:
            self._file = h5py.File(file, "r")
        except OSError as error:
            raise self._error("is not an HDF5 file", str(error)) from error

    def close(self) -> None:
        self._file.close()
        self._bytes.close()

    def expect(self, digests: Mapping[str, str]) -> None:
        """Verifies against `digests` whatever is read from now on, and that all of it is there."""
        self.digests = digests
        groups = collections.defaultdict(set)
        for path in digests:
            group, name = posixpath.split(path)
            groups[group].add(name)
        for group, names in groups.items():
            self.damaged.update(f"{group}/{name}" for name in names.difference(self.names(group)))

    def store(self, inner_path: str) -> "Store":
        """Returns what is stored for one saveable: arrays by name, read when asked for."""
        return Store(self, f"{inner_path}/vars".lstrip("/"))

    def names(self, group_path: str) -> list[str]:
        group = self._find(group_path)
        try:
            return list(group) if isinstance(group, h5py.Group) else []
        except _HDF5_ERRORS as error:
            raise self._error(f"has an unreadable `{group_path}`", first_line(error)) from error

    def shape(self, dataset_path: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, which is not read; `KeyError` if there is none."""
        return self._dataset(dataset_path).shape

    def read(self, dataset_path: str) -> np.ndarray:
        """Reads one tensor, and notes in `damaged` if it is not what its digest says.

        Raises:
            KeyError: If there is no such dataset.
            FileFormatError: If it cannot be read, or its bytes are outside this file.
        """
        dataset = self._dataset(dataset_path)
        expected = self.digests.get(dataset_path)
        try:
            outside = dataset.external or dataset.is_virtual
            if not outside:
                value = self._empty(dataset)
                digest = _digest(value.dtype, value.shape)
                if _is_laid_out(dataset):
                    self._bytes.seek(dataset.id.get_offset() or 0)
                    for part in _parts(value):
                        if self._bytes.readinto(part) != len(part):
                            raise EOFError("its bytes end too early")
                        if expected:
                            digest.update(part)
                else:
                    _log.debug("%s is read by HDF5: it is not contiguous", dataset_path)
                    value[...] = np.asarray(dataset[()]).view(value.dtype)
                    digest.update(value.data if value.dtype != _BFLOAT16 else value.view("u2").data)
                if expected and digest.hexdigest() != expected:
                    self.damaged.add(dataset_path)
                return value
        except _HDF5_ERRORS as error:
            raise self._error(f"has an unreadable `{dataset_path}`", first_line(error)) from error
        raise self._error(f"keeps `{dataset_path}` outside itself", "an external dataset")

    def _empty(self, dataset: h5py.Dataset) -> np.ndarray:
        """Makes room for the values of a dataset, if it can hold what it declares."""
        bfloat16 = dataset.dtype == _BFLOAT16_STORED and dataset.attrs.get("dtype") == "bfloat16"
        if dataset.dtype.kind not in _KINDS and not bfloat16:
            raise TypeError(f"values of type {dataset.dtype}")
        # A dataset is allocated whole, and may be in a place beyond the end of the file.
        declared, stored = dataset.nbytes, min(dataset.id.get_storage_size(), self._size)
        if declared > max(self.room, stored):
            raise ValueError(f"{declared} bytes declared, {stored} stored")
        return np.empty(dataset.shape, _BFLOAT16 if bfloat16 else dataset.dtype)

    def _dataset(self, path: str) -> h5py.Dataset:
        dataset = self._find(path)
        if not isinstance(dataset, h5py.Dataset):
            raise KeyError(path)
        return dataset

    def twins(self, first: str, other: str) -> dict[str, str]:
        """Maps each dataset below the path `other` to the same one below `first`.

        There are none if both are one group, as tiedio writes it.
        """
        group = self._find(other)
        if not isinstance(group, h5py.Group) or group == self._find(first):
            return {}
        names: list[str] = []
        try:
            group.visititems(lambda name, _: names.append(name))
            names = [name for name in names if isinstance(group[name], h5py.Dataset)]
        except _HDF5_ERRORS as error:
            raise self._error(f"has an unreadable `{other}`", first_line(error)) from error
        return {f"{other}/{name}": f"{first}/{name}" for name in names}

    def disagreements(self, paths: Mapping[str, str]) -> list[str]:
        """Lists the datasets that should be, but do not equal, another one.

        Args:
            paths: dataset_paths of aliases, to those of their owners.
        """
        differing = []
        for alias, owner in paths.items():
            first, second = self._find(owner), self._find(alias)
            # One object under two paths, as tiedio writes it, needs no look at the values.
            if not (first is not None and second is not None and first == second):
                try:
                    if self.read(alias).tobytes() == self.read(owner).tobytes():
                        continue
                except KeyError:
                    pass
                differing.append(alias)
        return differing

    def _find(self, path: str) -> h5py.Group | h5py.Dataset | None:
        """Returns the object at `path`, or `None`; only hard links are followed."""
        found: Any = self._file
        for name in path.split("/"):
            if not isinstance(found, h5py.Group):
                return None
            try:
                link = found.get(name, getlink=True)
                if link is None:
                    return None
                followed = isinstance(link, h5py.HardLink)
                found = found[name] if followed else None
            except _HDF5_ERRORS as error:
                raise self._error(f"has an unreadable `{path}`", first_line(error)) from error
            if not followed:
                raise self._error(f"has a {type(link).__name__} at `{path}`", "a link")
        return found

    def _error(self, what: str, received: str) -> FileFormatError:
        return FileFormatError(
            f"`{self.filepath}` {what}.\n"
            f"Expected: weights as Keras stores them. Received: {received}.\n{_DAMAGED}"
        )


class Store(Mapping[str, np.ndarray]):
    """The arrays of one saveable, as `load_own_variables` expects them."""

    def __init__(self, file: WeightsFile, group_path: str):
        self._file = file
        self._group_path = group_path
        self._names = file.names(group_path)

    def shapes(self) -> list[tuple[int, ...]]:
        """Returns the shapes of arrays that are named by number, in their order."""
        names = sorted(self._names, key=lambda name: (len(name), name))
        return [self._file.shape(f"{self._group_path}/{name}") for name in names]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file.read(f"{self._group_path}/{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _is_laid_out(dataset: h5py.Dataset) -> bool:
    """Whether the bytes of a dataset lie in the file as they do in memory."""
    layout = dataset.id.get_create_plist().get_layout()
    return (
        layout == h5py.h5d.CONTIGUOUS
        and dataset.dtype.isnative
        and dataset.dtype.kind in "fiubcV"
        # Nothing was ever stored in a dataset without a place: it has its fill value.
        and dataset.id.get_offset() is not None
        and dataset.id.get_storage_size() == dataset.nbytes
        and dataset.id.get_type().get_size() == dataset.dtype.itemsize
    )


def damaged(filepath: str, names: Iterable[str], received: str) -> FileFormatError:
    """The error for datasets that contradict the record of a file."""
    return FileFormatError(
        f"`{filepath}` is damaged at {listed(names)}.\n"
        f"Expected: the values that were saved. Received: {received}.\n"
        f"{_DAMAGED}"
    )
