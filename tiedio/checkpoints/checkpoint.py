"""A file of Keras as named variables, wherever its layout keeps them.

What the layout of Keras 2 lists by position, and that of Keras 3 stores by number, has the
name of its layer and its own here: `conv2/kernel`, and `inner/dense/kernel` in a nested model.
"""

import dataclasses
import enum
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tiedio.formats.content import OldLayout
from tiedio.keras_versions.optimizer_slots import Slots
from tiedio.record.record import Record
from tiedio.record.ties import Place


class Evidence(enum.StrEnum):
    """What says that variables were one when they were saved, the strongest first."""

    RECORD = "record"
    LINKS = "hard links"
    FINGERPRINT = "fingerprint"
    GRAPH = "object graph"
    SLOTS = "slots"
    GIVEN = "given"
    CONTENTS = "contents"


class Tensors(Protocol):
    """What tensors are read from, by their paths in the source."""

    def read(self, dataset_path: str, /) -> np.ndarray: ...
    def shape(self, dataset_path: str, /) -> tuple[int, ...]: ...
    def dtype(self, dataset_path: str, /) -> np.dtype: ...
    def address(self, dataset_path: str, /) -> Any: ...


@dataclasses.dataclass(frozen=True)
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

    @property
    def layer(self) -> str:
        """The names of the layers that lead to it."""
        return self.name.rpartition("/")[0]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tie:
    """Variables that were one.

    Attributes:
        names: The variables; the owner first.
        evidence: What says so.
        why: The same in a sentence.
    """

    names: tuple[str, ...]
    evidence: Evidence
    why: str


@dataclasses.dataclass
class Checkpoint:
    """A file of Keras, open for reading.

    Attributes:
        filepath: Its name for messages.
        kind: What it is, in words.
        keras_version: The version that wrote it; empty if it does not say.
        tensors: Reads what it stores.
        variables: The variables of its layers.
        is_ordered: Whether they are in the order of the model.
        ties: What its layout says of ties.
        slots: The state of its optimizer; `None` if it has none, or is not understood.
        optimizer: The config of the optimizer, as Keras 3 reads it.
        config: The config of the model as Keras 3 reads it; `None` if there is none.
        record: The record, if it has one.
        metadata: What else its metadata hold.
        notes: What a user should know.
        untranslated: What Keras 3 cannot load of the config.
        others: What else it stores, where Keras 3 would store it: the paths of both.
        groups: Attributes of its groups, by their paths in the layout of Keras 3.
        links: Second paths of groups, to the first ones: a layer that is used in several places.
        extract_assets: Puts its assets below a folder.
        verify: Reads all of it; an error says what is not as its digests, or a checksum, say.
        old_layout: What it says in the layout of Keras 2, if it is in that.
    """

    filepath: str
    kind: str
    keras_version: str
    tensors: Tensors
    variables: Sequence[StoredVariable] = ()
    is_ordered: bool = False
    ties: Sequence[Tie] = ()
    slots: Slots | None = None
    optimizer: Mapping[str, Any] | None = None
    config: dict[str, Any] | None = None
    record: Record | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    untranslated: Sequence[str] = ()
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extract_assets: Callable[[Path], None] = lambda folder: None
    verify: Callable[[], None] = lambda: None
    old_layout: OldLayout | None = None

    @property
    def is_by_position(self) -> bool:
        """Whether it does not tell where Keras 3 would store all of its variables."""
        return any(one.place is None for one in self.variables)

    @property
    def is_of_keras_3(self) -> bool:
        """Whether it is laid out as Keras 3 does, and not by its predecessors."""
        return self.old_layout is None and version_numbers(self.keras_version) >= (3,)

    @property
    def has_slots_per_use(self) -> bool:
        """Whether each place of a tied variable has slots, as before Keras was in TensorFlow."""
        numbers = version_numbers(self.keras_version)
        return bool(numbers) and numbers < (2, 4) and "tf" not in self.keras_version


def version_numbers(keras_version: str) -> tuple[int, ...]:
    """Returns `(2, 15)` for 2.15.0; `2.2.4-tf` and `2.21.0` start alike."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})", keras_version)
    return tuple(map(int, found.groups())) if found else ()


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
