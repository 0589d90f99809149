"""Arrays as they are read, in memory that a variable may use without copying it."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

# What TensorFlow, JAX and torch ask of memory that they use in place.
_ALIGNMENT = 64  # bytes


# The axes of an array in another order; `None` for their own.
Axes = Sequence[int] | None


class Stored(np.ndarray):
    """An array as it was read. One variable may use its memory."""

    def take_over(self) -> np.ndarray:
        """Returns the array itself to the first who asks; to any other a copy."""
        memory = self.__dict__.pop("memory", None)
        if memory is None:
            memory = aligned(self.shape, self.dtype)
            memory[...] = self
        return memory


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Makes an array in memory that backends take over without copying it."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def content_of(array: np.ndarray) -> memoryview:
    """Returns the bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def cut(content: memoryview, size: int) -> Iterator[memoryview]:
    """Cuts bytes into parts of `size` bytes."""
    return (content[start : start + size] for start in range(0, len(content), size))


def ordered(array: np.ndarray, axes: Axes) -> np.ndarray:
    """Lays the memory of an array out so that its strides fall in the order of `axes`."""
    if axes is None:
        return array
    if len(axes) != array.ndim:
        raise ValueError(f"axes {list(axes)} of an array of shape {array.shape}")
    moved = aligned(tuple(array.shape[axis] for axis in axes), array.dtype)
    moved[...] = array.transpose(axes)
    return moved.transpose(np.argsort(axes))


def are_equal(array: np.ndarray, other: np.ndarray, axes: Axes) -> bool:
    """Whether arrays are equal, bit for bit: the other with its axes in this order, if given."""
    if axes is None:
        return array.tobytes() == other.tobytes()
    other = other.transpose(axes)
    pairs = zip(array, other, strict=True)  # row by row: no copy is made of all
    return array.shape == other.shape and all(a.tobytes() == b.tobytes() for a, b in pairs)
