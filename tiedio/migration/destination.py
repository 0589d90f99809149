"""Tell what migrated files are called, so that none takes the place of another one."""

import collections
import os
import re
from collections.abc import Sequence

from tiedio.errors import MigrationError, TargetExistsError, listed
from tiedio.formats import listing, table
from tiedio.formats.listing import File
from tiedio.formats.tensorflow_paths import INDEX
from tiedio.storage.base import Storage

# A name that ends otherwise is a folder's, which has no ending.
_ENDING = re.compile(r"\.[A-Za-z]\w{0,11}$")


def check_ending(wanted: Storage) -> None:
    """Raises `MigrationError` if a path has an ending that nothing is written to."""
    if _ENDING.search(wanted.label) and not wanted.name.endswith(table.SUFFIXES):
        raise MigrationError(
            f"Cannot write `{wanted.name}`: nothing that is written has such an ending.\n"
            f"Expected: a path ending in {listed(filter(None, table.SUFFIXES))}, or in nothing, "
            f"for a folder. Received: {wanted.label}.\n"
            "Change the ending."
        )


def check_free(wanted: Storage, advice: str = "") -> None:
    """Raises `TargetExistsError` if something is there."""
    usual = "Pass another path, `--overwrite` to replace it, or `--skip-existing` to keep it."
    try:
        wanted.check_free(TargetExistsError, advice or usual)
    except TargetExistsError as error:
        error.target, error.needs = wanted.name, ("--overwrite",)
        raise


class Destinations:
    """The paths that many files are migrated to, each of them another one.

    Args:
        files: The files.
        folder: Where the new ones go.
    """

    def __init__(self, files: Sequence[File], folder: str):
        self._folder = folder
        self._targets = _targets(files, folder)
        # Whatever has the new ending already keeps its name, in its turn.
        own = [one.path for one in files if renamed(one.name) == one.name]
        self._taken = {_identity(self._targets[path]): path for path in reversed(own)}
        self._taken |= {_identity(one.path): one.path for one in files}

    def of(self, file: File) -> str:
        """Returns the path to write a file to.

        Raises:
            MigrationError: If another file has, or gets, this path.
        """
        self.check_untaken(file, self._targets[file.path])
        return self._targets[file.path]

    def instead_of(self, file: File, target: str) -> str:
        """Returns another path for a file that would be written to that of another one.

        Raises:
            MigrationError: If there is none that is its own.
        """
        kept = os.path.join(self._folder, renamed(file.name, keeps_ending=True))
        if self._targets[file.path] == kept:
            self.check_untaken(file, target)
        self._targets[file.path] = kept
        return self.of(file)

    def is_taken(self, file: File, target: str) -> bool:
        """Whether another file has, or gets, a path."""
        return self._taken.get(_identity(target), file.path) != file.path

    def check_untaken(self, file: File, target: str) -> None:
        """Raises `MigrationError` if another file has, or gets, a path."""
        if self.is_taken(file, target):
            raise MigrationError(
                f"`{file.path}` would be written to `{target}`.\n"
                "Expected: a path of its own. "
                f"Received: that of {listed([self._taken[_identity(target)]])}.\n"
                "Migrate it by itself, or rename one of the two."
            )

    def take(self, file: File, *targets: str) -> None:
        """Notes that paths are this file's from now on."""
        self._taken |= {_identity(one): file.path for one in targets}

    def notes(self, file: File) -> tuple[str, ...]:
        """What is to be said of the path of a file."""
        plain = renamed(file.name)
        if self._targets[file.path] == os.path.join(self._folder, plain):
            return ()
        return (f"Another file is, or becomes, `{plain}`: so this one keeps its old ending.",)


def _targets(files: Sequence[File], folder: str) -> dict[str, str]:
    """Returns the path to write each file to, by its own.

    Only its ending is another. If so it would be that of another new file, or of one that is
    to be migrated, the old ending stays in the name, as in `best_h5.keras`; unless it is the
    new one already, whose name that is.
    """
    plain = {one.path: os.path.join(folder, renamed(one.name)) for one in files}
    times = collections.Counter(plain.values())
    sources = {_identity(one.path) for one in files}
    return {
        one.path: os.path.join(folder, renamed(one.name, keeps_ending=True))
        if renamed(one.name) != one.name
        and (times[plain[one.path]] > 1 or _identity(plain[one.path]) in sources)
        else plain[one.path]
        for one in files
    }


def _identity(path: str) -> object:
    """What lies at a path, whichever path that is; a path itself where nothing is."""
    try:
        here = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return here.st_dev, here.st_ino


def renamed(name: str, keeps_ending: bool = False) -> str:
    """Returns the name of a new file: a whole model's, which weights only change again."""
    ending = listing.ending(name)
    stem = name.removesuffix(ending or INDEX)
    if keeps_ending:
        stem += f"_{ending.rpartition('.')[2] or 'folder'}"
    return stem + (".weights.h5" if ending.lower() in table.WEIGHTS_SUFFIXES else ".keras")
