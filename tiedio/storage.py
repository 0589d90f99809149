"""Where a file or a folder lies: on disk, in an open file, behind a URL, on the Hugging Face Hub.

Each of them is replaced whole, or left as it was; what lies elsewhere is read from
a copy on disk.
"""

import abc
import contextlib
import importlib
import io
import os
import posixpath
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from tiedio import atomic
from tiedio.errors import FileFormatError, MissingFileError, MissingPackageError, SaveError

# Parts in which a file is copied from elsewhere.
_COPY_CHUNK = 1 << 22  # bytes

_MODEL_CARD = """---
library_name: keras
---

A Keras model with shared weights, for any backend. `tiedio.load_tied` shares them again;
`keras.saving.load_model` opens it too, without the sharing.
"""


class Storage(abc.ABC):
    """A file, or a folder of files, which need not be there yet.

    Attributes:
        name: What it is called, whole, as in messages.
    """

    def __init__(self, name: str):
        self.name = name

    @property
    def label(self) -> str:
        """Its name without the folders it is in."""
        return posixpath.basename(self.name.replace("\\", "/"))

    @abc.abstractmethod
    def exists(self) -> bool:
        """Whether there is anything."""

    def is_folder(self) -> bool:
        return False

    @abc.abstractmethod
    def reading(self) -> AbstractContextManager[BinaryIO]:
        """Opens the file, to be read in any order.

        Raises:
            MissingFileError: If there is no such file.
        """

    @abc.abstractmethod
    def replacing(self, durable: bool) -> AbstractContextManager[BinaryIO]:
        """Opens a file that takes the place of this one once it is complete."""

    def sibling(self, name: str) -> "Storage":
        """Returns a file of another name beside this one."""
        raise self._unfit("files beside it")

    def siblings(self) -> list[str]:
        """Lists the names of the files beside this one."""
        raise self._unfit("files beside it")

    def remove(self) -> None:
        """Removes the file."""
        raise self._unfit("files beside it")

    def is_being_saved(self) -> bool:
        """Whether somebody may be writing a file that is to take the place of this one."""
        return True

    def begins(self, count: int) -> bytes:
        """Reads the first bytes."""
        with self.reading() as file:
            file.seek(0)
            return file.read(count)

    def reading_folder(self) -> AbstractContextManager[Path]:
        """Yields a folder on disk with the same files."""
        raise self._unfit("a folder")

    def replacing_folder(
        self, replaced: Collection[str], durable: bool
    ) -> AbstractContextManager[Path]:
        """Yields a folder that takes the place of this one once it is complete.

        Files of this one are kept if their names are not in `replaced`.
        """
        raise self._unfit("a folder")

    def _unfit(self, wanted: str) -> SaveError:
        return SaveError(
            f"`{self.name}` cannot be, or have, {wanted}.\n"
            f"Expected: a path on disk. Received: {self.name}.\n"
            "Save to a path ending in `.keras`, or to a folder on disk."
        )

    def _missing(self) -> MissingFileError:
        found = "a folder" if self.is_folder() else "nothing there"
        return MissingFileError(
            f"There is no file `{self.name}`.\nExpected: a file. Received: {found}.\n"
            "Check the path."
        )


def at(filepath: Any) -> Storage:
    """Returns where `filepath` leads: a path, a URL, or a file that is open."""
    if hasattr(filepath, "read") or hasattr(filepath, "write"):
        return OpenFile(filepath)
    name = os.fspath(filepath)
    scheme, separator, rest = str(name).partition("://")
    if not separator:
        return Local(Path(filepath))
    if scheme == "file":
        return Local(Path(rest))
    return Hub(rest) if scheme == "hf" else Remote(name)


class Local(Storage):
    """On disk."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        self._path = path

    def exists(self) -> bool:
        return self._path.exists()

    def is_folder(self) -> bool:
        return self._path.is_dir()

    def reading(self) -> AbstractContextManager[BinaryIO]:
        if not self._path.is_file():
            raise self._missing()
        return open(self._path, "rb")

    def replacing(self, durable: bool) -> AbstractContextManager[BinaryIO]:
        return atomic.replacing(self._path, durable)

    def sibling(self, name: str) -> "Local":
        return Local(self._path.with_name(name))

    def siblings(self) -> list[str]:
        return os.listdir(self._path.parent)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def is_being_saved(self) -> bool:
        return atomic.is_being_saved(self._path)

    def reading_folder(self) -> AbstractContextManager[Path]:
        return contextlib.nullcontext(self._path)

    def replacing_folder(
        self, replaced: Collection[str], durable: bool
    ) -> AbstractContextManager[Path]:
        return atomic.replacing_folder(self._path, replaced, durable)


class OpenFile(Storage):
    """A file that the caller opened, and closes."""

    def __init__(self, file: Any):
        super().__init__(str(getattr(file, "name", None) or repr(file)))
        if isinstance(file, io.TextIOBase):
            raise FileFormatError(
                f"`{self.name}` is open as text.\n"
                f"Expected: a file of bytes. Received: {type(file).__name__}.\n"
                'Open it in binary mode, as with `open(path, "rb")`.'
            )
        self._file = file

    def exists(self) -> bool:
        return False  # an open file is there to be written to

    @contextlib.contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        if hasattr(self._file, "flush") and getattr(self._file, "writable", bool)():
            self._file.flush()  # what was written before may be read past the buffer
        yield self._file

    @contextlib.contextmanager
    def replacing(self, durable: bool) -> Iterator[BinaryIO]:
        """Writes from where the file is; what an exception cut short is taken away again."""
        try:
            start = self._file.tell()
            appended = start == self._file.seek(0, io.SEEK_END)
            self._file.seek(start)
        except (AttributeError, OSError, ValueError):  # a pipe, say
            start, appended = 0, False
        try:
            yield self._file
        except BaseException:
            if appended:
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    self._file.seek(start)
                    self._file.truncate()
            raise
        self._file.flush()
        if durable:
            with contextlib.suppress(AttributeError, OSError):  # in memory
                os.fsync(self._file.fileno())


class Remote(Storage):
    """Behind a URL that fsspec knows."""

    def __init__(self, url: str):
        super().__init__(url)
        fsspec = imported("fsspec", f"`{url}`", "remote")
        try:
            self._files, self._path = fsspec.core.url_to_fs(url)
        except ImportError as error:  # of what fsspec needs for this scheme
            raise _missing_package(f"`{url}`", str(error), "s3fs, gcsfs, ...") from error
        except ValueError as error:  # a scheme that it does not know
            raise FileFormatError(
                f"`{url}` is of a scheme that fsspec does not know.\n"
                f"Expected: `s3://`, `gs://` or the like. Received: {error}\n"
                "Check the URL."
            ) from error

    def exists(self) -> bool:
        return self._files.exists(self._path)

    def is_folder(self) -> bool:
        return self._files.isdir(self._path)

    @contextlib.contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        with contextlib.ExitStack() as opened:
            try:
                source = opened.enter_context(self._files.open(self._path, "rb"))
            except FileNotFoundError as error:
                raise self._missing() from error
            copy = opened.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(source, copy, _COPY_CHUNK)
            copy.flush()
            yield copy

    @contextlib.contextmanager
    def replacing(self, durable: bool) -> Iterator[BinaryIO]:
        # Not closed as by `with`, which would put what there is in the place of the old file.
        file = self._files.open(self._path, "wb", autocommit=False)
        try:
            yield file
            file.close()
        except BaseException:
            file.discard()
            raise
        file.commit()

    def sibling(self, name: str) -> "Remote":
        return Remote(self.name.rpartition("/")[0] + f"/{name}")

    def siblings(self) -> list[str]:
        folder = self._path.rpartition("/")[0]
        self._files.invalidate_cache()
        return [path.rpartition("/")[2] for path in self._files.ls(folder, detail=False)]

    def remove(self) -> None:
        self._files.rm_file(self._path)

    def begins(self, count: int) -> bytes:
        try:
            return self._files.cat_file(self._path, 0, count)
        except FileNotFoundError as error:
            raise self._missing() from error

    @contextlib.contextmanager
    def reading_folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            self._files.get(f"{self._path}/", f"{folder}/", recursive=True)
            yield Path(folder)


class Hub(Storage):
    """A repository of the Hugging Face Hub, which is a folder."""

    def __init__(self, repository: str):
        super().__init__(f"hf://{repository}")
        self._hub = imported("huggingface_hub", f"`{self.name}`", "hf")
        self._repository = repository
        if repository.count("/") > 1:
            raise FileFormatError(
                f"`{self.name}` is no repository of the Hugging Face Hub.\n"
                f"Expected: `hf://namespace/name`. Received: {self.name}.\n"
                "Check the path."
            )

    def exists(self) -> bool:
        return False  # it keeps all its versions

    def is_folder(self) -> bool:
        return True

    def reading(self) -> AbstractContextManager[BinaryIO]:
        raise self._missing()

    def replacing(self, durable: bool) -> AbstractContextManager[BinaryIO]:
        raise self._unfit("a single file")

    @contextlib.contextmanager
    def reading_folder(self) -> Iterator[Path]:
        yield Path(self._hub.snapshot_download(repo_id=self._repository, library_name="keras"))

    @contextlib.contextmanager
    def replacing_folder(self, replaced: Collection[str], durable: bool) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            Path(folder, "README.md").write_text(_MODEL_CARD)
            api = self._hub.HfApi(library_name="keras")
            created = api.create_repo(self._repository, exist_ok=True)
            api.upload_folder(
                repo_id=created.repo_id,
                folder_path=folder,
                commit_message="Save a model with tied weights.",
                # What the model no longer has, as a replaced folder would not have it.
                delete_patterns="assets/*",
            )


def imported(package: str, what: str, extra: str) -> Any:
    """Imports an optional package.

    Raises:
        MissingPackageError: If it is not installed; it says what to install.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise _missing_package(what, f"no `{package}`", f"tiedio[{extra}]") from error


def _missing_package(what: str, received: str, install: str) -> MissingPackageError:
    return MissingPackageError(
        f"{what} needs a package that is not installed.\n"
        f"Expected: it to be installed. Received: {received}.\n"
        f"Install it: `pip install '{install}'`."
    )
