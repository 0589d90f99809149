"""What a tie group is, and its JSON form.

A file and a live model meet in these words only: no Keras and no HDF5 here, so
another tool can read a record with this module (or this page).
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

from tiedio.record import runs
from tiedio.record.json_fields import Fields, Written, malformed, typed
from tiedio.record.notebook import Reported
from tiedio.record.report import Report, Table

METADATA_KEY = "tiedio"
VERSION = 1

# No model has a longer one; a file may say anything.
_LONGEST_PATH = 4096

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """One place of a model that holds a variable.

    Attributes:
        inner_path: Path of the layer in Keras' walk over a model, such as
            `"layers/conv2d"`; empty for the model itself.
        attribute: Name of the layer's attribute, such as `"_kernel"`; items of
            a list or dict follow after slashes, as in `"kernels/0"`. A record made
            without a model holds the layer's storage number instead, such as `"0"`.
        dataset_path: Where a file keeps the value, such as
            `"layers/conv2d/vars/0"`; `None` outside a file, or when the file
            keeps it under another place of the same tie group. Not compared.
        name: What people call it, such as `"encoder/kernel"`; empty where no model is
            at hand. Not compared, and in no file.
    """

    inner_path: str
    attribute: str
    dataset_path: str | None = dataclasses.field(default=None, compare=False)
    name: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        return self.name or f"{self.inner_path}/{self.attribute}".lstrip("/")

    def stored_at(self, dataset_path: str | None) -> "Place":
        return dataclasses.replace(self, dataset_path=dataset_path)

    def to_json(self) -> dict[str, Any]:
        return {
            "inner_path": self.inner_path,
            "attribute": self.attribute,
            "dataset_path": self.dataset_path,
        }

    @classmethod
    def from_json(cls, data: Any) -> "Place":
        fields = Fields(data, "a place")
        return cls(
            fields.get("inner_path", str),
            fields.get("attribute", str),
            fields.get("dataset_path", str | None),
        )


@dataclasses.dataclass(frozen=True)
class TieGroup(Written, Reported):
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

    @property
    def names(self) -> tuple[str, ...]:
        """What people call the places, the owner first."""
        return tuple(map(str, self.places))

    def at(self, places: Sequence[Place]) -> Self:
        """Returns the same with other places; without any, it has no aliases."""
        owner = places[0] if places else self.owner
        return dataclasses.replace(self, owner=owner, aliases=tuple(places[1:]))

    def __str__(self) -> str:
        owner, *aliases = self.names
        frozen = "" if self.trainable else ", not trainable"
        return f"{owner} = {', '.join(runs.told(aliases))}  {self.shape} {self.dtype}{frozen}"

    def report(self) -> Report:
        return Ties([self]).report()

    @classmethod
    def from_json(cls, data: Any) -> "TieGroup":
        fields = Fields(data, "a tie group")
        return cls(
            owner=Place.from_json(fields.get("owner", dict)),
            aliases=tuple(fields.each("aliases", Place.from_json)),
            shape=tuple(fields.each("shape", _dimension)),
            dtype=fields.get("dtype", str),
            trainable=fields.get("trainable", bool),
        )


@dataclasses.dataclass(frozen=True)
class TransposedTie(TieGroup):
    """A variable, and the places that show it with its axes in another order.

    Attributes:
        owner: A place that holds the variable.
        aliases: The places that show it so.
        shape: Shape of the variable, as its owner has it.
        axes: Its axes in the order of the aliases, as `numpy.transpose` takes them.
    """

    axes: tuple[int, ...]

    @property
    def transposed_shape(self) -> tuple[int, ...]:
        """The shape that the aliases have."""
        return tuple(self.shape[axis] for axis in self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        return (str(self.owner), *(transposed(str(alias), self.axes) for alias in self.aliases))

    @classmethod
    def from_json(cls, data: Any) -> "TransposedTie":
        fields = Fields(data, "a transposed tie")
        group = TieGroup.from_json(data)
        axes = tuple(fields.each("axes", lambda axis: typed(axis, int, "an axis")))
        if sorted(axes) != list(range(len(group.shape))) or not group.aliases:
            raise malformed("every axis once, and aliases of a transposed tie", data)
        return cls(group.owner, group.aliases, group.shape, group.dtype, group.trainable, axes)


class Ties(tuple[TieGroup, ...], Reported):
    """Tie groups, as `tiedio.find_ties` returns them; a notebook shows them as a table.

    Example:

    >>> import keras, tiedio
    >>> layers = [keras.layers.Dense(4, name=name) for name in ("encoder", "decoder")]
    >>> model = keras.Sequential([keras.Input((4,)), *layers])
    >>> _ = tiedio.tie(layers[1], to=layers[0])
    >>> ties = tiedio.find_ties(model)
    >>> [group.names for group in ties]
    [('encoder/kernel', 'decoder/kernel'), ('encoder/bias', 'decoder/bias')]
    >>> ties[0].shape, ties[0].dtype, ties[0].owner.attribute
    ((4, 4), 'float32', '_kernel')
    """

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def report(self) -> Report:
        if not self:
            return ["No variables are tied."]
        rows = [
            (one.names, f"{one.shape}\n{one.dtype}", "yes" if one.trainable else "no")
            for one in self
        ]
        return [Table(("tied", "shape, dtype", "trainable"), rows, is_tall=True)]


def transposed(name: str, axes: tuple[int, ...]) -> str:
    """Says of a name that it shows a variable with its axes in this order, if in another one."""
    is_reverse = axes == tuple(reversed(range(len(axes))))
    return f"{name} transposed{'' if is_reverse else f' {axes}'}" if axes else name


def shown(attribute: str) -> str:
    """Returns what people call an attribute: `kernel` for `_kernel`."""
    return attribute[1:] if re.match("_[^_]", attribute) else attribute


def layer_labels(names: Mapping[str, str]) -> dict[str, str]:
    """Names layers by those that lead to them, as in `encoder/attention/query`.

    Args:
        names: The name of each layer of a model by its inner_path.

    Returns:
        What people call each; its inner_path if another one is called so.
    """
    labels = {path: _label(names, path) for path in names}
    times = collections.Counter(labels.values())
    return {path: label if times[label] == 1 else path for path, label in labels.items()}


def _label(names: Mapping[str, str], inner_path: str) -> str:
    if len(inner_path) > _LONGEST_PATH:
        return inner_path
    ends = [*(slash.start() for slash in re.finditer("/", inner_path)), len(inner_path)]
    leading = (names.get(inner_path[:end]) for end in ends)
    return "/".join(name for name in leading if name is not None)


def merged(groups: Iterable[TieGroup]) -> list[TieGroup]:
    """Makes one tie group of those that have a place in common, with the owner of the first."""
    given = list(groups)
    first: dict[Place, int] = {}  # the number of the first group that has a place
    joined = list(range(len(given)))  # with a group before it, or with itself

    def root(number: int) -> int:
        while joined[number] != number:
            number = joined[number] = joined[joined[number]]
        return number

    for number, group in enumerate(given):
        for place in group.places:
            one, other = sorted((root(first.setdefault(place, number)), root(number)))
            joined[other] = one
    found: dict[int, dict[Place, Place]] = {}
    for number, group in enumerate(given):
        places = found.pop(root(number), {})  # which goes to the end
        for place in group.places:
            known = places.setdefault(place, place)
            if known.dataset_path is None:
                places[place] = place
        found[root(number)] = places
    return [given[number].at(list(places.values())) for number, places in found.items()]


def _dimension(item: Any) -> int:
    if typed(item, int, "a size in `shape`") < 0:
        raise malformed("a size in `shape` of 0 or more", item)
    return item
