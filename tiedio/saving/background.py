"""Write a file while training goes on: the values as they are now, in a thread of its own.

The call checks, copies the values, and lets the thread begin: whatever is refused is refused
before a first value is written, and until then the call waits. Threads write one after the other,
in the order of the calls: a backup, which knows which checkpoint is the best, comes after it.
"""

import atexit
import contextlib
import dataclasses
import logging
import os
import re
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import numpy as np

from tiedio.formats import table
from tiedio.formats.arrays import aligned, content_of
from tiedio.formats.content import Content
from tiedio.formats.hdf5_writer import Layout, Tensor
from tiedio.model import several
from tiedio.storage.base import Storage
from tiedio.storage.open_file import OpenFile
from tiedio.storage.progress import bar
from tiedio.storage.streams import Threads

_log = logging.getLogger(__name__)

_ALIGNMENT = 64  # bytes
# A copy takes this part of the memory that is free, or less.
_LARGEST_PART = 0.5


class Saving:
    """A save that goes on in the background.

    `save_tied` and `save_tied_weights` return it with `background=True`. An error is raised by
    `wait`, or else by the next save to that path. If neither comes, it is printed when Python
    ends, which waits for all saves.

    Example:

    >>> import keras, tiedio
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    >>> saving = tiedio.save_tied(model, "model.keras", background=True)
    >>> saving.wait()
    >>> saving.done
    True
    """

    def __init__(self, target: Storage):
        self._target = target
        self._end: Future[None] = Future()

    @property
    def done(self) -> bool:
        """Whether it has come to its end, with the new file or with an error."""
        return self._end.done()

    def wait(self) -> None:
        """Waits for the end.

        Raises:
            Exception: What the save failed with, as if it had been made in the foreground.
        """
        error = self._end.exception()
        _unsettled.pop(self, None)
        if error:
            raise error

    def _run(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except BaseException as error:  # it is for others to raise
            self._end.set_exception(error)
        else:
            _unsettled.pop(self, None)
            self._end.set_result(None)


# What is under way, or failed and nobody has been told, in the order of the calls.
_unsettled: dict[Saving, None] = {}


class Buffer:
    """The memory for the values of one save at a time, used again by the next one.

    Each callback has its own. That of a model is kept as long as the model is.
    """

    def __init__(self):
        self.lock = threading.Lock()
        # An error leads to all that its traceback does, perhaps to the model.
        self._last: Callable[[], Saving | None] = lambda: None
        self._memory = aligned((0,), np.dtype(np.uint8))

    def settle(self) -> None:
        """Waits for the save whose values it has, and raises its error unless that was done."""
        last = self._last()
        if last in _unsettled:
            last.wait()

    def copy(self, layout: Layout, saving: Saving, begin: Callable[[], None]) -> Layout | None:
        """Copies the values of all tensors, if there is room for them.

        Args:
            layout: The tensors.
            saving: The save that they are for.
            begin: What is to be called before the first one is written.
        """
        if (last := self._last()) in _unsettled:
            wait([last._end])
        places, size = {}, 0
        for path, tensor in layout.tensors.items():
            places[path] = slice(size, size + tensor.nbytes)
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        if size > self._memory.nbytes:
            self._memory = self._memory[:0].copy()  # first the old one goes
            if size > _LARGEST_PART * _free_memory():
                return None
            self._memory = aligned((size,), np.dtype(np.uint8))
        self._last = weakref.ref(saving)
        tensors = {}
        for path, tensor in layout.tensors.items():
            values = self._memory[places[path]].view(tensor.dtype).reshape(tensor.shape)
            if memory := tensor.on_device():
                memory.pin(self._memory)
                memory.copy_to(content_of(values), 0)
            else:
                values[...] = tensor.read()
            copy = _Read(values, begin)
            tensors[path] = Tensor(tensor.shape, tensor.dtype, copy, tensor.axis_order)
        return dataclasses.replace(layout, tensors=tensors)


@dataclasses.dataclass(frozen=True)
class _Read:
    """Reads a copy."""

    values: np.ndarray
    begin: Callable[[], None]

    def __call__(self) -> np.ndarray:
        self.begin()
        return self.values


_buffers: weakref.WeakKeyDictionary[Any, Buffer] = weakref.WeakKeyDictionary()


def buffer_for(background: bool | Buffer, model: Any) -> Buffer | None:
    """Returns the buffer that a callback gives, or that of a model, or of the first of several."""
    if not background or isinstance(background, Buffer):
        return background or None
    return _buffers.setdefault(several.each(model)[0], Buffer())


def write(
    container: table.Format,
    target: Storage,
    content: Content,
    *,
    durable: bool,
    progress: bool = False,
    buffer: Buffer | None = None,
    resources: contextlib.ExitStack | None = None,
) -> Saving | None:
    """Writes a file: in the background, if there is a buffer, and memory for it.

    Args:
        container: The format.
        target: Where to. A file that is open, and that the caller may close, is written at once.
        content: What to write.
        durable: Whether to wait until it is on disk.
        progress: Whether to show a bar.
        buffer: Where values are copied to.
        resources: What the content needs, to be closed when it is written.

    Returns:
        The save, if there is a buffer.
    """

    def save(content: Content) -> None:
        with bar(f"Saving {target.label}", progress) as advance:
            container.write(target, content, durable, advance)

    if not buffer:
        return save(content)
    saving, begun = Saving(target), Future[None]()
    before: list[Future[None]] = []

    def begin() -> None:
        if not begun.done():  # all is checked now
            begun.set_result(None)
            wait(before)

    with buffer.lock:
        copy = None
        if not isinstance(target, OpenFile):
            copy = buffer.copy(content.layout, saving, begin)
        if not copy:
            _log.info("saved in the foreground: %s", target.name)
            catch_up()
            save(content)
            return ended(target)
        copied = dataclasses.replace(content, layout=copy)
        closing = resources.pop_all() if resources else contextlib.nullcontext()

        def write_copy() -> None:
            with closing:
                save(copied)

        before += [one._end for one in [*_unsettled]]
        _unsettled[saving] = None
        pool = Threads(1, "tiedio-saving")
        pool.submit(saving._run, write_copy)
        pool.shutdown(wait=False)
    wait([begun, saving._end], return_when=FIRST_COMPLETED)
    if not begun.done():
        saving.wait()
    return saving


def ended(target: Storage) -> Saving:
    """Returns a save for which there is nothing left to do."""
    saving = Saving(target)
    saving._end.set_result(None)
    return saving


def settle(target: Storage) -> None:
    """Waits for what is being saved to a place, and raises its error unless that was done."""
    for saving in [*_unsettled]:
        if saving._target.is_same_as(target):
            saving.wait()


def catch_up(target: Storage | None = None) -> None:
    """Waits for what is being saved to a place, or to any; errors are left to others."""
    wait([s._end for s in [*_unsettled] if target is None or s._target.is_same_as(target)])


def _free_memory() -> float:
    """Returns how many bytes a copy may take at most; infinite where the system does not say."""
    known = [float("inf")]
    with contextlib.suppress(OSError, ValueError):
        known.append(1024 * _number("/proc/meminfo", r"MemAvailable:\s+(\d+)"))
        used = 1024 * _number("/proc/self/status", r"VmRSS:\s+(\d+)")
        for limit in "memory.max", "memory/memory.limit_in_bytes":  # of a container
            with contextlib.suppress(OSError, ValueError):
                known.append(_number(f"/sys/fs/cgroup/{limit}", r"(\d+)") - used)
    return min(known)


def _number(path: str, pattern: str) -> int:
    found = re.search(pattern, Path(path).read_text())
    if not found:
        raise ValueError(f"no number in {path}")
    return int(found[1])


@atexit.register
def _tell() -> None:
    """Prints the errors of which nobody was told."""
    for saving in [*_unsettled]:
        if saving.done and (error := saving._end.exception()):
            print(f"`{saving._target.name}` could not be saved:", file=sys.stderr)
            traceback.print_exception(error)


if hasattr(os, "register_at_fork"):  # a child has no threads: it would wait for ever
    os.register_at_fork(after_in_child=_unsettled.clear)
    os.register_at_fork(after_in_child=_buffers.clear)
