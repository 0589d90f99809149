"""Build a model without values, then give every variable its first value once.

Random initial values, and room for them, would be most of the time and memory of
loading. A model that needs values while it is built gets them, as Keras does it.
"""

import contextlib
import logging
import math
import random
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import keras
import numpy as np

from tiedio.errors import FileFormatError, LoadError
from tiedio.formats.arrays import Stored
from tiedio.formats.device_memory import DeviceMemory, driver
from tiedio.formats.store import Store, Unread
from tiedio.model.keras_internals import (
    Counted,
    Uninitialized,
    exchange_initializer,
    has_value,
    initialize,
    scopes_as_before,
    to_tensor,
)
from tiedio.model.own_state import loads_as_keras
from tiedio.model.places import own_variables

_log = logging.getLogger(__name__)

T = TypeVar("T")

# When loading fails, initial values may be made of so many bytes, whatever the file has.
_FLOOR = 1 << 20
# And of so many where a model needs them while it is built; and so many copies of all that the file
# has: variables that are tied there are not yet.
_FLOOR_WHILE_BUILT = 1 << 27
_COPIES = 8

# Values of so many bytes are read straight to a card. JAX compiles for each shape how to make room.
_LARGE_ON_CARD = {"torch": 1 << 22, "jax": 1 << 27}


class Deferral:
    """Variables that were made without values, until they are given one.

    Args:
        room: Bytes of the tensors in the file; without end if a model exists already.
    """

    def __init__(self, room: float = math.inf):
        self._room = room
        # Not kept alive: one that is replaced by a shared one needs no value.
        self._made: list[weakref.ref[keras.Variable]] = []
        self._readings: list[_Reading] = []

    def __enter__(self) -> "Deferral":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # When loading failed, a variable may yet be in use elsewhere, as one of a class is. But
        # the model may be one that nobody could hold.
        made = self._alive() if kind else ()
        size = sum(_bytes(variable) for variable in made if not has_value(variable))
        if size <= _FLOOR + 2 * self._room:  # copies that ties would have replaced count too
            self.finish()

    def build(self, make: Callable[[], T]) -> T:
        """Returns what `make` makes, its variables without values if that can be done.

        `make` is called once more if not, and must then start from the beginning.
        """
        if keras.distribution.distribution():
            # The values of distributed variables are laid out by their initializers: all processes
            # must draw the same ones.
            with unnoticed():
                random.seed(0)
                return self._with_values(make)
        made: Any = None
        reason = ""
        with Uninitialized() as uninitialized, _Assignments() as assignments:
            try:
                made = make()
            except Exception as error:  # what a class raises that wants to see a value
                reason = str(error)
        # Also what was made in vain, if something outside holds it now.
        for variable in uninitialized.variables:
            self._made.append(weakref.ref(variable))
            variable.assign = _FirstAssign(variable, self._readings)
        if not reason and not assignments.made:
            return made
        _log.debug("built with initial values: %s", reason or "it assigns values")
        return self._with_values(make)

    def _with_values(self, make: Callable[[], T]) -> T:
        """Returns what `make` makes with initial values, if the file may hold so many."""
        size = 0

        def count(shape: Iterable[int | None], dtype: str) -> None:
            nonlocal size
            size += math.prod(one or 0 for one in shape) * np.dtype(dtype).itemsize
            self._check(size)

        with Counted(count):
            return make()

    def _check(self, size: int) -> None:
        largest = _FLOOR_WHILE_BUILT + _COPIES * self._room
        if size > largest:
            raise LoadError(
                "Cannot build the model: it declares far more than the file stores.\n"
                f"Expected: at most {largest} bytes. Received: {size} bytes or more.\n"
                "Build it in code, and load its weights with `tiedio.load_tied_weights`."
            )

    def load(self, saveable: Any, store: Store) -> None:
        """Lets `saveable` load its own variables; what has no value takes over what was read."""
        own = own_variables(saveable)
        if any(isinstance(variable.assign, _FirstAssign) for variable in own):
            if loads_as_keras(saveable):
                store = store.shared(_large_on_card(own))
            else:
                _log.debug("loaded with initial values, by code of its own: %s", saveable)
                _initialize(own)
        saveable.load_own_variables(store)

    def forget(self, replaced: Iterable[keras.Variable]) -> None:
        """Leaves those without a value that nothing holds any more, but perhaps a cycle."""
        gone = {id(variable) for variable in replaced}
        for made in self._alive():
            if id(made) in gone:
                del made.assign
        self._made = [reference for reference in self._made if id(reference()) not in gone]

    def settle(self) -> None:
        """Waits for what is being read to a card.

        Raises:
            FileFormatError: If something cannot be read; it has no value then.
        """
        failed = None
        while self._readings:
            try:
                self._readings.pop(0).settle()
            except FileFormatError as error:
                failed = failed or error
        if failed:
            raise failed

    def finish(self) -> None:
        """Gives what was not loaded the initial value that Keras would have given it."""
        self.settle()
        made = self._alive()
        self._check(sum(map(_bytes, made)))
        self._made.clear()
        for variable in made:
            del variable.assign
        _initialize(made)

    def _alive(self) -> list[Any]:
        return [made for reference in self._made if (made := reference()) is not None]


class _Assignments(keras.StatelessScope):
    """Collects what is assigned to variables inside, instead of doing it."""

    def __init__(self):
        super().__init__(initialize_variables=False)
        self.made: list[Any] = []

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        super().add_update(update)
        self.made.append(update[1])


class _FirstAssign:
    """Takes the place of `Variable.assign` until loading is done."""

    def __init__(self, variable: keras.Variable, readings: "list[_Reading]"):
        self._variable = weakref.ref(variable)
        self._readings = readings
        self._given: Callable[[], Any] = lambda: self  # a weak reference, once it is given one

    def __call__(self, value: Any) -> Any:
        variable: Any = self._variable()
        assign = type(variable).assign
        if value is self._given():  # a shared tensor, by another of its paths
            return value
        if isinstance(value, Unread):
            if reading := _begin_to_read(value, variable):
                self._readings.append(reading)
                self._given = weakref.ref(value)
                return value
            value = value.read()
        if has_value(variable):
            return assign(variable, value)
        if isinstance(value, Stored) and value.shape != tuple(variable.shape):
            # Keras 3.10 would make a value to say so, which may be far larger than the file.
            raise ValueError(
                f"a value of shape {value.shape} for `{variable.path}`, of shape "
                f"{tuple(variable.shape)}"
            )
        taken = _taken_over(value) if isinstance(value, Stored) else None
        with _Assignments() as assignments:  # Keras converts and checks
            assign(variable, value if taken is None else taken)
        (first,) = assignments.made
        if taken is None:  # it may be another variable's
            first = keras.ops.copy(first)
        initialize(variable, lambda shape, dtype: first)
        if isinstance(value, Stored):
            self._given = weakref.ref(value)
        return variable.value


def _large_on_card(variables: Iterable[Any]) -> float:
    """Returns how many bytes a value has that tiedio may put on a card itself, at least."""
    smallest = _LARGE_ON_CARD.get(keras.backend.backend(), math.inf)
    large = [one for one in variables if _bytes(one) >= smallest]
    waiting = all(isinstance(one.assign, _FirstAssign) for one in large)
    return smallest if waiting and driver() else math.inf


class _Reading:
    """A value that is being read to a card. Who needs it waits for it: it is the first one.

    Args:
        variable: The variable.
        tensor: Where its value goes.
        end: What waits until it is there.
    """

    def __init__(self, variable: Any, tensor: Any, end: Callable[[], None]):
        self._variable = variable
        self._tensor = tensor
        self._end = end
        self._own = exchange_initializer(variable, self)

    def __call__(self, shape: Any, dtype: Any) -> Any:
        self._end()
        return self._tensor

    def settle(self) -> None:
        try:
            _initialize([self._variable])
        except BaseException:
            exchange_initializer(self._variable, self._own)
            raise


def _begin_to_read(value: Unread, variable: Any) -> _Reading | None:
    """Begins to read a value to where the backend puts variables, if that is a card."""
    if has_value(variable) or (*variable.shape, variable.dtype) != (*value.shape, value.dtype.name):
        return None
    tensor = keras.ops.empty(variable.shape, variable.dtype)
    memory = DeviceMemory.of(tensor, _bytes(variable))
    return _Reading(variable, tensor, value.begin_to_read(memory)) if memory else None


def _taken_over(value: Stored) -> Any:
    """Returns a tensor in the memory of `value`, or `None` if the backend has none such."""
    try:
        return to_tensor(value.take_over())
    except Exception as error:
        _log.debug("a tensor of %s is copied: %s", value.dtype, error)
        return None


@contextlib.contextmanager
def unnoticed() -> Iterator[None]:
    """Lets a model be built to look at it: those built after it draw the seeds that they would."""
    seeds = random.getstate()  # from which layers without a seed draw one
    try:
        with scopes_as_before():
            yield
    finally:
        random.setstate(seeds)


def _initialize(made: Iterable[keras.Variable]) -> None:
    for variable in made:
        if not has_value(variable):
            initialize(variable)


def _bytes(variable: keras.Variable) -> int:
    return math.prod(variable.shape) * np.dtype(variable.dtype).itemsize
