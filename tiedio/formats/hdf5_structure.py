"""Write the structure of an HDF5 file: all that it has beside the values of its datasets.

The structure comes first, then the values in their order: a file that is written from its start to
its end. libhdf5 takes longer to lay out thousands of layers than Keras takes for their config; so
it is done here, in the oldest version of the format, as by h5py: every reader knows that.

Source: HDF5 File Format Specification, version 3.0, whose names the parts have here:
https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""

import functools
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy as np

T = TypeVar("T")

_UNDEFINED = (1 << 64) - 1  # an address that leads nowhere

_SUPERBLOCK = struct.Struct("<8s5xBBxHHI6QI4x16x")

# An object header is a list of messages, of these kinds.
_HEADER = struct.Struct("<BxHII4x")
_MESSAGE = struct.Struct("<HHB3x")
_LARGEST_MESSAGE = (1 << 16) - 8  # bytes
_MOST_AXES = 32
_DATASPACE, _DATATYPE, _FILL_VALUE, _DATA_LAYOUT, _ATTRIBUTE, _SYMBOL_TABLE = 1, 3, 5, 8, 12, 17
_CONSTANT = 1
_LENGTHS = struct.Struct("<BxHHH")  # of the parts of an attribute

# The symbol table of a group: names in a heap, where they lead in nodes, and a tree of these.
_HEAP = struct.Struct("<4sB3xQQQ")
_NOTHING_FREE = 1
_NODE = struct.Struct("<4sBxH")
_ENTRY = struct.Struct("<QQ24x")
_MOST_ENTRIES = 8
_NODE_SIZE = _NODE.size + _MOST_ENTRIES * _ENTRY.size
_TREE_NODE = struct.Struct("<4sBBHQQ")
_MOST_CHILDREN = 32
_TREE_NODE_SIZE = _TREE_NODE.size + 8 * (2 * _MOST_CHILDREN + 1)

# Text of any length is in a collection of such; where it is used there is a reference to it.
_COLLECTION = struct.Struct("<4sB3xQ")
_TEXT = struct.Struct("<H6xQ")
# Bytes of a collection. One that is larger has one text: `Objects` reads no others.
_SMALLEST_COLLECTION, _LARGEST_COLLECTION = 1 << 12, 1 << 16
_REFERENCE = struct.Struct("<IQI")


class Dataset(NamedTuple):
    """A dataset to be."""

    shape: tuple[int, ...]
    dtype: np.dtype
    attributes: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Structure(NamedTuple):
    """The start of a file, and what follows.

    Attributes:
        content: All that comes before the first value.
        offsets: Where the values of each dataset begin, by its path; those of an empty one
            begin nowhere.
        size: The bytes of the whole file.
    """

    content: bytes
    offsets: dict[str, int]
    size: int


def structure(
    groups: Mapping[str, Mapping[str, Any]],
    datasets: Mapping[str, Dataset],
    links: Mapping[str, str],
) -> Structure:
    """Lays a file out.

    Args:
        groups: The attributes of groups, by path; "" is the root. Parents need no mention.
        datasets: The datasets by path, in the order in which their values follow.
        links: Second paths of datasets and groups, to the first ones. Those that lead nowhere
            are left out.

    Returns:
        The structure, and where the values go.

    Raises:
        ValueError: If HDF5 has no such name or text, or no room for an attribute or so many axes.
        TypeError: If it has no such dtype.
    """
    tree, texts = _Tree(), _Texts(_SUPERBLOCK.size)
    for path, attributes in groups.items():
        tree.group(path).add_attributes(attributes, texts)
    placed: dict[str, _Object] = {}
    for path, dataset in datasets.items():
        placed[path] = _Object(_described(dataset.shape, dataset.dtype))
        placed[path].add_attributes(dataset.attributes, texts)
        tree.add(path, placed[path])
    for path, target in links.items():
        if found := tree.find(target):
            tree.add(path, found)
    texts.finish()
    position = texts.end
    for one in tree.objects:
        one.address = position
        position += one.size
    tables = []
    for one in tree.objects:
        if one.members is not None:
            table, *one.place = _symbol_table(one.members, position)
            tables.append(table)
            position += len(table)
    offsets = {}
    for path, dataset in datasets.items():
        if dataset.nbytes:
            offsets[path] = position
            placed[path].place = position, dataset.nbytes
            position += _padded(dataset.nbytes)
    start = _SUPERBLOCK.pack(
        *(b"\x89HDF\r\n\x1a\n", 8, 8),  # how many bytes addresses and lengths have
        *(_MOST_ENTRIES // 2, _MOST_CHILDREN // 2, 0),
        *(0, _UNDEFINED, position, _UNDEFINED),  # where the file begins and ends
        *(0, tree.root.address, 0),
    )
    parts = [start, *texts.parts, *(one.header() for one in tree.objects), *tables]
    return Structure(b"".join(parts), offsets, position)


class _Texts:
    """Collections of text, the first of which begins at `end`.

    Attributes:
        parts: Their bytes.
        end: Where they end.
    """

    def __init__(self, end: int):
        self.parts: list[bytes] = []
        self.end = end
        self._references: dict[bytes, bytes] = {}
        self._collected: list[bytes] = []
        self._used = _COLLECTION.size + _TEXT.size  # with what says how much is free

    def reference(self, text: bytes) -> bytes:
        """Adds a text, unless it is there, and returns what stands where it is used.

        Raises:
            ValueError: If HDF5 would end it early.
        """
        if b"\0" in text:
            raise ValueError(f"no text in HDF5 has a zero byte inside: {text[:60]!r}")
        if text not in self._references:
            if self._used + _TEXT.size + _padded(len(text)) > _LARGEST_COLLECTION:
                self.finish()
            number = len(self._collected) + 1
            self._collected.append(_TEXT.pack(number, len(text)) + _pad(text))
            self._used += len(self._collected[-1])
            self._references[text] = _REFERENCE.pack(len(text), self.end, number)
        return self._references[text]

    def finish(self) -> None:
        """Ends a collection, if anything is in it."""
        if self._collected:
            size = max(_SMALLEST_COLLECTION, self._used)
            free = size - self._used + _TEXT.size
            rest = _TEXT.pack(0, free).ljust(free, b"\0")
            self.parts += [_COLLECTION.pack(b"GCOL", 1, size), *self._collected, rest]
            self.end += size
        self._collected, self._used = [], _COLLECTION.size + _TEXT.size


class _Object:
    """A dataset or a group in the making.

    Attributes:
        members: What is in a group, by name; `None` for a dataset.
        address: Where its header is.
        place: Where the rest is: of a dataset the values, and their size; of a group the tree of
            its names, and their heap.
        links: How many paths lead to it.
    """

    def __init__(self, messages: Iterable[bytes], members: "dict[bytes, _Object] | None" = None):
        self.members = members
        self.address = 0
        self.place: Sequence[int] = (_UNDEFINED, 0)
        self.links = 0
        self._messages = list(messages)

    def add_attributes(self, attributes: Mapping[str, Any], texts: _Texts) -> None:
        self._messages += (_attribute(name, value, texts) for name, value in attributes.items())

    @property
    def size(self) -> int:
        return len(self.header())

    def header(self) -> bytes:
        if self.members is None:
            last = _message(_DATA_LAYOUT, struct.pack("<BBQQ", 3, 1, *self.place))
        else:
            last = _message(_SYMBOL_TABLE, struct.pack("<QQ", *self.place))
        messages = b"".join([*self._messages, last])
        return _HEADER.pack(1, len(self._messages) + 1, self.links, len(messages)) + messages


class _Tree:
    """All objects, by the names that lead to them.

    Attributes:
        root: The group that all paths begin at.
        objects: All of them.
    """

    def __init__(self):
        self.root = _Object((), {})
        self.root.links = 1
        self.objects = [self.root]
        self._groups = {"": self.root}

    def group(self, path: str) -> _Object:
        """Returns a group, which is made if there is none, as are those that it is in."""
        new, above = [], path
        while above not in self._groups:
            new.append(above)
            above = above.rpartition("/")[0]
        for one in reversed(new):
            parent, _, name = one.rpartition("/")
            found = (self._groups[parent].members or {}).get(name.encode())
            if found is None:
                found = _Object((), {})
                self.add(one, found)
            self._groups[one] = found
        return self._groups[path]

    def add(self, path: str, one: _Object) -> None:
        """Lets one more path lead to an object.

        Raises:
            ValueError: If HDF5 has no such path, or it leads to another object.
        """
        parent, _, last = path.rpartition("/")
        name, members = last.encode(), self.group(parent).members
        if members is None or name in members or name in (b"", b".") or b"\0" in name:
            raise ValueError(f"nothing more can be at `{path}` in HDF5")
        members[name] = one
        if not one.links:
            self.objects.append(one)
        one.links += 1

    def find(self, path: str) -> _Object | None:
        """Returns what a path leads to."""
        found: _Object | None = self.root
        for name in path.encode().split(b"/"):
            found = (found.members or {}).get(name) if found else None
        return found


def _symbol_table(members: Mapping[bytes, _Object], position: int) -> tuple[bytes, int, int]:
    """Returns the table of a group that is to be at a position; where its tree is, and its heap."""
    names = sorted(members)
    heap, at = [bytes(8)], {b"": 0}  # before all names there is an empty one
    end = 8
    for name in names:
        heap.append(_pad(name + b"\0"))
        at[name] = end
        end += len(heap[-1])
    start = position + _HEAP.size
    parts = [_HEAP.pack(b"HEAP", 0, end, _NOTHING_FREE, start), *heap]
    end += start
    # Each child is followed by where its last name is.
    children: list[tuple[int, int]] = []
    for some in _cut(names, _MOST_ENTRIES):
        entries = b"".join(_ENTRY.pack(at[name], members[name].address) for name in some)
        parts.append((_NODE.pack(b"SNOD", 1, len(some)) + entries).ljust(_NODE_SIZE, b"\0"))
        children.append((end, at[some[-1]]))
        end += _NODE_SIZE
    level = 0
    while level == 0 or len(children) > 1:
        above: list[tuple[int, int]] = []
        last = 0
        nodes = list(_cut(children, _MOST_CHILDREN)) or [[]]
        for number, some in enumerate(nodes):
            left = end - _TREE_NODE_SIZE if number else _UNDEFINED
            right = end + _TREE_NODE_SIZE if number + 1 < len(nodes) else _UNDEFINED
            held = struct.pack(
                f"<{2 * len(some) + 1}Q", last, *(n for child in some for n in child)
            )
            node = _TREE_NODE.pack(b"TREE", 0, level, len(some), left, right) + held
            parts.append(node.ljust(_TREE_NODE_SIZE, b"\0"))
            last = some[-1][1] if some else 0
            above.append((end, last))
            end += _TREE_NODE_SIZE
        children, level = above, level + 1
    return b"".join(parts), children[0][0], position


def _cut(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _padded(size: int) -> int:
    """Returns how much room so many bytes take: all begins at a multiple of 8."""
    return -(-size // 8) * 8


def _pad(content: bytes) -> bytes:
    return content.ljust(_padded(len(content)), b"\0")


def _message(kind: int, content: bytes, constant: int = 0) -> bytes:
    content = _pad(content)
    return _MESSAGE.pack(kind, len(content), constant) + content


@functools.lru_cache
def _described(shape: tuple[int, ...], dtype: np.dtype) -> tuple[bytes, ...]:
    """Returns the messages that say what a dataset holds: values that are there, all of them."""
    return (
        _message(_DATASPACE, _dataspace(shape)),
        _message(_DATATYPE, _datatype(dtype), _CONSTANT),
        _message(_FILL_VALUE, struct.pack("<BBBBI", 2, 1, 1, 1, 0), _CONSTANT),
    )


def _dataspace(shape: tuple[int, ...]) -> bytes:
    if len(shape) > _MOST_AXES:
        raise ValueError(f"no room in HDF5 for {len(shape)} axes")
    return struct.pack(f"<BB6x{len(shape)}Q", 1, len(shape), *shape)


@functools.lru_cache
def _datatype(dtype: np.dtype) -> bytes:
    # What comes first says that it is a datatype.
    return h5py.h5t.py_create(dtype, logical=True).encode()[2:]


def _attribute(name: str, value: Any, texts: _Texts) -> bytes:
    """Returns the message of an attribute.

    Raises:
        ValueError: If HDF5 has no such text, or no room for it.
        TypeError: If it has no such dtype.
    """
    if isinstance(value, (str, bytes)) or np.asarray(value).dtype.kind == "U":
        held = [value] if isinstance(value, (str, bytes)) else np.ravel(value).tolist()
        is_utf8 = not isinstance(value, bytes)
        shape = () if isinstance(value, (str, bytes)) else np.shape(value)
        datatype = struct.pack("<BBBxIIIHH", 0x19, 1, is_utf8, _REFERENCE.size, 0x10, 1, 0, 8)
        content = b"".join(
            texts.reference(one.encode() if isinstance(one, str) else one) for one in held
        )
    else:
        array = np.asarray(value)
        shape, datatype, content = array.shape, _datatype(array.dtype), array.tobytes()
    key, dataspace = name.encode() + b"\0", _dataspace(shape)
    described = _pad(key) + _pad(datatype) + dataspace + content
    size = len(described) + _LENGTHS.size
    if size > _LARGEST_MESSAGE:
        raise ValueError(f"no room in HDF5 for the {size} bytes of the attribute `{name[:60]}`")
    lengths = _LENGTHS.pack(1, len(key), len(datatype), len(dataspace))
    return _message(_ATTRIBUTE, lengths + described)
