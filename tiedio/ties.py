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
        variables: For each layer (by inner_path), its variables in the layer's
            own order: attribute and `trainable` flag. A layer built anew may
            list them otherwise, and Keras stores some by position.
        optimizer_variables: For each compiled model (by inner_path), the
            trained variables in the order in which its optimizer keeps their
            slots; `None` for an optimizer that was not built.
        random_state: State of each seed generator, by place.
    """

    tie_groups: tuple[TieGroup, ...] = ()
    variables: Mapping[str, tuple[tuple[str, bool], ...]] = dataclasses.field(default_factory=dict)
    optimizer_variables: Mapping[str, tuple[Place, ...] | None] = dataclasses.field(
        default_factory=dict
    )
    random_state: Mapping[Place, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "tie_groups": [group.to_json() for group in self.tie_groups],
            "variables": {
                inner_path: [list(variable) for variable in held]
                for inner_path, held in self.variables.items()
            },
            "optimizer_variables": {
                inner_path: places and [place.to_json() for place in places]
                for inner_path, places in self.optimizer_variables.items()
            },
            "random_state": [
                {"place": place.to_json(), "state": list(state)}
                for place, state in self.random_state.items()
            ],
        }

    @classmethod
    def from_json(cls, data: Any) -> "Record":
        """Reads a record; keys it does not know are ignored, missing ones are empty.

        Raises:
            RecordError: If the version is another one, a value has the wrong
                type, or two tie groups claim one place.
        """
        fields = _Fields(data, "the record")
        version = fields.get("version", int)
        if version != VERSION:
            raise RecordError(
                "Cannot read the record of this file.\n"
                f"Expected: version {VERSION}. Received: version {version}.\n"
                "Read it with the version of tiedio that wrote it, or a newer one."
            )
        record = cls(
            tuple(fields.each("tie_groups", TieGroup.from_json, missing=[])),
            {
                inner_path: tuple(map(_held_variable, _typed(held, list, "held variables")))
                for inner_path, held in fields.get("variables", dict, missing={}).items()
            },
            {
                inner_path: None
                if _typed(places, list | None, "optimizer variables") is None
                else tuple(map(Place.from_json, places))
                for inner_path, places in fields.get(
                    "optimizer_variables", dict, missing={}
                ).items()
            },
            dict(fields.each("random_state", _random_state, missing=[])),
        )
        claimed = collections.Counter(p for group in record.tie_groups for p in group.places)
        if twice := sorted(str(place) for place, times in claimed.items() if times > 1):
            raise _malformed("one tie group for every place", f"several for {twice}")
        return record


def _typed(value: Any, kind: Any, what: str) -> Any:
    # JSON has no type of its own for what Python calls a bool that is an int.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _malformed(f"{what} as {getattr(kind, '__name__', kind)}", value)
    return value


class _Fields:
    """A JSON object whose every value is asked for by name and type."""

    def __init__(self, data: Any, what: str):
        self.data = _typed(data, dict, what)
        self.what = what

    def get(self, name: str, kind: Any, missing: Any = None) -> Any:
        return _typed(self.data.get(name, missing), kind, f"`{name}` of {self.what}")

    def each(self, name: str, read: Callable[[Any], T], missing: Any = None) -> list[T]:
        return [read(item) for item in self.get(name, list, missing)]


def _dimension(item: Any) -> int:
    if _typed(item, int, "a size in `shape`") < 0:
        raise _malformed("a size in `shape` of 0 or more", item)
    return item


def _held_variable(item: Any) -> tuple[str, bool]:
    if len(_typed(item, list, "a held variable")) != 2:
        raise _malformed("attribute and flag of a held variable", item)
    return _typed(item[0], str, "an attribute"), _typed(item[1], bool, "a flag")


def _word(item: Any) -> int:
    if not -(1 << 63) <= _typed(item, int, "a random state") < 1 << 63:
        raise _malformed("a random state in 64 bits", item)
    return item


def _random_state(item: Any) -> tuple[Place, tuple[int, ...]]:
    fields = _Fields(item, "a random state")
    return Place.from_json(fields.get("place", dict)), tuple(fields.each("state", _word))


def _malformed(expected: str, received: Any) -> RecordError:
    return RecordError(
        "Cannot read the record of this file.\n"
        f"Expected: {expected}. Received: {repr(received)[:200]}.\n"
        "The file was changed after it was saved; save it again."
    )
