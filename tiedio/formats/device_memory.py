"""The memory of a card, which CUDA's driver copies in parts, in any thread.

A backend copies a tensor as a whole, into memory that is new each time, which takes several
times as long as the copy. DLPack (https://dmlc.github.io/dlpack/latest/c_api.html) says where a
tensor lies, for all backends alike; the driver (https://docs.nvidia.com/cuda/cuda-driver-api)
needs no package.
"""

import contextlib
import ctypes
import functools
import logging
import math
import mmap
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

_log = logging.getLogger(__name__)

_CUDA = 2  # the number that DLPack gives this kind of device

# What backends raise for a tensor that they cannot show.
_HIDDEN = (AttributeError, BufferError, OSError, RuntimeError, TypeError, ValueError)


class _Tensor(ctypes.Structure):
    """The beginning of what DLPack says of a tensor."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_number", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("kind", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements; none: row by row
        ("byte_offset", ctypes.c_uint64),
    )


class Driver:
    """The functions of CUDA's driver that copy."""

    device_type = _CUDA

    def __init__(self):
        self._cuda = ctypes.CDLL("libcuda.so.1")
        # For what takes no time: other threads need not run meanwhile.
        self._at_once = ctypes.PyDLL("libcuda.so.1")
        self._contexts: dict[int, ctypes.c_void_p] = {}

    def to_host(self, device: int, address: int, host: int, size: int) -> None:
        with self._in_context(device):
            self._call("cuMemcpyDtoH_v2", host, address, size)

    def to_device(self, device: int, address: int, host: int, size: int) -> None:
        with self._in_context(device):
            self._call("cuMemcpyHtoD_v2", address, host, size)

    def synchronize(self, device: int) -> None:
        """Waits until all that the card was asked for is done."""
        with self._in_context(device):
            self._call("cuCtxSynchronize")

    def pin(self, device: int, host: int, size: int) -> None:
        """Keeps memory of the host in its place, for the card to read and write it."""
        with self._in_context(device):
            self._call("cuMemHostRegister_v2", host, size, 1)  # for all cards

    def unpin(self, device: int, host: int) -> None:
        with self._in_context(device):
            self._call("cuMemHostUnregister", host)

    @contextlib.contextmanager
    def _in_context(self, device: int) -> Iterator[None]:
        if device not in self._contexts:
            # The one that all backends use; it is kept until the process ends.
            context = ctypes.c_void_p()
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
            self._contexts[device] = context
        self._at_once.cuCtxPushCurrent_v2(self._contexts[device])
        try:
            yield
        finally:
            self._at_once.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: Any) -> None:
        plain = [ctypes.c_uint64(a) if isinstance(a, int) else a for a in arguments]
        if code := self._cuda[name](*plain):
            raise OSError(f"CUDA's `{name}` failed with error {code}")


@functools.cache
def driver() -> Driver | None:
    """Returns the driver, or `None` where there is none."""
    try:
        return Driver()
    except OSError:
        return None


class DeviceMemory:
    """The memory of a tensor on a card, row by row. It is kept as long as this is.

    Attributes:
        nbytes: Bytes of it.
    """

    def __init__(self, cuda: Driver, capsule: Any, tensor: _Tensor):
        self._cuda = cuda
        self._capsule = capsule
        self.nbytes = math.prod(tensor.shape[: tensor.ndim]) * tensor.bits * tensor.lanes // 8
        self._device = tensor.device_number
        self._address = tensor.address + tensor.byte_offset

    @classmethod
    def of(cls, tensor: Any, nbytes: int) -> "DeviceMemory | None":
        """Returns the memory of a tensor, or `None` if it is not on a card, or hidden.

        Or if it has other bytes: JAX keeps 32 bits of integers that Keras says have 64.
        """
        cuda = driver()
        if not cuda:
            return None
        try:
            capsule = tensor.__dlpack__()
            told = _Tensor.from_address(_pointer(capsule, b"dltensor"))
            if told.device_type != cuda.device_type or not _is_row_by_row(told):
                return None
            cuda.synchronize(told.device_number)
            memory = cls(cuda, capsule, told)
        except _HIDDEN as error:
            _log.debug("a tensor is copied by its backend: %s", error)
            return None
        return memory if memory.nbytes == nbytes else None

    def copy_to(self, part: memoryview, start: int) -> None:
        """Fills memory of the host with the bytes from `start` on."""
        self._cuda.to_host(self._device, self._address + start, _address(part), part.nbytes)

    def copy_from(self, part: memoryview, start: int) -> None:
        """Puts memory of the host where the bytes from `start` on are."""
        self._cuda.to_device(self._device, self._address + start, _address(part), part.nbytes)

    def pin(self, memory: np.ndarray) -> None:
        """Pins memory of the host while it lives, for faster copies, if that can be done."""
        if memory.ctypes.data in _pinned:
            return
        try:
            self._cuda.pin(self._device, memory.ctypes.data, memory.nbytes)
        except OSError as error:
            _log.debug("copies are slower: %s", error)
            return
        _pinned.add(memory.ctypes.data)
        unpin = weakref.finalize(memory, _unpin, self._cuda, self._device, memory.ctypes.data)
        unpin.atexit = False  # the process takes it along


# Addresses.
_pinned: set[int] = set()


def _unpin(cuda: Driver, device: int, address: int) -> None:
    _pinned.discard(address)
    with contextlib.suppress(OSError):
        cuda.unpin(device, address)


class Staging:
    """Memory that cards copy from, a piece for each thread that asks.

    Args:
        size: Bytes of each.
    """

    def __init__(self, size: int):
        self._size = size
        self._local = threading.local()

    def piece(self, memory: DeviceMemory) -> memoryview:
        """Returns the piece of this thread."""
        if not hasattr(self._local, "piece"):
            piece = np.frombuffer(mmap.mmap(-1, self._size), np.uint8)  # pages of its own
            memory.pin(piece)
            self._local.piece = piece
        return self._local.piece.data


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _is_row_by_row(tensor: _Tensor) -> bool:
    if not tensor.strides:
        return True
    expected = 1
    for axis in reversed(range(tensor.ndim)):
        if tensor.shape[axis] != 1 and tensor.strides[axis] != expected:
            return False
        expected *= tensor.shape[axis]
    return True


def _address(part: memoryview) -> int:
    return np.frombuffer(part, np.uint8).ctypes.data
