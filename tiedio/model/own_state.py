"""What a saveable stores of its own, and whose code does it."""

import collections
import logging
from typing import Any, NamedTuple

import keras
import numpy as np

_log = logging.getLogger(__name__)

# Whose way is known: each variable is stored as it is and for itself, and takes one array back.
_KNOWN = ("keras.", "keras_hub.")

# How optimizers store their variables, unless a class of its own does otherwise.
_OPTIMIZERS_OWN = keras.optimizers.Optimizer.save_own_variables


class Stored(NamedTuple):
    """What a saveable stores under one name.

    Attributes:
        shape: Its shape.
        variable: The variable that is stored as it is; `None` for other values.
    """

    shape: tuple[int, ...]
    variable: Any


def stored_by(saveable: Any) -> dict[str, Stored] | None:
    """Asks a saveable what it stores, by name; `None` if its code fails."""
    try:
        state = own_state(saveable)
    except Exception as error:  # the code of layers may raise anything
        _log.debug("does not say what it stores: %s: %s", saveable, error)
        return None
    return {
        name: Stored(
            tuple(getattr(value, "shape", ())),
            value if isinstance(value, keras.Variable) else None,
        )
        for name, value in state.items()
    }


def own_state(saveable: Any) -> dict[str, Any]:
    """Returns what a saveable stores, by name: its variables, or other values."""
    if getattr(type(saveable), "save_own_variables", None) is _OPTIMIZERS_OWN:
        # Keras would copy all of them at once. The variables themselves need no copy, and
        # say which is the same tensor as that of an optimizer inside (loss scaling).
        return {str(index): variable for index, variable in enumerate(saveable.variables)}
    if _is_known(saveable.save_own_variables):
        stored: dict[str, Any] = {}
        saveable.save_own_variables(stored)
        return stored
    taken = _Taken()
    saveable.save_own_variables(taken)
    return {name: taken.value_of(name) for name in taken}


class _Taken(collections.UserDict):
    """Takes what is stored as it is at that moment, as Keras does, which writes it at once.

    Users' code may reuse a buffer, or assign other values to a variable and then the first again.
    """

    def __init__(self):
        super().__init__()
        self._copies: dict[str, np.ndarray] = {}

    def __setitem__(self, name: str, value: Any) -> None:
        self._copies[name] = np.array(to_numpy(value))
        super().__setitem__(name, value)

    def value_of(self, name: str) -> Any:
        """Returns a variable that still has the value it was stored with; otherwise the copy."""
        value, copy = self[name], self._copies[name]
        if isinstance(value, keras.Variable) and to_numpy(value).tobytes() == copy.tobytes():
            return value
        return copy


def loads_as_keras(saveable: Any) -> bool:
    """Whether a saveable has variables to load, and no code of its own to do so."""
    return _is_known(getattr(saveable, "load_own_variables", None))


def _is_known(method: Any) -> bool:
    return (getattr(method, "__module__", None) or "").startswith(_KNOWN)


def to_numpy(value: Any) -> np.ndarray:
    """Returns values as an array: the memory of the variable itself where it can be seen."""
    if isinstance(value, keras.Variable):
        tensor: Any = value.value
        # TensorFlow has to be asked for the tensor, torch for one that has no gradient.
        tensor = (
            tensor.value()
            if callable(getattr(tensor, "value", None))
            else keras.ops.stop_gradient(tensor)
        )
        # torch and JAX show it in the first way, some versions of TensorFlow in the second.
        for view in (np.from_dlpack, memoryview):
            try:
                return np.asarray(view(tensor))
            except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
                continue  # on another device, or bfloat16
    return np.asarray(keras.ops.convert_to_numpy(value))


def is_at_hand(variable: Any) -> bool:
    """Whether this process has the whole value, as where JAX does not lay it out over several."""
    if keras.backend.backend() != "jax":
        return True
    value = getattr(variable, "value", None)
    return any(getattr(value, f"is_fully_{how}", True) for how in ("addressable", "replicated"))
