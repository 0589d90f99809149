"""Find the groups and datasets of a weights file by their paths, and their attributes.

Only hard links are followed, and no attribute is read but those that are asked for.
"""

import contextlib
import functools
import math
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import h5py
from h5py import h5a, h5l, h5o  # pyright: ignore[reportAttributeAccessIssue]  (compiled, untyped)

from tiedio.errors import RESTORE, FileFormatError, damaged, first_line
from tiedio.formats import foreign
from tiedio.storage.streams import Again, Seeking

# Errors of h5py for damaged files, whichever part of HDF5 meets the damage.
HDF5_ERRORS = (
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    MemoryError,
)

# A file that holds nothing is no larger. One that is, and has an empty root, has lost its names:
# HDF5 keeps no checksum of them.
_EMPTY = 1 << 12

# Bytes that all attributes may take beside those of the file, and an element beside its own.
_ATTRIBUTES = 1 << 25
_ELEMENT = 128
# HDF5 writes short texts into heaps of at most so many bytes, and a longer one into one of its own.
_HEAP = 1 << 16
# Bytes that one attribute may take while it is read.
_AT_ONCE = 1 << 27

# A model that is nested a thousand times has a path of so many characters. A group may be inside
# others, which have many members: so many all paths of a walk may have beside a file's bytes.
_LONGEST_PATH = 1 << 14
_PATHS = 1 << 24
# As often as a path is asked for, it is looked up once, unless so many others were asked for since.
_PATHS_KEPT = 1 << 16

# Kinds of elements that an attribute may have; texts may also be of any length.
_KINDS = "biufS"

# A group, or a dataset.
Found = h5py.Group | h5py.Dataset


class Objects:
    """The groups and datasets of a file, or of the shards of one.

    Args:
        files: The files; what several have is taken from the first of them.
        filepath: Its name for messages.
        verify: Compares all of them with a checksum; `None` if there is none.

    Raises:
        FileFormatError: If it is no HDF5 file, or a damaged one.
    """

    def __init__(
        self, files: Sequence[Seeking], filepath: str, verify: Callable[[], None] | None = None
    ):
        self.filepath = filepath
        self._verify = verify
        self._windows = files
        self._files: list[h5py.File] = []
        # The file does not change: what was found out of an object once is not asked again.
        self._members: dict[tuple[int, str], Found | None] = {}
        self._found = functools.lru_cache(_PATHS_KEPT)(self._look_up)
        self._names: dict[int, list[str]] = {}
        self._infos: dict[int, tuple[tuple[int, int], int]] = {}
        self._around: dict[int, tuple[str, Any]] = {}  # the group of each file that was asked last
        self._room_of_paths = _PATHS + sum(file.size for file in files)
        self._attributes: dict[tuple[int, int, str], Any] = {}
        self._room_of_attributes = _ATTRIBUTES + sum(file.size for file in files)
        try:
            for file in files:
                self._files.append(h5py.File(file, "r"))
        except HDF5_ERRORS as error:
            file = files[len(self._files)]
            file.seek(0)
            if told := foreign.recognised(file.read(foreign.LENGTH)):
                received, advice = told
                raise FileFormatError(
                    f"`{filepath}` has weights that are no HDF5 file.\n"
                    f"Expected: weights as Keras stores them. Received: {received}.\n{advice}"
                ) from error
            if "truncated file" in str(error):
                raise damaged(filepath, "an HDF5 file without its end; it was truncated") from error
            raise self.error("is not an HDF5 file", str(error)) from error
        for opened, file in zip(self._files, files, strict=True):
            with self._explained("has an unreadable root"):
                is_empty = not len(opened)
            if is_empty and file.size > _EMPTY:
                raise damaged(filepath, f"{file.size} bytes that no name leads to")

    def close(self) -> None:
        for file in self._files:
            file.close()

    def names(self, group_path: str) -> list[str]:
        """Lists the names in a group, of all files that have it."""
        with self._explained(f"has an unreadable `{group_path}`"):
            groups = [one for one, _ in self._found(group_path) if isinstance(one, h5py.Group)]
            for group in groups:
                if id(group) not in self._names:
                    self._names[id(group)] = [name.decode() for name in group.id]
            return list(dict.fromkeys(name for one in groups for name in self._names[id(one)]))

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
            addresses = [self._info(found)[0] for found, _ in self._found(path)]
            return path in [first.setdefault(address, path) for address in addresses]

        @functools.cache
        def is_first_all_along(path: str) -> bool:
            names = path.split("/")
            parents = ("/".join(names[:count]) for count in range(len(names) + 1))
            return all(is_first(parent) for parent in parents)  # up to one with a path before it

        for path in (one for one in preferred if len(one) <= _LONGEST_PATH):
            if is_first_all_along(posixpath.dirname(path)):
                is_first(path)
        pending = [group_path]
        while pending:
            path = pending.pop()
            self._room_of_paths -= len(path)
            if self._room_of_paths < 0 or len(path) > _LONGEST_PATH:
                raise self.error(f"has groups inside `{path[:99]}`", "too many in each other")
            found = self._find(path)
            if found is None:
                continue
            if not is_first(path):
                yield path, first[self._info(found)[0]]
                continue
            yield path, path
            if isinstance(found, h5py.Group):
                pending += [posixpath.join(path, name) for name in reversed(self.names(path))]

    def address(self, dataset_path: str) -> tuple[int, int] | None:
        """Tells one tensor from another: all of its paths have one address."""
        found = self._find(dataset_path)
        return self._info(found)[0] if isinstance(found, h5py.Dataset) else None

    def attribute(self, path: str, name: str) -> Any:
        """Returns an attribute of what is at a path (`""` is the root); `None` if it has none."""
        return next(iter(self.attributes(path, name)), None)

    def attributes(self, path: str, name: str) -> list[Any]:
        """Returns an attribute of what is at a path, in each file that has something there."""
        return [self._attribute(found, window, name) for found, window in self._found(path)]

    def _attribute(self, found: Found, window: Seeking, name: str) -> Any:
        with self._explained(f"has an unreadable attribute `{name}` at `{found.name}`"):
            if not h5a.exists(found.id, name.encode()):
                return None
            place = (*self._info(found)[0], name)
            if place not in self._attributes:
                self._attributes[place] = self._read_attribute(found, window, name)
            return self._attributes[place]

    def _read_attribute(self, found: Found, window: Seeking, name: str) -> Any:
        declared = h5a.open(found.id, name.encode())
        count = math.prod(declared.shape)
        is_text = h5py.check_string_dtype(declared.dtype)
        if not is_text and declared.dtype.kind not in _KINDS:
            raise TypeError(f"values of type {declared.dtype}")
        if not is_text or is_text.length:
            self._take(count * (_ELEMENT + declared.dtype.itemsize))
            return found.attrs[name]
        # HDF5 does not say how long texts are before it has read them all, and many may be one
        # text, in one place. None is longer than the heap that it lies in.
        self._take(count * _ELEMENT)
        if count * _HEAP > _AT_ONCE:
            raise ValueError(f"{count} texts in one attribute")
        try:
            with window.refusing(_HEAP):
                value: Any = found.attrs[name]
        except OSError:
            if count > 1:
                raise
            # Apart: what HDF5 has read before, it does not read again, and would not be refused.
            apart = Again(window)
            with contextlib.closing(h5py.File(apart, "r")) as file, apart.refusing(_AT_ONCE):
                value = h5py.Group(h5o.open(file.id, str(found.name).encode())).attrs[name]
        self._take(sum(map(len, value.reshape(-1))) if declared.shape else len(value))
        return value

    def _take(self, size: int) -> None:
        """Takes room for an attribute."""
        if size > self._room_of_attributes:
            raise ValueError("more than the file can hold")
        self._room_of_attributes -= size

    def _info(self, found: Found) -> tuple[tuple[int, int], int]:
        """Returns where an object is, and how many paths it has."""
        if id(found) not in self._infos:
            with self._explained("has an unreadable object"):
                info = h5o.get_info(found.id)
                self._infos[id(found)] = (info.fileno, info.addr), info.rc
        return self._infos[id(found)]

    def _find(self, path: str) -> Found | None:
        """Returns the first object at `path`, or `None`; only hard links are followed."""
        return next((found for found, _ in self._found(path)), None)

    def _look_up(self, path: str) -> list[tuple[Found, Seeking]]:
        """Returns the objects at `path` of all files that have one, and these files."""
        pairs = zip(self._files, self._windows, strict=True)
        return [(found, w) for file, w in pairs if (found := self._at(file, path)) is not None]

    def _at(self, file: h5py.File, path: str) -> Found | None:
        if not path:
            return file
        around, found = self._around.get(id(file), ("", file))
        if not path.startswith(f"{around}/"):
            around, found = "", file
        *groups, name = path[len(around) :].lstrip("/").split("/")
        for group in groups:
            found = self._inside(found, group)
            if found is None:
                return None
        self._around[id(file)] = path[: -len(name) - 1], found
        return self._inside(found, name)

    def _inside(self, group: Any, name: str) -> Found | None:
        place = id(group), name  # of an object that is kept, here or as a file
        if place not in self._members:
            try:
                self._members[place] = self._member(group, name.encode())
            except HDF5_ERRORS as error:
                path = posixpath.join(str(group.name), name).lstrip("/")
                raise self.error(f"has an unreadable `{path}`", first_line(error)) from error
        return self._members[place]

    def _member(self, group: Any, name: bytes) -> Found | None:
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
        except HDF5_ERRORS as error:
            raise self.error(what, first_line(error)) from error

    def error(self, what: str, received: str) -> FileFormatError:
        """The error for what cannot be read; if a checksum tells of damage, that for damage."""
        return self._damage or FileFormatError(
            f"`{self.filepath}` {what}.\n"
            f"Expected: weights as Keras stores them. Received: {received}.\n{RESTORE}"
        )

    @functools.cached_property
    def _damage(self) -> FileFormatError | None:
        try:
            if self._verify:
                self._verify()
        except FileFormatError as error:
            return error
        return None
