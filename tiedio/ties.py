"""What a tie group is, and its JSON form.

A file and a live model meet in these words only: no Keras and no HDF5 here, so
another tool can read a record with this module (or this page) alone.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tiedio.errors import RecordError

METADATA_KEY = "tiedio"
VERSION = 1

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """One place of a model that holds a variable.

    Attributes:
        inner_path: Path of the layer in Keras' walk over a model, such as
            `"layers/conv2d"`; empty for the model itself.
        attribute: Name of the layer's attribute, such as `"_kernel"`; items of
            a list or dict follow after slashes, as in `"kernels/0"`.
        dataset_path: Where a file keeps the value, such as
            `"layers/conv2d/vars/0"`; `None` outside a file, or when the file
            keeps it under another place of the same tie group. Not compared.
    """

    inner_path: str
    attribute: str
    dataset_path: str | None = dataclasses.field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.inner_path}/{self.attribute}".lstrip("/")

    def to_json(self) -> dict[str, Any]:
        return {
            "inner_path": self.inner_path,
            "attribute": self.attribute,
            "dataset_path": self.dataset_path,
        }

    @classmethod
    def from_json(cls, data: Any) -> "Place":
        fields = _Fields(data, "a place")
        return cls(
            fields.get("inner_path", str),
            fields.get("attribute", str),
            fields.get("dataset_path", str | None),
        )


@dataclasses.dataclass(frozen=True)
class TieGroup:
    """The places that hold one and the same variable.

    Attributes:
        owner: The place whose layer created the variable.
        aliases: The other places, in the order of Keras' walk.
        shape: Shape of the variable.
        dtype: Its dtype, as a Keras name such as `"float32"`.
        trainable: Its own `trainable` flag.
    """

    owner: Place
    aliases: tuple[Place, ...]
    shape: tuple[int, ...]
    dtype: str
    trainable: bool

    @property
    def places(self) -> tuple[Place, ...]:
        """The owner, then the aliases."""
        return (self.owner, *self.aliases)

    @property
    def dataset_paths(self) -> list[str]:
        """Where a file keeps the value, the owner's path first: one tensor, and its links."""
        return list(dict.fromkeys(p.dataset_path for p in self.places if p.dataset_path))

    def __str__(self) -> str:
        aliases = ", ".join(map(str, self.aliases))
        frozen = "" if self.trainable else ", not trainable"
        return f"{self.owner} = {aliases}  {self.shape} {self.dtype}{frozen}"

    def to_json(self) -> dict[str, Any]:
        return {
            "owner": self.owner.to_json(),
            "aliases": [alias.to_json() for alias in self.aliases],
            "shape": list(self.shape),
            "dtype": self.dtype,
            "trainable": self.trainable,
        }

    @classmethod
    def from_json(cls, data: Any) -> "TieGroup":
        fields = _Fields(data, "a tie group")
        return cls(
            Place.from_json(fields.get("owner", dict)),
            tuple(fields.each("aliases", Place.from_json)),
            tuple(fields.each("shape", _dimension)),
            fields.get("dtype", str),
            fields.get("trainable", bool),
        )


@dataclasses.dataclass(frozen=True)
class Record:
    """The tiedio metadata of a file: all that Keras itself does not write.

    Attributes:
        tie_groups: The tie groups of the model.
        variable_order: For each layer of a tie group (by inner_path), the
            attributes of its variables in the layer's own order. A layer built
            anew may list them otherwise, and Keras stores some by position.
        optimizer_variables: The trained variables in the order in which the
            optimizer keeps its slots; `None` when there was none built.
        random_state: State of each seed generator, by place.
    """

    tie_groups: tuple[TieGroup, ...] = ()
    variable_order: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    optimizer_variables: tuple[Place, ...] | None = None
    random_state: Mapping[Place, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        optimizer = self.optimizer_variables
        return {
            "version": VERSION,
            "tie_groups": [group.to_json() for group in self.tie_groups],
            "variable_order": {path: list(names) for path, names in self.variable_order.items()},
            "optimizer_variables": None
            if optimizer is None
            else [place.to_json() for place in optimizer],
            "random_state": [
                {"place": place.to_json(), "state": list(state)}
                for place, state in self.random_state.items()
            ],
        }

    @classmethod
    def from_json(cls, data: Any) -> "Record":
        """Reads a record; keys it does not know are ignored.

        Raises:
            RecordError: If the version is another one, a value has the wrong
                type, or two tie groups claim one place.
        """
        fields = _Fields(data, "the record")
        version = fields.get("version", int)
        if version != VERSION:
            raise RecordError(
                f"Cannot read the record of this file.\n"
                f"Expected: version {VERSION}. Received: version {version}.\n"
                "Install a newer tiedio to read it."
            )
        optimizer = fields.get("optimizer_variables", list | None)
        record = cls(
            tuple(fields.each("tie_groups", TieGroup.from_json)),
            {
                path: _Fields({"names": names}, "variable_order").texts("names")
                for path, names in fields.get("variable_order", dict).items()
            },
            None if optimizer is None else tuple(map(Place.from_json, optimizer)),
            dict(fields.each("random_state", _random_state)),
        )
        claimed = collections.Counter(p for group in record.tie_groups for p in group.places)
        if twice := sorted(str(place) for place, times in claimed.items() if times > 1):
            raise _malformed("one tie group for every place", f"several for {twice}")
        return record


class _Fields:
    """A JSON object whose every value is asked for by name and type."""

    def __init__(self, data: Any, what: str):
        if not isinstance(data, dict):
            raise _malformed(f"{what} as an object", data)
        self.data = data
        self.what = what

    def get(self, name: str, kind: Any) -> Any:
        value = self.data.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            expected = getattr(kind, "__name__", str(kind))
            raise _malformed(f"`{name}` of {self.what} as {expected}", value)
        return value

    def each(self, name: str, read: Callable[[Any], T]) -> list[T]:
        return [read(item) for item in self.get(name, list)]

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self.each(name, lambda item: _Fields({"": item}, name).get("", str)))


def _dimension(item: Any) -> int:
    size = _Fields({"shape": item}, "a tie group").get("shape", int)
    if size < 0:
        raise _malformed("`shape` of a tie group without negative sizes", size)
    return size


def _word(item: Any) -> int:
    word = _Fields({"state": item}, "a random state").get("state", int)
    if not -(1 << 63) <= word < 1 << 63:
        raise _malformed("`state` of a random state in 64 bits", word)
    return word


def _random_state(item: Any) -> tuple[Place, tuple[int, ...]]:
    fields = _Fields(item, "a random state")
    state = fields.each("state", _word)
    return Place.from_json(fields.get("place", dict)), tuple(state)


def _malformed(expected: str, received: Any) -> RecordError:
    return RecordError(
        f"Cannot read the record of this file.\n"
        f"Expected: {expected}. Received: {str(received)[:200]}.\n"
        "The file was changed after it was saved; save it again."
    )
