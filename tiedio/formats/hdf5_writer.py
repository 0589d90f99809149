"""Lay a weights file out and stream it; shared tensors are hard links.

`hdf5_structure` lays the file out without any tensor in it; then this structure and
the tensors are streamed to a file that need not seek: one pass, one tensor in memory
at a time. `hdf5_reader` reads it back.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tiedio.formats import digests
from tiedio.formats.arrays import content_of
from tiedio.formats.checksum import Checksum
from tiedio.formats.device_memory import DeviceMemory
from tiedio.formats.hdf5_structure import Dataset, Structure, structure
from tiedio.record.ties import METADATA_KEY
from tiedio.storage.streams import WriteBehind

# HDF5 has no bfloat16: Keras stores the two bytes and says so in an attribute.
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BFLOAT16_STORED = np.dtype("V2")

# The path of the record: not at the root, whose datasets Keras' file editor takes for variables of
# the model; it leaves out a group with an empty `vars`, which a layer without variables has.
RECORD = f"{METADATA_KEY}/record"
NO_VARIABLES = "{}/vars"

# Tensors of so many bytes are written in parts; less is gathered.
_LARGE = 1 << 18

# Told of bytes that were read or written: how many more, and of how many.
Advance = Callable[[int, int], None]


# Fills memory with the bytes of a tensor, from a position on.
Copy = Callable[[memoryview, int], None]


def untold(count: int, total: int) -> None:
    """Tells nobody."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array to be written, made only when its turn comes.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        read: Makes it.
        axis_order: How it lies in memory, if not row by row: its axes, that of the
            largest stride first.
        source: The variable whose value it is, if it is that of one.
        show: Returns its memory, of so many bytes, if that is the memory of a card.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    axis_order: tuple[int, ...] | None = None
    source: Any = None
    show: Callable[[int], DeviceMemory | None] = lambda nbytes: None

    @classmethod
    def of(cls, array: np.ndarray) -> "Tensor":
        """Makes one of an array that is there already."""
        return cls(array.shape, array.dtype, lambda: array)

    @classmethod
    def of_file(cls, path: Path) -> "Tensor":
        """Makes one of the bytes of a file."""
        read = functools.partial(np.fromfile, path, np.uint8)
        return cls((path.stat().st_size,), np.dtype(np.uint8), read)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def on_device(self) -> DeviceMemory | None:
        """Returns its memory, if that is the memory of a card."""
        return self.show(self.nbytes)

    def copying(self) -> Copy:
        """Makes it, and returns what copies a part of its bytes."""
        value = np.ascontiguousarray(self.read(), dtype=self.dtype)
        content = content_of(value)

        def copy(part: memoryview, start: int) -> None:
            part[:] = content[start : start + len(part)]

        return copy


@dataclasses.dataclass
class Layout:
    """The content of a weights file.

    Attributes:
        groups: Attributes of each HDF5 group, by path ("" is the root); parents need no
            mention.
        tensors: The tensors by dataset_path.
        links: Second paths of tensors, or of groups, to the first ones.
    """

    groups: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    links: dict[str, str] = dataclasses.field(default_factory=dict)


def write(
    layout: Layout,
    stream: WriteBehind,
    advance: Advance = untold,
    record: Callable[[dict[str, str]], str] | None = None,
    checksum: Checksum | None = None,
) -> dict[str, str]:
    """Writes `layout` as an HDF5 file to a stream, from its start to its end.

    Args:
        layout: What to write.
        stream: Where to.
        advance: Told how many bytes more are written, and of how many.
        record: Makes the text of the record, if there is to be one, given the digests that
            are returned.
        checksum: What all bytes are added to.

    Returns:
        The digest of each tensor, by dataset_path, linked ones included.
    """
    found: dict[str, str] = {}
    if record:
        layout = _with_record(layout, record, found)
    laid_out = lay_out(layout)
    writing = _Writing(stream, checksum, lambda count: advance(count, laid_out.size))
    writing.add_bytes(laid_out.content)
    position = len(laid_out.content)
    for path, tensor in layout.tensors.items():
        offset = laid_out.offsets.get(path, position)
        writing.add_bytes(bytes(offset - position))
        position = offset + tensor.nbytes
        if path == RECORD:  # it comes last
            found |= writing.finish()
        writing.add(path, tensor)
    writing.add_bytes(bytes(laid_out.size - position))
    found |= writing.finish()
    found.pop(RECORD, None)
    return _with_links(found, layout)


class _Sums(NamedTuple):
    """The digest of a part, and its checksum."""

    digest: bytes
    checksum: int


class _Writing:
    """Writes in order: small things gathered, large tensors in parts that threads make.

    Another thread may train a variable in place: digest and checksum are of a copy, which is
    what is written.

    Args:
        stream: Where to.
        checksum: What all bytes are added to.
        advance: Told how many bytes more are written.
    """

    def __init__(
        self, stream: WriteBehind, checksum: Checksum | None, advance: Callable[[int], None]
    ):
        self._stream = stream
        self._checksum = checksum
        self._advance = advance
        self._gathered = bytearray()
        self._made: collections.deque[tuple[Future[_Sums], int]] = collections.deque()
        self._digests: dict[str, str] = {}
        self._parts: dict[str, tuple[Tensor, list[Future[_Sums]]]] = {}

    def add_bytes(self, content: bytes | memoryview) -> None:
        self._gathered += content
        if len(self._gathered) >= digests.PART:
            self._flush()

    def add(self, path: str, tensor: Tensor) -> None:
        if tensor.nbytes < _LARGE:
            value = np.array(tensor.read(), dtype=tensor.dtype, order="C")
            self._digests[path] = digests.of(value)
            self.add_bytes(content_of(value))
            self._advance(value.nbytes)
            return
        self._flush()  # what the last parts are made of goes before more is made
        memory = tensor.on_device()
        copy = memory.copy_to if memory else tensor.copying()
        made: list[Future[_Sums]] = []
        for start in range(0, tensor.nbytes, digests.PART):
            size = min(digests.PART, tensor.nbytes - start)
            made.append(self._stream.write_made(size, functools.partial(self._make, copy, start)))
            self._made.append((made[-1], size))
            self._advance(size)
        self._parts[path] = tensor, made

    def _make(self, copy: Copy, start: int, part: memoryview) -> _Sums:
        copy(part, start)
        checksum = Checksum.of_part(part) if self._checksum else 0
        return _Sums(digests.of_part(part), checksum)

    def _flush(self) -> None:
        """Waits for parts that are being made, and writes what was gathered behind them."""
        while self._made:
            made, size = self._made.popleft()
            checksum = made.result().checksum
            if self._checksum:
                self._checksum.add(checksum, size)
        if self._checksum:
            self._checksum.add(Checksum.of_part(self._gathered), len(self._gathered))
        self._stream.write(self._gathered)
        self._gathered = bytearray()

    def finish(self) -> dict[str, str]:
        """Writes the rest of what there is by now, and returns the digests."""
        self._flush()
        for path, (tensor, made) in self._parts.items():
            parts = (one.result().digest for one in made)
            self._digests[path] = digests.of_parts(tensor.dtype, tensor.shape, parts)
        return self._digests


def _with_record(
    layout: Layout, record: Callable[[dict[str, str]], str], found: dict[str, str]
) -> Layout:
    """Adds the record, which is made once `found` has the digests of all tensors."""
    # A digest is as long as any other: blank ones tell how long the text will be.
    blank = dict.fromkeys(layout.tensors, digests.BLANK)
    size = len(record(_with_links(blank, layout)).encode())

    def text() -> np.ndarray:
        return np.frombuffer(record(_with_links(found, layout)).encode().ljust(size), np.uint8)

    last = {RECORD: Tensor((size,), np.dtype(np.uint8), text)}
    groups = layout.groups | {NO_VARIABLES.format(METADATA_KEY): {}}
    return dataclasses.replace(layout, groups=groups, tensors=layout.tensors | last)


def _with_links(found: dict[str, str], layout: Layout) -> dict[str, str]:
    return found | {path: found[first] for path, first in layout.links.items() if first in found}


def lay_out(layout: Layout) -> Structure:
    """Lays the file out, without a tensor in it."""
    datasets = {path: _stored(tensor) for path, tensor in layout.tensors.items()}
    return structure(layout.groups, datasets, layout.links)


def _stored(tensor: Tensor) -> Dataset:
    if tensor.dtype == BFLOAT16:
        return Dataset(tensor.shape, BFLOAT16_STORED, {"dtype": "bfloat16"})
    return Dataset(tensor.shape, tensor.dtype, {})
