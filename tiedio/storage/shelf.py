"""Read many files of which no more are open at once than there is room for."""

import collections
import contextlib
import errno
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tiedio.errors import FileFormatError
from tiedio.storage.base import COPY_CHUNK, Storage
from tiedio.storage.local import Local
from tiedio.storage.streams import Seeking, Window

# One that is replaced while it is closed cannot be read any more.
_MOST = 64


class Shelf:
    """Files that are opened when they are read, and closed when others need the room."""

    def __init__(self):
        self._most = min(_MOST, max(1, _room() // 4))
        self._lock = threading.Lock()
        self._opened = collections.OrderedDict["_File", tuple[Window, contextlib.ExitStack]]()
        self._in_use = collections.Counter["_File"]()
        self._copies = contextlib.ExitStack()

    def close(self) -> None:
        for _, opened in self._opened.values():
            opened.close()
        self._copies.close()

    def file(self, source: Storage) -> Seeking:
        """Returns a file, to be read until the shelf is closed.

        Raises:
            MissingFileError: If there is none.
        """
        if not isinstance(source, Local):  # it is brought here once
            folder = Path(self._copies.enter_context(tempfile.TemporaryDirectory()))
            with source.reading() as file, open(folder / "copy", "wb") as copy:
                shutil.copyfileobj(file, copy, COPY_CHUNK)
            source = Local(folder / "copy")
        return _File(self, source)

    @contextlib.contextmanager
    def holding(self, file: "_File") -> Iterator[Window]:
        """Keeps a file open inside."""
        with self._lock:
            if file not in self._opened:
                self._make_room(self._most - 1)
                self._opened[file] = self._open(file)
            self._opened.move_to_end(file)
            self._in_use[file] += 1
            window, _ = self._opened[file]
        try:
            yield window
        finally:
            with self._lock:
                self._in_use[file] -= 1

    def _open(self, file: "_File") -> tuple[Window, contextlib.ExitStack]:
        try:
            return file.open()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._opened:
                raise
            # Others need some, too.
            self._most = max(1, len(self._opened) // 2)
            self._make_room(self._most - 1)
            return file.open()

    def _make_room(self, most: int) -> None:
        for file in [one for one in self._opened if not self._in_use[one]]:
            if len(self._opened) > most:
                self._opened.pop(file)[1].close()


class _File(Seeking):
    def __init__(self, shelf: Shelf, source: Local):
        super().__init__()
        self._shelf = shelf
        self._source = source
        self._status: tuple[int, ...] = ()
        with shelf.holding(self) as window:
            self.size = window.size

    def open(self) -> tuple[Window, contextlib.ExitStack]:
        opened = contextlib.ExitStack()
        file = opened.enter_context(self._source.reading())
        found = os.fstat(file.fileno())
        status = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
        if self._status not in ((), status):
            opened.close()
            raise FileFormatError(
                f"`{self._source.name}` was replaced while it was read.\n"
                "Expected: the file that was there before. Received: another one.\n"
                "Load it again."
            )
        self._status = status
        return Window(file, 0, found.st_size), opened

    def read_at(self, buffer: memoryview, position: int) -> None:
        with self._shelf.holding(self) as window:
            window.read_at(buffer, position)


def _room() -> int:
    """Returns how many files a process may have open."""
    if sys.platform == "win32":
        return 512  # of the C library
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
