"""Read bytes in parts, in several threads: to memory of the host or of a card, or to sum them."""

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from tiedio.formats import digests
from tiedio.formats.arrays import cut
from tiedio.formats.checksum import Checksum
from tiedio.formats.device_memory import DeviceMemory, Staging
from tiedio.storage.streams import Seeking, Threads

# So many parts are read by one thread, while others read the next.
_AT_ONCE = 2
_THREADS = min(8, os.cpu_count() or 1)  # more take longer to start than they save

# Where the bytes from a position on go, so many of them: once the context ends, they are there.
Place = Callable[[int, int], contextlib.AbstractContextManager[memoryview]]


class Extent(NamedTuple):
    """Where bytes lie in a file."""

    start: int
    size: int


class Reader:
    """Threads that read."""

    def __init__(self):
        self._threads = Threads(_THREADS)
        self._staging = Staging(_AT_ONCE * digests.PART)

    def close(self) -> None:
        self._threads.shutdown()

    def to_host(self, content: memoryview) -> Place:
        """Puts bytes into memory of the host."""
        return lambda begin, size: contextlib.nullcontext(content[begin : begin + size])

    def to_device(self, memory: DeviceMemory) -> Place:
        """Puts bytes into memory of a card."""

        @contextlib.contextmanager
        def place(begin: int, size: int) -> Iterator[memoryview]:
            piece = self._staging.piece(memory)[:size]
            yield piece
            memory.copy_from(piece, begin)

        return place

    def begin(
        self,
        source: Seeking,
        position: int,
        size: int,
        place: Place,
        *,
        digested: bool,
        advance: Callable[[int], None],
    ) -> Callable[[], list[bytes]]:
        """Begins to read bytes.

        Args:
            source: What to read from.
            position: Where they begin there.
            size: How many there are.
            place: Where they go.
            digested: Whether digests are wanted.
            advance: Told how many more were read, where the end is waited for.

        Returns:
            What waits for the end, and returns the digests of the parts, in order.
        """

        def read_some(begin: int) -> list[bytes]:
            found = []
            with place(begin, min(step, size - begin)) as memory:
                for part in cut(memory, digests.PART if digested else step):
                    source.read_at(part, position + begin + digests.PART * len(found))
                    found.append(digests.of_part(part) if digested else b"")
            return found

        def end() -> list[bytes]:
            found = []
            for begin, some in zip(begins, begun, strict=True):
                found += some
                advance(min(step, size - begin))
            return found

        step = _AT_ONCE * digests.PART
        begins = range(0, size, step)
        begun = (map if len(begins) == 1 else self._threads.map)(read_some, begins)
        return end


class Sums(NamedTuple):
    """What was found out of a file that was read once.

    Attributes:
        checksum: Of all of it.
        digests: Those of the parts of each tensor, in order.
    """

    checksum: int
    digests: dict[Extent, list[bytes]]


def sums_of(source: Seeking, tensors: Iterable[Extent] = ()) -> Sums:
    """Reads a file once, in several threads.

    Args:
        source: The file.
        tensors: Where the tensors are. One that begins inside another, or ends beyond the end of
            the file, is not digested.
    """
    own = threading.local()

    def of_run(run: list[_Piece]) -> tuple[int, int, list[tuple[Extent, bytes]]]:
        if not hasattr(own, "memory"):
            own.memory = memoryview(bytearray(2 * digests.PART))
        start, size = run[0].start, sum(piece.size for piece in run)
        source.read_at(own.memory[:size], start)
        digested = [
            (piece.tensor, digests.of_part(own.memory[piece.start - start :][: piece.size]))
            for piece in run
            if piece.tensor
        ]
        return Checksum.of_part(own.memory[:size]), size, digested

    whole, found = Checksum(), collections.defaultdict(list)
    with Threads(_THREADS) as threads:
        for checksum, size, digested in threads.map(of_run, _runs(source.size, tensors)):
            whole.add(checksum, size)
            for tensor, digest in digested:
                found[tensor].append(digest)
    return Sums(whole.value, found)


class _Piece(NamedTuple):
    """Bytes that are read together: a part of a tensor, or what lies between two."""

    start: int
    size: int
    tensor: Extent | None


def _runs(size: int, tensors: Iterable[Extent]) -> Iterator[list[_Piece]]:
    """Joins neighbours to runs worth reading at once; a run has less than two parts."""
    run, length = [], 0
    for piece in _pieces(size, tensors):
        run.append(piece)
        length += piece.size
        if length >= digests.PART:
            yield run
            run, length = [], 0
    if run:
        yield run


def _pieces(size: int, tensors: Iterable[Extent]) -> Iterator[_Piece]:
    """Cuts a file at its tensors, and these into parts."""
    end = 0
    for tensor in [*sorted(set(tensors)), Extent(size, 0)]:
        if tensor.start < end or tensor.start + tensor.size > size:
            continue
        yield from _cut(Extent(end, tensor.start - end), None)
        yield from _cut(tensor, tensor)
        end = tensor.start + tensor.size


def _cut(extent: Extent, tensor: Extent | None) -> Iterator[_Piece]:
    end = extent.start + extent.size
    for start in range(extent.start, end, digests.PART):
        yield _Piece(start, min(digests.PART, end - start), tensor)
