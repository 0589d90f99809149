"""A variable that is another one, transposed: a view, with no value of its own."""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

# By `id()`, as variables say themselves what is equal.
_live: weakref.WeakValueDictionary[int, "TransposedView"] = weakref.WeakValueDictionary()


class TransposedView(keras.Variable):
    """Another variable with its axes in another order, in the place of a variable of a layer.

    Whoever reads it computes with the owner's value, and gradients reach the owner. What is
    assigned to it is assigned to the owner. It is in no list of its layer: to optimizers, and to
    all that counts or lists variables, there is the owner only.

    Args:
        owner: The variable; not a view itself.
        axes: Its axes in the order in which the view has them, as `numpy.transpose` takes them.
        like: The variable whose place it takes, and by whose name and path it is known.
    """

    def __new__(cls, *arguments: Any) -> "TransposedView":
        view = super().__new__(cls)
        _live[id(view)] = view
        return view

    def __init__(self, owner: Any, axes: Sequence[int], like: Any):
        # Not Keras' own, which would make a value.
        self.owner = owner
        self.axes = tuple(int(axis) for axis in axes)
        self._name, self._path = like.name, like.path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "owner":  # which a copy in the making has not yet
            raise AttributeError(name)
        return getattr(self.owner, name)  # what Keras keeps of a variable: casts, layout, wishes

    @property
    def value(self) -> Any:
        return keras.ops.transpose(self.owner.value, self.axes)

    @property
    def _value(self) -> Any:  # of Keras: what it is without casts, `None` if it has none yet
        value = self.owner._value
        return None if value is None else keras.ops.transpose(value, self.axes)

    def assign(self, value: Any) -> Any:
        value = self._convert_to_tensor(value, dtype=self.owner._dtype)
        if tuple(value.shape) != tuple(self.shape):
            raise ValueError(
                f"Cannot assign to `{self.path}`: it has another shape.\n"
                f"Expected: {tuple(self.shape)}. Received: {tuple(value.shape)}.\n"
                "Assign a value of its shape."
            )
        own: Any = keras.ops.transpose(value, np.argsort(self.axes).tolist())
        # torch would keep the order of the axes in memory, and compute with other last bits.
        self.owner.assign(own.contiguous() if hasattr(own, "contiguous") else own)
        return value

    @property
    def shape(self) -> Any:
        # On TensorFlow a `TensorShape`, as of any variable there.
        return type(self.owner.shape)([self.owner.shape[axis] for axis in self.axes])

    @property
    def ndim(self) -> int:
        return len(self.axes)

    @property
    def dtype(self) -> str:
        return self.owner.dtype

    @property
    def trainable(self) -> bool:
        return self.owner.trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self.owner.trainable = value


def is_shown(variables: Iterable[Any]) -> bool:
    """Whether any of these variables is shown transposed, anywhere in this process."""
    shown = {id(view.owner) for one in _live.valuerefs() if (view := one()) is not None}
    return any(id(variable) in shown for variable in variables)


def base(variable: Any) -> Any:
    """Returns the variable that has the value: the owner of a view."""
    return variable.owner if isinstance(variable, TransposedView) else variable


def view_of(variable: Any, axes: Sequence[int], like: Any) -> Any:
    """Returns a variable, with its axes in this order if given, to stand in the place of `like`."""
    if not axes:
        return variable
    if isinstance(variable, TransposedView):
        axes = [variable.axes[axis] for axis in axes]
    if list(axes) == sorted(axes):
        return base(variable)
    return TransposedView(base(variable), axes, like)
