"""The files that a weights file is laid out in, written through and read from."""

import abc
import collections
import contextlib
import io
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")

# Less is sooner written than brought to another thread.
_WORTH_A_THREAD = 1 << 18  # bytes


class Seeking(io.RawIOBase):
    """What is read from any position on."""

    def __init__(self, size: int = 0):
        self.size = size
        self.position = 0
        self._largest = float("inf")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = max(0, offset + (0, self.position, self.size)[whence])
        return self.position

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer)[: max(0, self.size - self.position)]
        if len(wanted) > self._largest:
            raise OSError(f"a part of {len(wanted)} bytes, in which {self._largest} have room")
        self.read_at(wanted, self.position)
        self.position += len(wanted)
        return len(wanted)

    @contextlib.contextmanager
    def refusing(self, largest: float) -> Iterator[None]:
        """Refuses, inside, to read more than so many bytes at once."""
        self._largest = largest
        try:
            yield
        finally:
            self._largest = float("inf")

    @abc.abstractmethod
    def read_at(self, buffer: memoryview, position: int) -> None:
        """Fills `buffer` from `position` on."""


class Again(Seeking):
    """A file once more, for who reads it apart from others."""

    def __init__(self, file: Seeking):
        super().__init__(file.size)
        self._file = file

    def read_at(self, buffer: memoryview, position: int) -> None:
        self._file.read_at(buffer, position)


class Threads(ThreadPoolExecutor):
    """Threads; where none can be had, as while Python ends, the calling one does the work."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            # What was given to threads before comes first. No other will be asked again: one that
            # could not start has left its work in their queue.
            self.shutdown()
            done = Future()
            done.set_result(fn(*args, **kwargs))
            return done


def _result(future: Future[T]) -> T:
    """Waits for a future. Interrupted, Python's own wait may raise a `RuntimeError` of its lock."""
    is_done = threading.Lock()
    is_done.acquire()
    future.add_done_callback(lambda _: is_done.release())
    is_done.acquire()
    return future.result()


class WriteBehind(io.BufferedIOBase):
    """A file that is written in another thread, while others make the next parts.

    What is given to `write` must not change any more.
    """

    MAKERS = min(4, os.cpu_count() or 1)  # threads; a checksum takes as long as a write
    AT_ONCE = MAKERS + 4  # parts on their way, so that no thread waits for another to wake up

    def __init__(self, file: BinaryIO):
        self._file = file
        self._position = 0
        with contextlib.suppress(AttributeError, OSError):  # a file that cannot tell
            self._position = file.tell()
        self._thread = Threads(1)
        self._makers = Threads(self.MAKERS)
        self._written = collections.deque[Future[Any]]()
        self._memory = itertools.cycle([bytearray() for _ in range(self.AT_ONCE)])

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if size < _WORTH_A_THREAD:
            self._settle()
            self._file.write(data)
        else:
            self._settle(self.AT_ONCE - 1)
            self._written.append(self._thread.submit(self._file.write, data))
        self._position += size
        return size

    def write_made(self, size: int, make: Callable[[memoryview], T]) -> Future[T]:
        """Writes what `make` puts into the memory that it is given, in another thread.

        Args:
            size: Bytes of it.
            make: What to call. It may look at what it has put there: nothing changes that.

        Returns:
            What `make` will have returned.
        """
        self._settle(self.AT_ONCE - 1)
        memory = next(self._memory)  # written by now: as many are on their way as there are
        if len(memory) < size:
            memory.extend(bytes(size - len(memory)))
        part = memoryview(memory)[:size]
        made = self._makers.submit(make, part)

        def write() -> None:
            made.result()
            self._file.write(part)

        self._written.append(self._thread.submit(write))
        self._position += size
        return made

    def _settle(self, rest: int = 0) -> None:
        while len(self._written) > rest:
            _result(self._written.popleft())

    def seekable(self) -> bool:
        return not hasattr(self._file, "seekable") or self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._settle()
        self._position = self._file.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        if not self.closed:
            self._settle()

    def close(self) -> None:
        try:
            super().close()  # flushes
        finally:
            self._makers.shutdown(cancel_futures=True)
            self._thread.shutdown(cancel_futures=True)


class Onward(io.BufferedIOBase):
    """A file that is written from its start to its end, whatever it may be, and all of it.

    Those that are packed say that they seek, and do not; those without a buffer may write a part.
    """

    def __init__(self, file: Any):
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        done = 0
        while done < len(data):
            count = self._file.write(data[done:])
            if count is None and isinstance(self._file, io.RawIOBase):
                raise BlockingIOError("the file takes no more for the moment")
            done += len(data) - done if count is None else count
        return done


class Window(Seeking):
    """A part of a file, read in place."""

    def __init__(self, file: Any, start: int, size: int):
        super().__init__(size)
        self._file = file
        self._start = start
        self._lock = threading.Lock()
        # Others may have a number too: that of the file that they unpack, say.
        raw = getattr(file, "raw", file)
        self._plain = hasattr(os, "preadv") and isinstance(raw, io.FileIO)

    def read_at(self, buffer: memoryview, position: int) -> None:
        """Fills `buffer` from `position` on, in any thread.

        Raises:
            EOFError: If the file ends before.
        """
        done = 0
        while done < len(buffer):
            count = self._read_some(buffer[done:], self._start + position + done)
            if not count:
                raise EOFError("the file ends too early")
            done += count

    def _read_some(self, buffer: memoryview, position: int) -> int:
        if self._plain:
            return os.preadv(self._file.fileno(), [buffer], position)
        with self._lock:
            self._file.seek(position)
            content = self._file.read(len(buffer))
            buffer[: len(content)] = content
            return len(content)
