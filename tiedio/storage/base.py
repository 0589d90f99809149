"""The interface of every place where a file or a folder may lie.

Each of them is replaced whole, or left as it was; what lies elsewhere is read from
a copy on disk.
"""

import posixpath
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from tiedio.errors import MissingFileError, SaveError

# Parts in which a file is copied from elsewhere.
COPY_CHUNK = 1 << 22  # bytes


class Storage:
    """A file, or a folder of files, which need not be there yet.

    Attributes:
        name: Its whole name, as in messages.
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

    def check_free(
        self, error: type[Exception], advice: str = "Pass another path, or `--overwrite`."
    ) -> None:
        """Raises an error if a save would replace something for good."""
        if self.exists():
            raise error(
                f"`{self.name}` exists already.\n"
                f"Expected: a path where nothing is. Received: one with a file.\n{advice}"
            )

    def make_folder(self) -> None:
        """Makes the folder that the file is to lie in, where a place has folders."""
        return None

    def is_folder(self) -> bool:
        return False

    def is_same_as(self, other: "Storage") -> bool:
        """Whether both are one place, whatever they are called."""
        return self.name == other.name

    def holds(self, other: "Storage") -> bool:
        """Whether the other one lies in this folder, or in one inside it."""
        return False

    def reading(self) -> AbstractContextManager[BinaryIO]:
        """Opens the file, to be read in any order.

        Raises:
            MissingFileError: If there is no such file.
        """
        raise self._missing()

    def replacing(self, durable: bool) -> AbstractContextManager[BinaryIO]:
        """Opens a file that takes the place of this one once it is complete."""
        raise self._unfit("a single file")

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

    def _missing(self, received: str = "", advice: str = "Check the path.") -> MissingFileError:
        found = received or ("a folder" if self.is_folder() else "nothing there")
        return MissingFileError(
            f"There is no file `{self.name}`.\nExpected: a file. Received: {found}.\n{advice}"
        )
