"""The record: all that a file says beside what Keras itself writes, and its JSON form.

No Keras and no HDF5 here, so another tool can read a record with this module (or this page).
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from tiedio.errors import RecordError
from tiedio.record.json_fields import Fields, Written, contradictory, malformed, typed, unreadable
from tiedio.record.ties import VERSION, Place, TieGroup, TransposedTie, layer_labels, shown

# Few models have these: a file without is as older versions of tiedio wrote it.
_RARE = (
    "excluded_from_weight_decay",
    "models",
    "process_random_states",
    "shared_optimizers",
    "transposed_ties",
)

T = TypeVar("T")
GroupT = TypeVar("GroupT", bound=TieGroup)


@dataclasses.dataclass(frozen=True)
class HeldVariable:
    """A variable in a layer's own list.

    Attributes:
        attribute: Where the layer holds it, as in `Place`.
        path: Its `Variable.path`, by which optimizers tell variables apart.
        listed_trainable: Whether it is in the list of trainable variables.
        trainable: Its own `trainable` flag.
    """

    attribute: str
    path: str
    listed_trainable: bool
    trainable: bool

    def to_json(self) -> list[Any]:
        return [self.attribute, self.path, self.listed_trainable, self.trainable]

    @classmethod
    def from_json(cls, data: Any) -> "HeldVariable":
        if len(typed(data, list, "a held variable")) != 4:
            raise malformed("four facts of a held variable", data)
        attribute, path, listed_trainable, trainable = data
        return cls(
            typed(attribute, str, "an attribute"),
            typed(path, str, "a variable path"),
            typed(listed_trainable, bool, "a flag"),
            typed(trainable, bool, "a flag"),
        )


@dataclasses.dataclass(frozen=True)
class LayerState(Written):
    """What Keras does not write of a layer that has no config of its own.

    Attributes:
        name: Its name, which may have been given automatically.
        path: Its `Layer.path`, as the paths of its variables begin.
        trainable: Its `trainable` flag.
        variables: Its variables in its own order. A layer built anew may list
            them otherwise, and Keras stores some by position.
    """

    name: str
    path: str
    trainable: bool
    variables: tuple[HeldVariable, ...] = ()

    @classmethod
    def from_json(cls, data: Any) -> "LayerState":
        fields = Fields(data, "a layer")
        return cls(
            fields.get("name", str),
            fields.get("path", str),
            fields.get("trainable", bool),
            tuple(fields.each("variables", HeldVariable.from_json, missing=[])),
        )


@dataclasses.dataclass(frozen=True)
class RandomState(Written):
    """The state of a seed generator, and the places that hold it."""

    places: tuple[Place, ...]
    state: tuple[int, ...]

    @classmethod
    def from_json(cls, data: Any) -> "RandomState":
        fields = Fields(data, "a random state")
        places = tuple(fields.each("places", Place.from_json))
        if not places:
            raise malformed("places of a random state", data)
        return cls(places, tuple(fields.each("state", _word)))


@dataclasses.dataclass(frozen=True)
class Record(Written):
    """The tiedio metadata of a file: all that Keras itself does not write.

    Attributes:
        tie_groups: The tie groups of the model.
        layers: State of every layer, by inner_path.
        shared_layers: For each layer that is reached by several inner_paths,
            all of them; its values are stored under the first.
        exact_values: Variables whose layer stores another value than theirs, as
            with LoRA, or none; their exact value is at the `dataset_path`.
        optimizer_variables: For each optimizer (by inner_path), the variables
            it was built for, in the order of its slots; `None` if it was not built.
        random_states: State of each seed generator.
        digests: For each dataset_path the XXH3 digest (64 bits, in hexadecimal) of
            dtype, shape and bytes of the tensor there, such as `float32[2, 3]` and
            24 bytes; empty if the file has none.
        axis_orders: For each dataset_path whose tensor did not lie row by row in the
            memory of torch, its axes, that of the largest stride first.
        process_random_states: State of each generator of the process, by name, that was
            drawn from without a seed: `keras`, and on torch also `torch/cpu` and the like,
            as integers of 32 bits.
        excluded_from_weight_decay: For each optimizer that was told to leave variables out
            of its weight decay, also for one inside another: these variables.
        shared_optimizers: For each optimizer of several models all its inner_paths, as in
            `shared_layers`.
        transposed_ties: The variables that other places show transposed.
        models: Of several models in one file, the inner_path of each by the name that it was
            given. One may be inside another.
    """

    tie_groups: tuple[TieGroup, ...] = ()
    layers: Mapping[str, LayerState] = dataclasses.field(default_factory=dict)
    shared_layers: tuple[tuple[str, ...], ...] = ()
    exact_values: tuple[Place, ...] = ()
    optimizer_variables: Mapping[str, tuple[Place, ...] | None] = dataclasses.field(
        default_factory=dict
    )
    random_states: tuple[RandomState, ...] = ()
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    axis_orders: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    process_random_states: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    excluded_from_weight_decay: Mapping[str, tuple[Place, ...]] = dataclasses.field(
        default_factory=dict
    )
    shared_optimizers: tuple[tuple[str, ...], ...] = ()
    transposed_ties: tuple[TransposedTie, ...] = ()
    models: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def layer_labels(self) -> dict[str, str]:
        """What people call the layers, by inner_path."""
        names = {path: layer.name for path, layer in self.layers.items()}
        names |= {path: name for name, path in self.models.items()}
        names |= {
            path: names[first]
            for first, *others in self.shared_layers
            for path in others
            if first in names
        }
        return layer_labels(names)

    @functools.cached_property
    def owners(self) -> dict[Place, Place]:
        """The owner of each place that is tied."""
        return {place: group.owner for group in self.tie_groups for place in group.places}

    @functools.cached_property
    def shown_transposed(self) -> dict[Place, Place]:
        """The places that show a variable and hold none, with the place of what they show."""
        return {place: tie.owner for tie in self.transposed_ties for place in tie.aliases}

    def named(self, group: GroupT) -> GroupT:
        """Returns a tie group whose places have the names that people call them by."""
        labels = self.layer_labels

        def name(place: Place) -> str:
            return f"{labels.get(place.inner_path, place.inner_path)}/{shown(place.attribute)}"

        return group.at([dataclasses.replace(p, name=name(p).lstrip("/")) for p in group.places])

    @property
    def is_complete(self) -> bool:
        """Whether it was made of a model, and not of a file alone."""
        return bool(self.layers)

    def tells_of(self, optimizer: str) -> bool:
        """Whether it was known, when it was made, which variables an optimizer was built for.

        A migration knows that of Keras' own optimizers, and of models made of Keras' layers.
        """
        return self.is_complete or optimizer in self.optimizer_variables

    def to_json(self) -> dict[str, Any]:
        written = super().to_json().items()
        return {"version": VERSION} | {k: held for k, held in written if held or k not in _RARE}

    @classmethod
    def from_json(cls, data: Any) -> "Record":
        """Reads a record; keys it does not know are ignored, missing ones are empty.

        Raises:
            RecordError: If the version is another one, a value has the wrong
                type, or two tie groups claim one place.
        """
        fields = Fields(data, "the record")
        version = fields.get("version", int)
        if version != VERSION:
            raise RecordError(
                "Cannot read the record of this file.\n"
                f"Expected: version {VERSION}. Received: version {version}.\n"
                "Read it with the version of tiedio that wrote it, or a newer one."
            )
        record = cls(
            tie_groups=tuple(fields.each("tie_groups", TieGroup.from_json, missing=[])),
            layers=fields.mapped("layers", LayerState.from_json),
            shared_layers=tuple(fields.each("shared_layers", _inner_paths, missing=[])),
            exact_values=tuple(fields.each("exact_values", Place.from_json, missing=[])),
            optimizer_variables=fields.mapped("optimizer_variables", _trained),
            excluded_from_weight_decay=fields.mapped("excluded_from_weight_decay", _places),
            random_states=tuple(fields.each("random_states", RandomState.from_json, missing=[])),
            digests=fields.mapped("digests", lambda item: typed(item, str, "a digest")),
            axis_orders=fields.mapped("axis_orders", _axes),
            process_random_states=fields.mapped("process_random_states", _words),
            shared_optimizers=tuple(fields.each("shared_optimizers", _inner_paths, missing=[])),
            transposed_ties=tuple(
                fields.each("transposed_ties", TransposedTie.from_json, missing=[])
            ),
            models=fields.mapped("models", lambda item: typed(item, str, "an inner_path")),
        )
        record._check_places()
        return record

    def _check_places(self) -> None:
        """Refuses places that stand where they could mean two things."""
        owners = self.owners
        for what, places in (
            ("a tie group", [p for group in self.tie_groups for p in group.places]),
            ("an exact value", self.exact_values),
            ("a transposed tie", [p for tie in self.transposed_ties for p in tie.aliases]),
            ("a random state", [p for state in self.random_states for p in state.places]),
            *(
                (f"a slot of `{inner_path}`", [owners.get(place, place) for place in trained or ()])
                for inner_path, trained in self.optimizer_variables.items()
            ),
        ):
            if twice := _twice(places):
                raise contradictory(f"{what} for every place", map(str, twice))
        if twice := _twice(p for inner_paths in self.shared_layers for p in inner_paths):
            raise contradictory("one shared layer for every path", twice)
        # A layer's tensor is no business of another one's, where nothing is tied.
        for place in self.exact_values:
            layer = "/".join((place.dataset_path or "").split("/")[:-2])
            above, below = sorted(
                (f"{path}/".lstrip("/") for path in (layer, place.inner_path)), key=len
            )
            if place not in owners and layer in self.layers and not below.startswith(above):
                raise unreadable(f"a tensor of `{place}`", f"`{place.dataset_path}`")
        # One tensor for many variables that are not tied would fill the memory.
        values = {(owners.get(p, p), p.dataset_path) for p in self.exact_values}
        if twice := _twice(path for _, path in values if path):
            raise contradictory("a tensor for every exact value", twice)


def _twice(items: Iterable[T]) -> list[T]:
    return [item for item, times in collections.Counter(items).items() if times > 1]


def _trained(item: Any) -> tuple[Place, ...] | None:
    return None if item is None else _places(item)


def _places(item: Any) -> tuple[Place, ...]:
    return tuple(map(Place.from_json, typed(item, list, "variables of an optimizer")))


def _axes(item: Any) -> tuple[int, ...]:
    axes = [typed(axis, int, "an axis") for axis in typed(item, list, "an order of axes")]
    if sorted(axes) != list(range(len(axes))):
        raise malformed("every axis once", item)
    return tuple(axes)


def _inner_paths(item: Any) -> tuple[str, ...]:
    if len(typed(item, list, "a shared layer")) < 2:
        raise malformed("two paths or more of a shared layer", item)
    return tuple(typed(inner_path, str, "an inner_path") for inner_path in item)


def _words(item: Any) -> tuple[int, ...]:
    return tuple(map(_word, typed(item, list, "a random state")))


def _word(item: Any) -> int:
    if not -(1 << 63) <= typed(item, int, "a random state") < 1 << 63:
        raise malformed("a random state in 64 bits", item)
    return item
