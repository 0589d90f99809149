"""A file behind a URL, by fsspec."""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tiedio.errors import FileFormatError, MissingPackageError, first_line, imported
from tiedio.storage.base import COPY_CHUNK, Storage

# Systems that show a file from its first byte on; others show it once it is complete.
_WRITTEN_IN_PLACE = {"memory", "hdfs"}


class Remote(Storage):
    """Behind a URL that fsspec knows."""

    def __init__(self, url: str):
        super().__init__(url)
        fsspec = imported("fsspec", f"`{url}`", "remote")
        try:
            self._files, self._path = fsspec.core.url_to_fs(url)
        except ImportError as error:  # of what fsspec needs for this scheme
            raise MissingPackageError(
                f"`{url}` needs a package that is not installed.\n"
                f"Expected: what fsspec needs for it. Received: {first_line(error)}.\n"
                "Install what is named there."
            ) from error
        except ValueError as error:  # a scheme that it does not know
            raise FileFormatError(
                f"`{url}` is of a scheme that fsspec does not know.\n"
                f"Expected: `s3://`, `gs://` or the like. Received: {first_line(error)}.\n"
                "Check the URL."
            ) from error
        # Its memory of what is there may be out of date.
        self._files.invalidate_cache()

    def exists(self) -> bool:
        return self._files.exists(self._path)

    def is_folder(self) -> bool:
        return self._files.isdir(self._path)

    @contextlib.contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        with tempfile.TemporaryFile() as copy:
            try:
                with self._files.open(self._path, "rb") as source:
                    shutil.copyfileobj(source, copy, COPY_CHUNK)
            except FileNotFoundError as error:
                raise self._missing() from error
            copy.seek(0)
            yield copy

    @contextlib.contextmanager
    def replacing(self, durable: bool) -> Iterator[BinaryIO]:
        in_place = not _WRITTEN_IN_PLACE.isdisjoint([*self._files.protocol, self._files.protocol])
        path = f"{self._path}.{secrets.token_hex(4)}.tiedio-partial" if in_place else self._path
        file = self._files.open(path, "wb", autocommit=False)
        # fsspec would commit it with whatever is in the next transaction of anybody.
        self._files.transaction.files.remove(file)
        try:
            # Not closed as by `with`, which would complete what an exception cut short.
            yield file
            file.close()
            if in_place:
                self._files.mv(path, self._path)
            else:
                file.commit()
        except BaseException:
            with contextlib.suppress(Exception):  # whatever it is, another came first
                self._files.rm_file(path) if in_place else file.discard()
            with contextlib.suppress(AttributeError):
                file.closed = True  # or it is completed when it is collected
            raise

    def sibling(self, name: str) -> "Remote":
        return Remote(self.name.rpartition("/")[0] + f"/{name}")

    def siblings(self) -> list[str]:
        self._files.invalidate_cache()
        folder = self._path.rpartition("/")[0]
        return [path.rpartition("/")[2] for path in self._files.ls(folder, detail=False)]

    def remove(self) -> None:
        self._files.rm_file(self._path)

    def begins(self, count: int) -> bytes:
        try:
            if self._files.size(self._path) == 0:  # S3 has no first bytes of nothing
                return b""
            return self._files.cat_file(self._path, start=0, end=count)
        except FileNotFoundError as error:
            raise self._missing() from error

    @contextlib.contextmanager
    def reading_folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            for path in self._files.find(self._path):
                name = path.removeprefix(self._path).lstrip("/")
                if ".." in PurePosixPath(name).parts:
                    raise FileFormatError(
                        f"`{self.name}` holds a file outside itself.\n"
                        f"Expected: files of a model. Received: `{name}`.\nRemove it."
                    )
                Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(path, f"{folder}/{name}")
            yield Path(folder)
