"""Read bytes in parts, in several threads: to memory of the host or of a card, or to sum them."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

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


def checksum_of(source: Seeking) -> int:
    """Sums all bytes of a file."""
    own = threading.local()

    def of_part(start: int) -> tuple[int, int]:
        if not hasattr(own, "memory"):
            own.memory = bytearray(digests.PART)
        part = memoryview(own.memory)[: min(digests.PART, source.size - start)]
        source.read_at(part, start)
        return Checksum.of_part(part), len(part)

    whole = Checksum()
    with Threads(_THREADS) as threads:
        for sum_of_part, size in threads.map(of_part, range(0, source.size, digests.PART)):
            whole.add(sum_of_part, size)
    return whole.value
