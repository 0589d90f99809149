"""A variable as a file keeps it, and what its value is read from.

What the layout of Keras 2 lists by position, and that of Keras 3 stores by number, has the
name of its layer and its own here: `conv2/kernel`, and `inner/dense/kernel` in a nested model.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from tiedio.formats.content import Weight
from tiedio.record.ties import Place


class Tensors(Protocol):
    """A source of tensors, by their paths in it."""

    def read(self, dataset_path: str, /) -> np.ndarray: ...
    def first(self, dataset_path: str, count: int, /) -> np.ndarray: ...
    def digest(self, dataset_path: str, /) -> str: ...
    def shape(self, dataset_path: str, /) -> tuple[int, ...]: ...
    def dtype(self, dataset_path: str, /) -> np.dtype: ...
    def address(self, dataset_path: str, /) -> Any: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredVariable:
    """A variable of a model, as a file keeps it.

    Attributes:
        name: The names of the layers that lead to it, and its own.
        source: Its path in the file.
        shape: Its shape.
        dtype: Its dtype.
        place: Where Keras 3 keeps it; `None` if that cannot be told. Without a model that is
            known by the number under which the layer stores it, and not by attribute.
        trainable: Whether optimizers train it; `None` if unknown.
        listed: The name by which the layout of Keras 2 lists it: that of the layer that made
            it, and its own.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: np.dtype
    place: Place | None = None
    trainable: bool | None = None
    listed: str = ""

    @classmethod
    def of(cls, weight: Weight, tensors: Tensors, name: str, **told: Any) -> "StoredVariable":
        """Makes one of what a file holds; `told` is whatever else is known of it."""
        path = weight.dataset_path
        kind = {"source": path, "shape": weight.shape, "dtype": tensors.dtype(path)}
        return cls(name=name, **kind, listed=weight.listed, **told)

    @property
    def layer(self) -> str:
        """The names of the layers that lead to it."""
        return self.name.rpartition("/")[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def named_once(variables: Iterable[StoredVariable]) -> Iterator[StoredVariable]:
    """Numbers names that several variables would have."""
    taken: dict[str, int] = {}
    for one in variables:
        name, number = one.name, taken.get(one.name, 0) + 1
        while name in taken:
            number += 1
            name = f"{one.name}_{number}"
        taken[one.name] = number
        taken.setdefault(name, 1)
        yield one if name == one.name else dataclasses.replace(one, name=name)
