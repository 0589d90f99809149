"""Replace a file whole, or leave it untouched.

A partial file beside the target is written, flushed to disk and renamed. The
process that writes it holds a lock on it, which the system releases however the
process ends: a partial file without a lock is a leftover, and the next save to
the same path removes it.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

# A partial file is named `.<name of the target>.<token>.tiedio-partial`.
_SUFFIX = ".tiedio-partial"
_LONGEST_NAME = 200  # bytes, of the 255 that most file systems allow

# What systems say that cannot open or flush a folder.
_NO_FOLDER_FLUSH = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOTSUP}

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(filepath: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `filepath` once it is complete.

    What `open(filepath, "w")` refuses is refused, and what it keeps is kept: symbolic
    links, permissions and, where the system lets us, the owner.

    Args:
        filepath: The target.
        durable: Whether to wait until file and folder are on disk.
    """
    # What a symbolic link points to is replaced.
    target = Path(os.path.realpath(filepath))
    if target.exists() and not target.is_file():
        # A device is written to, as ever, and a folder refused.
        with open(target, "wb") as file:
            yield file
        return
    replaced = _writable(target)
    _remove_leftovers(target)
    partial, file, unlock = _create(target)
    try:
        # Closed before it is renamed: a network's file system may tell of a full disk only then.
        with file:
            if replaced:
                _keep_access(partial, replaced)
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


def _keep_access(partial: Path, replaced: os.stat_result) -> None:
    """Gives a file the owner and permissions of the one that it replaces, before it has content."""
    if hasattr(os, "chown"):
        # The group first: what was given away cannot be changed.
        for owner in ((-1, replaced.st_gid), (replaced.st_uid, -1)):
            with contextlib.suppress(OSError):  # for root only, mostly
                os.chown(partial, *owner)
    os.chmod(partial, stat.S_IMODE(replaced.st_mode))


def _create(target: Path) -> tuple[Path, BinaryIO, Callable[[], None]]:
    """Creates and locks a partial file; returns its path, the file, and what unlocks it."""
    while True:
        partial = target.with_name(f"{_label(target)}{secrets.token_hex(4)}{_SUFFIX}")
        # Not `tempfile`, whose files are private to the user.
        file = open(partial, "xb")  # noqa: SIM115
        unlock = _lock(file)
        if partial.exists():
            return partial, file, unlock
        # Before it was locked, another save took it for a leftover.
        unlock()
        file.close()


def _label(target: Path) -> str:
    """What the names of all partial files of `target`, and of no other, begin with."""
    name = os.fsencode(target.name)
    if len(name) <= _LONGEST_NAME:
        return f".{target.name}."
    return f".{hashlib.blake2b(name, digest_size=16).hexdigest()}."


def _remove_leftovers(target: Path) -> None:
    """Removes the partial files of saves to `target` that were killed."""
    name = re.compile(re.escape(_label(target)) + "[0-9a-f]{8}" + re.escape(_SUFFIX))
    try:
        leftovers = [target.with_name(n) for n in os.listdir(target.parent) if name.fullmatch(n)]
    except OSError:  # a folder may be writable, but not readable
        leftovers = []
    for leftover in leftovers:
        try:
            _remove_unless_locked(leftover)
            _log.debug("%s was left by a save that was killed: it is removed", leftover)
        except OSError as error:
            _log.debug("%s is kept: %s", leftover, error)


if sys.platform != "win32":

    def _lock(file: BinaryIO) -> Callable[[], None]:
        """Locks a file until the function that is returned is called, or the process ends."""
        descriptor = os.dup(file.fileno())  # the lock outlives the closing of the file
        with contextlib.suppress(OSError):  # where no locks are, nothing is removed either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        return lambda: os.close(descriptor)

    def _remove_unless_locked(leftover: Path) -> None:
        with open(leftover, "r+b") as file:  # on NFS, a lock needs a file that may be written
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()

else:

    def _lock(file: BinaryIO) -> Callable[[], None]:
        """Does nothing: Windows removes no file that is open."""
        return lambda: None

    def _remove_unless_locked(leftover: Path) -> None:
        # It is closed, but not a leftover, for a moment before it is renamed.
        if time.time() - leftover.stat().st_mtime < 60:
            raise PermissionError("it was written a moment ago")
        leftover.unlink()


def _flush_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk, where the system can (not on Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FLUSH:
            raise
        _log.debug("%s cannot be flushed: %s", folder, error)
