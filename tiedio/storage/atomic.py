"""Replace a file or a folder whole, or leave it untouched.

A partial one beside the target is written, flushed to disk and renamed. The
process that writes it holds a lock on it, which the system releases however the
process ends: a partial file without a lock is a leftover, and the next save to
the same path removes it.
"""

import contextlib
import ctypes
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tiedio.storage.streams import Onward

if sys.platform != "win32":
    import fcntl

# A partial file is named `.<name of the target>.<token>.tiedio-partial`.
_SUFFIX = ".tiedio-partial"
# A folder that was put aside, where a system cannot exchange two in one step.
_ASIDE = ".tiedio-replaced"
_LONGEST_NAME = 200  # bytes, of the 255 that most file systems allow

# How often the files of a folder are listed that others replace all the time.
_TRIES = 100

# Errors of systems that cannot open or flush a folder.
_NO_FOLDER_FLUSH = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOTSUP}

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(filepath: Path, durable: bool = True) -> Iterator[Any]:
    """Opens a file that takes the place of `filepath` once it is complete.

    What `open(filepath, "w")` refuses is refused, and what it keeps is kept: symbolic
    links, permissions and, where the system lets us, the owner and extended attributes. But not
    other hard links: they go on with the old content.

    Args:
        filepath: The target.
        durable: Whether to wait until file and folder are on disk.
    """
    # The target of a symbolic link is replaced, not the link.
    target = Path(os.path.realpath(filepath))
    if target.exists() and not target.is_file():
        # A device is written to, as ever, from its start to its end, and a folder refused.
        with open(target, "wb") as file:
            yield Onward(file)
        return
    replaced = _writable(target)
    _remove_leftovers(target)
    partial, file, unlock = _create(target)
    try:
        # Closed before it is renamed: a network's file system may tell of a full disk only then.
        with file:
            if replaced:
                _keep_access(partial, target, replaced)
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    finally:
        unlock()
    if durable:
        _flush_folder(target.parent)


def rename(filepath: Path, new: Path, durable: bool = True) -> bool:
    """Gives a file a new name, unless another has it; whether it was done."""
    try:
        os.link(filepath, new)  # unlike a renaming, it replaces nothing
    except OSError:  # there is one, or there are no links
        return False
    filepath.unlink()
    if durable:
        _flush_folder(new.parent)
    return True


@contextlib.contextmanager
def replacing_folder(
    filepath: Path, replaced: Collection[str], durable: bool = True
) -> Iterator[Path]:
    """Makes a folder that takes the place of `filepath` once it is complete.

    Linux and macOS exchange the two in one step. Elsewhere the old folder is put aside for
    a moment, as `.<name>.<8 digits>.tiedio-replaced`.

    Args:
        filepath: The target.
        replaced: Names in the old folder that the new one has instead, or no longer. All
            others are kept.
        durable: Whether to wait until all of it is on disk.

    Raises:
        OSError: If there is a file instead, or the folder cannot be written to.
    """
    target = Path(os.path.realpath(filepath))
    target.parent.mkdir(parents=True, exist_ok=True)
    _put_back(target)
    there = target.stat() if target.exists() else None
    if there and not stat.S_ISDIR(there.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    if there and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    _remove_leftovers(target)
    partial, unlock = _create_folder(target)
    try:
        if there:
            _keep_access(partial, target, there)
        yield partial
        if durable:
            for folder, _, names in os.walk(partial, topdown=False):
                for name in names:
                    _flush(Path(folder, name))
                _flush_folder(Path(folder))
        # As late as can be: somebody may have put files there meanwhile.
        _take_place(partial, target, replaced, durable)
        if durable:
            _flush_folder(target.parent)
    finally:
        try:
            # The new one if something failed, or the old one.
            shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            # Some versions of Python close a folder twice if a signal comes, and say only that.
            raise error.__context__ or error from None
        finally:  # what a signal keeps us from removing, the next save removes
            unlock()


def _take_place(partial: Path, target: Path, replaced: Collection[str], durable: bool) -> None:
    """Puts a complete folder in the place of an old one, of which it keeps the other files."""
    own = set(os.listdir(partial))
    # Not locked: anybody may hold a lock on it, and for ever. But another save that replaces it
    # removes it, perhaps while its files are listed.
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            before = target.stat()
            for name in sorted(set(os.listdir(target)).difference(replaced)):
                _link(target / name, partial / name)
            if os.path.samestat(before, target.stat()):
                break
        if not target.exists():
            break
        for name in set(os.listdir(partial)) - own:
            _remove(partial / name)
    if durable:
        _flush_folder(partial)
    _exchange(partial, target)


def _link(source: Path, target: Path) -> None:
    """Gives a file or a folder of files a second place, or copies what cannot be linked."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, target, follow_symlinks=False)

    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=link)
    else:
        link(str(source), str(target))


def _exchange(new: Path, old: Path) -> None:
    """Exchanges two folders, if there is an old one: in one step, where the system knows how."""
    if not old.exists():
        try:
            new.rename(old)
            return
        except OSError:
            if not old.exists():
                raise  # otherwise another save was quicker
    paths = os.fsencode(new), os.fsencode(old)
    library: Any = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(library, "renameat2"):  # Linux; -100: as any path, 2: exchange
        exchanged = library.renameat2(-100, paths[0], -100, paths[1], 2) == 0
    elif hasattr(library, "renamex_np"):  # macOS; 2: swap
        exchanged = library.renamex_np(*paths, 2) == 0
    else:
        exchanged = False
    if exchanged:
        return
    aside = new.with_suffix(_ASIDE)
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _put_back(target: Path) -> None:
    """Puts a folder back that was put aside by a save that was killed then."""
    for aside in _beside(target, _ASIDE):
        with contextlib.suppress(OSError):
            shutil.rmtree(aside) if target.exists() else aside.rename(target)


def _writable(target: Path) -> os.stat_result | None:
    """Returns the status of a file if it may be written, or `None` if there is none.

    Raises:
        OSError: What `open(target, "w")` would.
    """
    try:
        descriptor = os.open(target, os.O_WRONLY)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _keep_access(partial: Path, target: Path, replaced: os.stat_result) -> None:
    """Gives a file the owner, permissions and extended attributes of the one that it replaces.

    That is, before it has content.
    """
    if hasattr(os, "chown"):
        # The group first: what was given away cannot be changed.
        for owner in ((-1, replaced.st_gid), (replaced.st_uid, -1)):
            with contextlib.suppress(OSError):  # for root only, mostly
                os.chown(partial, *owner)
    os.chmod(partial, stat.S_IMODE(replaced.st_mode))
    with contextlib.suppress(OSError, AttributeError):  # where there are none
        for name in os.listxattr(target):
            with contextlib.suppress(OSError):  # some are the system's own
                os.setxattr(partial, name, os.getxattr(target, name))


def _create(target: Path) -> tuple[Path, BinaryIO, Callable[[], None]]:
    """Creates and locks a partial file; returns its path, the file, and what unlocks it."""
    while True:
        partial = _partial(target)
        if not partial.parent.exists():
            # As `open` has it for the target, of which the user knows.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))
        # Not `tempfile`, whose files are private to the user.
        file = open(partial, "xb")  # noqa: SIM115
        # Before it is locked, another save may take it for a leftover.
        with contextlib.suppress(FileNotFoundError):
            return partial, file, _lock(partial, file)
        file.close()


def _create_folder(target: Path) -> tuple[Path, Callable[[], None]]:
    """Creates and locks a partial folder; returns its path, and what unlocks it."""
    while True:
        partial = _partial(target)
        partial.mkdir()
        with contextlib.suppress(FileNotFoundError):  # as above
            return partial, _lock(partial)


def _partial(target: Path) -> Path:
    return target.with_name(f"{_label(target)}{secrets.token_hex(4)}{_SUFFIX}")


def _label(target: Path) -> str:
    """Returns the beginning of the names of all partial files of `target`, and of no other."""
    name = os.fsencode(target.name)
    if len(name) <= _LONGEST_NAME:
        return f".{target.name}."
    return f".{hashlib.blake2b(name, digest_size=16).hexdigest()}."


def is_being_saved(filepath: Path) -> bool:
    """Whether there are partial files of `filepath`."""
    return bool(_beside(Path(os.path.realpath(filepath)), _SUFFIX))


def _beside(target: Path, suffix: str) -> list[Path]:
    """Lists what saves to `target` have beside it: some are under way, others were killed."""
    name = re.compile(re.escape(_label(target)) + "[0-9a-f]{8}" + re.escape(suffix))
    try:
        return [target.with_name(n) for n in os.listdir(target.parent) if name.fullmatch(n)]
    except OSError:  # a folder may be writable, but not readable
        return []


class _Descriptor:
    """A descriptor that is open as long as this is there, also if a signal comes."""

    def __init__(self, number: int):
        self.number = number

    def close(self) -> None:
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)

    __del__ = close


def _remove_leftovers(target: Path) -> None:
    """Removes the partial files of saves to `target` that were killed."""
    for leftover in _beside(target, _SUFFIX):
        try:
            _remove_unless_locked(leftover)
            _log.debug("%s was left by a save that was killed: it is removed", leftover)
        except OSError as error:
            _log.debug("%s is kept: %s", leftover, error)


if sys.platform != "win32":

    def _lock(path: Path, file: BinaryIO | None = None) -> Callable[[], None]:
        """Locks what is at a path until what is returned is called, or the process ends.

        Args:
            path: A folder, or the path of `file`.
            file: A file, which may be closed before it is unlocked.

        Raises:
            FileNotFoundError: If nothing is at the path by the time it is locked.
        """
        while True:
            held = _Descriptor(os.dup(file.fileno()) if file else os.open(path, os.O_RDONLY))
            with contextlib.suppress(OSError):  # where no locks are, nothing is removed either
                fcntl.flock(held.number, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(held.number), os.stat(path)):
                return held.close

    def _remove_unless_locked(leftover: Path) -> None:
        # On NFS, a lock needs a file that may be written; a folder is opened for reading only.
        descriptor = os.open(leftover, os.O_RDONLY if leftover.is_dir() else os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(leftover)
        finally:
            os.close(descriptor)

else:

    def _lock(path: Path, file: BinaryIO | None = None) -> Callable[[], None]:
        """Does nothing: Windows removes no file that is open."""
        return lambda: None

    def _remove_unless_locked(leftover: Path) -> None:
        # It is closed, but not a leftover, for a moment before it is renamed.
        if time.time() - leftover.stat().st_mtime < 60:
            raise PermissionError("it was written a moment ago")
        _remove(leftover)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _flush(path: Path) -> None:
    """Flushes to disk what was written to a file, or the entries of a folder."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Flushes a folder where the system can."""
    if os.name == "nt":
        return
    try:
        _flush(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FLUSH:
            raise
        _log.debug("%s cannot be flushed: %s", folder, error)
