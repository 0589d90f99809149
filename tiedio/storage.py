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
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from tiedio import atomic
from tiedio.errors import (
    FileFormatError,
    MissingFileError,
    MissingPackageError,
    SaveError,
    first_line,
)
from tiedio.streams import Onward

# Parts in which a file is copied from elsewhere.
_COPY_CHUNK = 1 << 22  # bytes

# Where a file is there from its first byte on; elsewhere it is once it is complete.
_WRITTEN_IN_PLACE = {"memory", "hdfs"}

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

    def exists(self) -> bool:
        """Whether there is anything that a save would replace for good."""
        return False

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

    def rename(self, name: str, durable: bool) -> bool:
        """Gives the file another name that no other has; whether that can be done."""
        return False

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
            f"Expected: a path on disk. Received: `{self.name}`.\n"
            "Save to a path ending in `.keras`, or to a folder on disk."
        )

    def _missing(self, received: str = "") -> MissingFileError:
        found = received or ("a folder" if self.is_folder() else "nothing there")
        return MissingFileError(
            f"There is no file `{self.name}`.\nExpected: a file. Received: {found}.\n"
            "Check the path."
        )


def at(filepath: Any) -> Storage:
    """Returns where `filepath` leads: a path, a URL, or a file that is open."""
    if hasattr(filepath, "read") or hasattr(filepath, "write"):
        return OpenFile(filepath)
    name = os.fsdecode(filepath)
    scheme, separator, rest = name.partition("://")
    if not separator:
        return Local(Path(name))
    if scheme == "file":
        return Local(Path(rest))
    return Hub(rest) if scheme == "hf" else Remote(name)


class Local(Storage):
    """On disk."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        self._path = path

    def exists(self) -> bool:
        return os.path.exists(self._path)  # which takes names that no file can have

    def is_folder(self) -> bool:
        return os.path.isdir(self._path)

    def reading(self) -> AbstractContextManager[BinaryIO]:
        if not os.path.isfile(self._path):
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

    def rename(self, name: str, durable: bool) -> bool:
        return atomic.rename(self._path, self._path.with_name(name), durable)

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
                shutil.copyfileobj(new, stream, _COPY_CHUNK)
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
        # What it remembers to be there may be replaced by now.
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
                    shutil.copyfileobj(source, copy, _COPY_CHUNK)
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


class Hub(Storage):
    """A repository of the Hugging Face Hub, which is a folder, and keeps all its versions."""

    def __init__(self, repository: str):
        super().__init__(f"hf://{repository}")
        self._hub = imported("huggingface_hub", f"`{self.name}`", "hf")
        errors = imported("huggingface_hub.errors", f"`{self.name}`", "hf")
        self._not_found = errors.RepositoryNotFoundError
        self._repository = repository
        if repository.count("/") > 1:
            raise FileFormatError(
                f"`{self.name}` is no repository of the Hugging Face Hub.\n"
                f"Expected: `hf://namespace/name`. Received: {self.name}.\n"
                "Check the path."
            )

    def is_folder(self) -> bool:
        return True

    def reading(self) -> AbstractContextManager[BinaryIO]:
        raise self._missing()

    def replacing(self, durable: bool) -> AbstractContextManager[BinaryIO]:
        raise self._unfit("a single file")

    @contextlib.contextmanager
    def reading_folder(self) -> Iterator[Path]:
        try:
            folder = self._hub.snapshot_download(self._repository, library_name="keras")
        except self._not_found as error:
            raise self._missing("no such repository, or one that is private") from error
        yield Path(folder)

    @contextlib.contextmanager
    def replacing_folder(self, replaced: Collection[str], durable: bool) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            api = self._hub.HfApi(library_name="keras")
            repository = api.create_repo(self._repository, exist_ok=True).repo_id
            if not api.file_exists(repository, "README.md"):
                Path(folder, "README.md").write_text(_MODEL_CARD)
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message="Save a model with tied weights.",
                # In the same commit: what the model no longer has.
                delete_patterns=[*replaced, *(f"{name}/*" for name in replaced)],
            )


def imported(package: str, what: str, extra: str) -> Any:
    """Imports an optional package; `MissingPackageError` if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"{what} needs a package that is not installed.\n"
            f"Expected: `{package}`. Received: {first_line(error)}.\n"
            f"Install it: `pip install 'tiedio[{extra}]'`."
        ) from error
