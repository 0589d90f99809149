"""Lay a weights file out and stream it; shared tensors are hard links.

HDF5 lays the file out without any tensor in it; then the laid-out bytes and the
tensors are streamed to a file that need not seek: one pass, one tensor in memory
at a time. `hdf5_reader` reads it back.
"""

import dataclasses
import functools
import itertools
import math
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import h5py
import ml_dtypes
import numpy as np
import xxhash

from tiedio.errors import SaveError
from tiedio.record.ties import METADATA_KEY
from tiedio.storage.streams import Sheet, WriteBehind

# HDF5 has no bfloat16: Keras stores the two bytes and says so in an attribute.
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BFLOAT16_STORED = np.dtype("V2")

# The path of the record: not at the root, whose datasets Keras' file editor takes for variables of
# the model; it leaves out a group with an empty `vars`, which a layer without variables has.
RECORD = f"{METADATA_KEY}/record"
NO_VARIABLES = "{}/vars"

# Large tensors are written in parts, several of which fit into a processor's cache.
CHUNK = 1 << 19  # bytes

# Told of bytes that were read or written: how many more, and of how many.
Advance = Callable[[int, int], None]


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
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    axis_order: tuple[int, ...] | None = None
    source: Any = None

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
    stream: IO[bytes] | WriteBehind,
    advance: Advance = untold,
    record: Callable[[dict[str, str]], str] | None = None,
) -> dict[str, str]:
    """Writes `layout` as an HDF5 file to a stream, from its start to its end.

    Args:
        layout: What to write.
        stream: Where to.
        advance: Told how many bytes more are written, and of how many.
        record: Makes the text of the record, if there is to be one, given the digests that
            are returned.

    Returns:
        The digest of each tensor, by dataset_path, linked ones included.
    """
    digests: dict[str, str] = {}
    if record:
        layout = _with_record(layout, record, digests)
    sheet, placed = lay_out(layout)
    if record and placed[-1][1] != RECORD:  # which HDF5 promises nowhere
        raise SaveError(
            f"Cannot save a record in an HDF5 file by HDF5 {h5py.version.hdf5_version}.\n"
            f"Expected: `{RECORD}` behind all tensors. Received: `{placed[-1][1]}` there.\n"
            "Save to a path ending in `.keras` or in `.weights.json`, which keep it elsewhere."
        )
    # A variable that another thread trains in place may change between digest, checksum and
    # write: these see a copy of each part, which is used again once it is written.
    copies = itertools.cycle(memoryview(bytearray(CHUNK)) for _ in range(WriteBehind.AT_ONCE + 1))
    position = 0
    for offset, path in placed:
        tensor = layout.tensors[path]
        content = np.ascontiguousarray(tensor.read(), dtype=tensor.dtype)
        digest = begin_digest(tensor.dtype, tensor.shape)
        if content.nbytes:
            stream.write(sheet.between(position, offset))
            for memory in cut(content, CHUNK):
                part = next(copies)[: len(memory)]
                part[:] = memory
                digest.update(part)
                stream.write(part)
                advance(len(part), sheet.size)
            position = offset + content.nbytes
        digests[path] = digest.hexdigest()
    stream.write(sheet.between(position, sheet.size))
    digests.pop(RECORD, None)
    return _with_links(digests, layout)


def _with_record(
    layout: Layout, record: Callable[[dict[str, str]], str], digests: dict[str, str]
) -> Layout:
    """Adds the record, which is made once `digests` has those of all tensors."""
    # A digest is as long as any other: blank ones tell how long the text will be.
    blank = dict.fromkeys(layout.tensors, begin_digest(np.dtype(bool), ()).hexdigest())
    size = len(record(_with_links(blank, layout)).encode())

    def text() -> np.ndarray:
        return np.frombuffer(record(_with_links(digests, layout)).encode().ljust(size), np.uint8)

    last = {RECORD: Tensor((size,), np.dtype(np.uint8), text)}
    groups = layout.groups | {NO_VARIABLES.format(METADATA_KEY): {}}
    return dataclasses.replace(layout, groups=groups, tensors=layout.tensors | last)


def _with_links(digests: dict[str, str], layout: Layout) -> dict[str, str]:
    linked = {path: digests[first] for path, first in layout.links.items() if first in digests}
    return digests | linked


def begin_digest(dtype: np.dtype, shape: tuple[int, ...]) -> xxhash.xxh3_64:
    """Begins the digest of a tensor: its dtype and shape, before its bytes."""
    return xxhash.xxh3_64(f"{dtype.name}{list(shape)}".encode())


def cut(array: np.ndarray, size: int) -> Iterator[memoryview]:
    """Cuts the bytes of a contiguous array into parts of `size` bytes."""
    content = array.reshape(-1).view(np.uint8).data
    return (content[start : start + size] for start in range(0, array.nbytes, size))


def lay_out(layout: Layout) -> tuple[Sheet, list[tuple[int, str]]]:
    """Makes the file without a tensor in it; returns the offset and path of each, in order."""
    sheet = Sheet()
    with h5py.File(sheet, "w") as file:
        return sheet, sorted(_create(layout, file))


def _create(layout: Layout, file: h5py.File) -> list[tuple[int, str]]:
    """Creates every object of `layout`."""
    for path, attributes in layout.groups.items():
        file.require_group(f"/{path}").attrs.update(attributes)
    # Allocated at once and never filled, a dataset gets its place and no bytes.
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_obj_track_times(False)  # of equal tensors files are equal
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    placed = []
    for path, tensor in layout.tensors.items():
        parent, name = posixpath.split(path)
        bfloat16 = tensor.dtype == BFLOAT16
        dataset = h5py.Dataset(
            h5py.h5d.create(
                file.require_group(f"/{parent}").id,
                name.encode(),
                h5py.h5t.py_create(BFLOAT16_STORED if bfloat16 else tensor.dtype, logical=True),
                h5py.h5s.create_simple(tensor.shape),
                creation,
            )
        )
        if bfloat16:
            dataset.attrs["dtype"] = "bfloat16"
        # An empty dataset has no place.
        placed.append((dataset.id.get_offset() if dataset.nbytes else 0, path))
    for path, target in layout.links.items():
        # A shared layer may have stored nothing.
        if target in file:
            file.require_group(f"/{posixpath.dirname(path)}")
            file[path] = file[target]
    return placed
