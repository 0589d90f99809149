"""A file that the caller has open."""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from tiedio.errors import FileFormatError
from tiedio.storage.base import COPY_CHUNK, Storage
from tiedio.storage.streams import Onward


class OpenFile(Storage):
    """A file that the caller opened, and closes."""

    def __init__(self, file: Any):
        super().__init__(str(getattr(file, "name", None) or repr(file)))
        if hasattr(file, "encoding"):
            raise FileFormatError(
                f"`{self.name}` is open as text.\n"
                f"Expected: a file of bytes. Received: {type(file).__name__}.\n"
                'Open it in binary mode, as with `open(path, "rb")`.'
            )
        self._file = file

    def has_begun(self) -> bool:
        """Whether something comes before what is written next."""
        try:
            return self._file.tell() > 0
        except (AttributeError, OSError, ValueError):  # a pipe, say
            return False

    def sibling(self, name: str) -> Storage:
        raise FileFormatError(
            f"`{self.name}` needs other files, to which an open file does not lead.\n"
            f"Expected: the path of the file. Received: {type(self._file).__name__}.\n"
            "Pass its path."
        )

    @contextlib.contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        """Yields the file, which is read whole, wherever it is."""
        if hasattr(self._file, "seekable") and not self._file.seekable():
            raise FileFormatError(
                f"`{self.name}` can only be read from its start to its end.\n"
                f"Expected: a file that seeks. Received: {type(self._file).__name__}.\n"
                "Read it into an `io.BytesIO`, and pass that."
            )
        if hasattr(self._file, "flush") and getattr(self._file, "writable", bool)():
            self._file.flush()  # what was written before may be read past the buffer
        self._file.seek(0)
        yield self._file

    @contextlib.contextmanager
    def replacing(self, durable: bool) -> Iterator[Any]:
        """Writes from where the file is, and ends it there; what is there is kept until then."""
        try:
            start = self._file.tell()
            rest = self._file.seek(0, io.SEEK_END) - start
            self._file.seek(start)
        except (AttributeError, OSError, ValueError):  # a pipe, say
            start = rest = None
        stream = Onward(self._file)
        if rest:
            with tempfile.TemporaryFile() as new:
                yield new
                new.seek(0)
                shutil.copyfileobj(new, stream, COPY_CHUNK)
            self._file.truncate()
        else:
            try:
                yield stream
            except BaseException:
                if start is not None:
                    self._file.seek(start)
                    self._file.truncate()
                raise
        if hasattr(self._file, "flush"):
            self._file.flush()
        if durable:
            with contextlib.suppress(AttributeError, OSError):  # in memory, or a pipe
                os.fsync(self._file.fileno())
