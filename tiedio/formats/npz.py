"""Read weights that Keras wrote as `.npz`, without running what they pickle.

Keras puts its variables, whole, into object arrays, and so NumPy pickles them; neither Keras
nor NumPy reads them back. Here the opcodes of a pickle are followed by a machine that
notes which functions it would call, and with what, and calls none. The arrays are
made anew from the bytes that are among the arguments.
"""

import contextlib
import dataclasses
import io
import math
import pickletools
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

from tiedio.errors import FileFormatError, damaged, first_line
from tiedio.formats import hdf5_writer
from tiedio.storage.streams import Window, WriteBehind

_SIGNATURE = b"PK\x03\x04"
_ROOT = "__root__"

# A variable takes about 200. Each is two microseconds, and up to a hundred bytes.
_MOST_OPCODES = 1 << 21

# Errors that other bytes than such a file's, or malformed values, lead to.
_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _UnknownKindError(Exception):
    """A value is of no kind that is read here."""


def is_one(file: Window) -> bool:
    """Whether a file is a zip archive, as those of NumPy are."""
    begins = file.read(len(_SIGNATURE))
    file.seek(0)
    return begins == _SIGNATURE


@contextlib.contextmanager
def converted(source: Window, filepath: str) -> Iterator[Window]:
    """Yields the same weights as an HDF5 file.

    Raises:
        FileFormatError: If they are damaged, or not of a kind that can be read: those of
            the TensorFlow and the JAX backend are, and arrays of NumPy.
    """
    with tempfile.TemporaryFile() as file:
        try:
            tensors = {path: hdf5_writer.Tensor.of(array) for path, array in _arrays(source)}
            with WriteBehind(file) as stream:
                hdf5_writer.write(hdf5_writer.Layout(tensors=tensors), stream)
        except _UnknownKindError as error:
            raise FileFormatError(
                f"`{filepath}` has values that tiedio cannot read.\n"
                "Expected: arrays of NumPy, or variables of Keras on TensorFlow or JAX. "
                f"Received: {error}.\n"
                "Save the model again as a `.keras` file, as `model.save` does."
            ) from error
        except _ERRORS as error:
            raise damaged(filepath, f"values that cannot be read ({first_line(error)})") from error
        file.flush()
        yield Window(file, 0, file.tell())


def _arrays(source: Window) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every array, and its dataset_path."""
    budget = iter(range(_MOST_OPCODES))
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > source.size:
            raise ValueError("members larger than the file, which NumPy does not compress")
        for member in members:
            path = member.filename.removesuffix(".npy")
            with _Member(archive.open(member), member.file_size) as stream:
                version = np.lib.format.read_magic(stream)
                read_header = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read_header = np.lib.format.read_array_header_2_0
                shape, by_columns, dtype = read_header(stream)
                if not dtype.hasobject:
                    yield _checked(path), _rebuilt(shape, dtype, by_columns, stream.read())
                    continue
                held = _values(_PickleMachine().run(stream, budget))
                if stream.read(1):  # which also compares the checksum
                    raise ValueError("more than one pickle")
            group = "vars" if path == _ROOT else f"{path}/vars"
            for key, value in held.items():
                yield _checked(f"{group}/{key}"), _array(value)


class _Member(io.BufferedReader):
    """A member of an archive. Who asks for more than it has makes no room for that."""

    def __init__(self, member: Any, size: int):
        super().__init__(member)
        self._size = size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(self._size if size is None else size, self._size))


def _checked(path: str) -> str:
    """Returns the path of a dataset, if HDF5 takes it as it stands there."""
    if not {"", ".", ".."}.isdisjoint(path.split("/")) or "\0" in path:
        raise ValueError(f"{path!r} is no path")
    return path


def _rebuilt(shape: Any, dtype: np.dtype, by_columns: bool, content: bytes) -> np.ndarray:
    """Makes an array of its bytes, if they are as many as they should be."""
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a shape that is none")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"{len(content)} bytes in a shape of {shape}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")


@dataclasses.dataclass(eq=False)
class _Made:
    """An object that a pickle would make: its function and arguments, and the state set."""

    function: Any
    arguments: tuple[Any, ...]
    state: Any = None


@dataclasses.dataclass(frozen=True)
class _Global:
    """A function or class that a pickle names."""

    name: str


_LITERALS = re.compile(r"BININT[12]?|LONG1|BINFLOAT|(SHORT_)?BIN(UNICODE|BYTES)8?")


class _PickleMachine:
    """Follows a pickle of protocols 2 to 4, calling nothing.

    No value is compared, hashed or printed but texts and numbers: a few bytes can
    make a tuple of tuples that takes for ever.
    """

    def __init__(self):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes], budget: Iterator[int]) -> Any:
        for (opcode, argument, _), _ in zip(pickletools.genops(stream), budget, strict=False):
            if opcode.name == "STOP":
                return self.stack[-1]
            if _LITERALS.fullmatch(opcode.name):
                self.push(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            else:
                raise ValueError(f"a pickle with {opcode.name}")
        raise EOFError("a pickle without its end, or one that is too long")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise ValueError("a pickle that takes more than there is")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def pop_marked(self) -> list[Any]:
        values = self.pop(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return values

    def remember(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def make(self) -> None:
        function, arguments = self.pop(2)
        self.push(_Made(function, tuple(arguments)))

    def give_state(self) -> None:
        (state,) = self.pop(1)
        if not isinstance(self.stack[-1], _Made):
            raise ValueError("a state of what was not made")
        self.stack[-1].state = state

    def set_items(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            self.stack[-1].update({key: value for key, value in pairs if isinstance(key, str)})

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)


# What the machine does at an opcode, given its argument.
_STEPS: dict[str, Callable[[_PickleMachine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda machine, _: machine.push([])),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_marked())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _PickleMachine.remember),
    **dict.fromkeys(
        ("BINGET", "LONG_BINGET"), lambda machine, number: machine.push(machine.memo[number])
    ),
    "GLOBAL": lambda machine, name: machine.push(_Global(name.replace(" ", "."))),
    "STACK_GLOBAL": lambda machine, _: machine.push(_Global(".".join(machine.pop(2)))),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda machine, _: machine.make()),
    "BUILD": lambda machine, _: machine.give_state(),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_marked()),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    **dict.fromkeys(
        ("APPENDS", "ADDITEMS"), lambda machine, _: machine.extend(machine.pop_marked())
    ),
}


def _values(made: Any) -> dict[str, Any]:
    """Returns the dict that is the one element of an object array."""
    (held,) = made.state[4]
    if not isinstance(held, dict):
        raise ValueError("no values by name")
    return held


def _array(value: Any) -> np.ndarray:
    """Makes the array that something pickled is, or holds."""
    if isinstance(value, (bool, int, float)):
        return np.asarray(value)
    if not isinstance(value, _Made):
        raise _UnknownKindError(f"a {type(value).__name__}")
    function, arguments, state = value.function, value.arguments, value.state
    called = function.name if isinstance(function, _Global) else ""
    if called.endswith(".multiarray._reconstruct"):
        _, shape, dtype, by_columns, content = state
        return _rebuilt(shape, _dtype(dtype), by_columns, content)
    if called.endswith(".multiarray.scalar"):
        return _rebuilt((), _dtype(arguments[0]), False, arguments[1])
    if called == "jax._src.array._reconstruct_array":
        reconstruct, given, state, *_ = arguments
        return _array(_Made(reconstruct, given, state))
    if called.endswith(".convert_to_tensor"):
        return _array(arguments[0])
    if isinstance(function, _Made):  # a variable of TensorFlow, as a `functools.partial`
        return _array(function.state[2]["initial_value"])
    if isinstance(state, dict) and "_value" in state:  # a variable of Keras
        return _array(state["_value"])
    raise _UnknownKindError(called[:99] or "something made by an unknown function")


def _dtype(made: Any) -> np.dtype:
    code, *_ = made.arguments
    if code == _Global("ml_dtypes.bfloat16"):
        return hdf5_writer.BFLOAT16
    if not re.fullmatch(r"[biufc]\d{1,2}", code):
        raise ValueError(f"a dtype {code!r}")
    return np.dtype(code).newbyteorder(made.state[1])
