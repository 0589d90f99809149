"""A file or a folder on this machine's disk."""

import contextlib
import os
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from tiedio.errors import MissingFileError
from tiedio.storage import atomic
from tiedio.storage.base import Storage


class Local(Storage):
    """On disk."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        self._path = path

    def exists(self) -> bool:
        return os.path.exists(self._path)  # which takes names that no file can have

    def make_folder(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def is_folder(self) -> bool:
        return os.path.isdir(self._path)

    def is_same_as(self, other: Storage) -> bool:
        try:
            return os.path.samefile(self.name, other.name)  # whatever the case of letters
        except OSError:
            return os.path.realpath(self.name) == os.path.realpath(other.name)

    def holds(self, other: Storage) -> bool:
        here = Path(os.path.realpath(self.name))
        return self.is_folder() and here in Path(os.path.realpath(other.name)).parents

    def reading(self) -> AbstractContextManager[BinaryIO]:
        if not os.path.isfile(self._path):
            raise self._missing(*self._broken_link())
        return open(self._path, "rb")

    def _broken_link(self) -> tuple[str, ...]:
        """What to say of a link that leads nowhere, and what to do; nothing if it is none."""
        if not os.path.islink(self._path) or self.exists():
            return ()
        target = os.readlink(self._path)
        received = f"a link to `{target}`, where nothing is"
        if "annex/objects/" in target.replace("\\", "/"):
            return received, "Fetch the file that it stands for: `git annex get`."
        return (received,)

    def replacing(self, durable: bool) -> AbstractContextManager[BinaryIO]:
        folder = Path(os.path.realpath(self._path)).parent
        if not folder.exists():
            raise MissingFileError(
                f"Cannot save `{self._path.name}`: there is no folder `{folder}`.\n"
                "Expected: a folder. Received: nothing there.\n"
                "Make the folder, or check the path.",
                self.name,
            )
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
