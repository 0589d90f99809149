"""What Keras saves of a live model, what its layers hold, and what of that is one."""

import collections
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from tiedio.model.keras_internals import TRACKED
from tiedio.model.own_state import Stored, stored_by
from tiedio.model.places import (
    attribute_of,
    attributes_of,
    members,
    named_variables,
    raw_state,
)
from tiedio.model.several import Models
from tiedio.model.views import TransposedView
from tiedio.model.visits import Visit, visits_below
from tiedio.record.record import HeldVariable, LayerState
from tiedio.record.ties import Place, TieGroup, Ties, TransposedTie, layer_labels, shown


class Held(NamedTuple):
    """A variable, or a seed generator, and the layer that holds it."""

    layer: keras.Layer
    item: Any


class Walk:
    """A live model as Keras' saving sees it: a snapshot, and what follows from it, found once.

    Whatever changes the model makes it untrue; walk again then.

    Attributes:
        visits: The saveables, the model first.
    """

    def __init__(self, visits: Iterable[Visit]):
        self.visits = tuple(visits)

    @functools.cached_property
    def layers(self) -> dict[str, keras.Layer]:
        """The layers by inner_path."""
        return {
            visit.inner_path: visit.saveable
            for visit in self.visits
            if isinstance(visit.saveable, keras.Layer)
        }

    @functools.cached_property
    def by_path(self) -> dict[str, keras.Layer]:
        """The layers by every inner_path."""
        return {
            path: visit.saveable
            for visit in self.visits
            for path in visit.inner_paths
            if isinstance(visit.saveable, keras.Layer)
        }

    @functools.cached_property
    def models(self) -> dict[str, str]:
        """The inner_path of each model by the name that it was given, if there are several."""
        root = self.layers.get("")
        held = root.models if isinstance(root, Models) else {}
        path_of = {id(layer): path for path, layer in reversed(self.layers.items())}
        return {name: path_of[id(model)] for name, model in held.items() if id(model) in path_of}

    @functools.cached_property
    def _labels(self) -> dict[str, str]:
        """What people call each layer, by every inner_path."""
        given = {id(self.layers[path]): name for name, path in self.models.items()}
        return layer_labels(
            {p: given.get(id(layer)) or layer.name for p, layer in self.by_path.items()}
        )

    def label(self, inner_path: str) -> str:
        """Tells what people call the saveable at an inner_path: by the name of its layer."""
        if not inner_path:
            return "the model"
        holder, _, attribute = inner_path.rpartition("/")
        held = f"{self._labels[holder]}/{attribute}" if self._labels.get(holder) else inner_path
        return self._labels.get(inner_path, held if holder else inner_path)

    def place(self, inner_path: str, attribute: str) -> Place:
        """Returns a place, and what people call it."""
        label, name = self._labels.get(inner_path, inner_path), shown(attribute)
        if name in self.named.get(inner_path, ()):  # another attribute
            name = attribute
        return Place(inner_path, attribute, name=f"{label}/{name}".lstrip("/"))

    @functools.cached_property
    def _held(self) -> dict[str, list[tuple[str, Any]]]:
        """The variables and seed generators of each layer, for which it is looked at once."""
        kinds = keras.Variable, keras.random.SeedGenerator
        return {path: list(members(layer, kinds)) for path, layer in self.layers.items()}

    @functools.cached_property
    def named(self) -> dict[str, dict[str, Any]]:
        """The variables that each layer itself holds: by inner_path, then by attribute."""
        held = self._held
        return {path: named_variables(layer, held[path]) for path, layer in self.layers.items()}

    @functools.cached_property
    def places(self) -> dict[Place, Held]:
        """Every place that holds a variable."""
        return {
            self.place(path, attribute): Held(self.layers[path], variable)
            for path, variables in self.named.items()
            for attribute, variable in variables.items()
        }

    @functools.cached_property
    def raw(self) -> dict[Place, Held]:
        """Every place that holds state of which only the backend knows."""
        return {
            self.place(path, attribute): Held(layer, item)
            for path, layer in self.layers.items()
            for attribute, item in raw_state(layer).items()
        }

    @functools.cached_property
    def unreached(self) -> list[str]:
        """The paths of variables that training uses, and that nothing visited can store."""
        known = {id(held.item.state) for held in self.generators.values()}
        known |= {key for key, places in self.places_of.items() if not self._is_unordered(places)}
        used = []
        for visit in self.visits:
            if not isinstance(visit.saveable, (keras.Layer, keras.optimizers.Optimizer)):
                known |= {id(variable) for variable in getattr(visit.saveable, "variables", ())}
                used += [variable for _, variable in members(visit.saveable, keras.Variable)]
        root = self.layers.get("")
        used += getattr(root, "variables", [])
        used += getattr(root, "metrics_variables", [])
        return [variable.path for variable in used if id(variable) not in known]

    def _is_unordered(self, places: Iterable[Place]) -> bool:
        """Whether a variable is only in layers of a set, whose order is another in each process.

        A model shows them in `layers`.
        """
        return all(
            any(f"{place.inner_path}/".startswith(f"{path}/") for path in self._unordered)
            for place in places
        )

    @functools.cached_property
    def _unordered(self) -> list[str]:
        in_sets = {
            id(item)
            for layer in self.layers.values()
            for value in attributes_of(layer).values()
            if isinstance(value, (set, frozenset)) and len(value) > 1
            for item in value
        }
        # Others list their layers as they met them, and those of a graph in its order.
        views = {
            f"{path}/layers".lstrip("/")
            for path, layer in self.layers.items()
            if layer._obj_type() not in ("Sequential", "Functional")
        }
        return [
            visit.inner_path
            for visit in self.visits
            if id(visit.saveable) in in_sets
            and all(path.rpartition("/")[0] in views for path in visit.inner_paths)
        ]

    @functools.cached_property
    def colliding(self) -> dict[str, list[str]]:
        """The inner_paths that several saveables come to, and the names of these."""
        names = collections.defaultdict(list)
        for visit in self.visits:
            for path in visit.inner_paths:
                names[path].append(getattr(visit.saveable, "name", type(visit.saveable).__name__))
        return {path: held for path, held in names.items() if len(held) > 1}

    @functools.cached_property
    def places_of(self) -> dict[int, list[Place]]:
        """The places of each variable, by its `id()`."""
        places = collections.defaultdict(list)
        for place, held in self.places.items():
            places[id(held.item)].append(place)
        return dict(places)

    @functools.cached_property
    def generators(self) -> dict[Place, Held]:
        """Every place that holds a seed generator."""
        return {
            self.place(path, attribute): Held(self.layers[path], item)
            for path, held in self._held.items()
            for attribute, item in held
            if isinstance(item, keras.random.SeedGenerator)
        }

    @functools.cached_property
    def shared_layers(self) -> tuple[tuple[str, ...], ...]:
        """All inner_paths of each layer that is reached by several."""
        return tuple(
            tuple(visit.inner_paths)
            for visit in self.visits
            if len(visit.inner_paths) > 1
            and isinstance(visit.saveable, keras.Layer)
            # The inputs of two models can be one object, and nothing is gained by it.
            and not isinstance(visit.saveable, keras.layers.InputLayer)
        )

    @functools.cached_property
    def shared_optimizers(self) -> tuple[tuple[str, ...], ...]:
        """All inner_paths of each optimizer that is reached by several."""
        known = {id(optimizer) for optimizer in self.optimizers.values()}
        return tuple(
            tuple(visit.inner_paths)
            for visit in self.visits
            if len(visit.inner_paths) > 1 and id(visit.saveable) in known
        )

    @functools.cached_property
    def layer_states(self) -> dict[str, LayerState]:
        """What Keras does not write of each layer, by inner_path."""
        return {path: self._state(path, layer) for path, layer in self.layers.items()}

    def _state(self, path: str, layer: keras.Layer) -> LayerState:
        attributes = attribute_of(self.named[path])
        held = tuple(
            HeldVariable(attributes[id(v)], v.path, tracked == TRACKED[0], bool(v.trainable))
            for tracked in TRACKED
            for v in getattr(layer, tracked)
        )
        return LayerState(layer.name, layer.path or layer.name, bool(layer.trainable), held)

    @functools.cached_property
    def ties(self) -> Ties:
        """The tie groups."""
        groups = []
        for places in self.places_of.values():
            variable = self.places[places[0]].item
            if len(places) > 1 and not isinstance(variable, TransposedView):
                owner, *aliases = self.owner_first(places)
                groups.append(tie_group(owner, aliases, variable))
        return Ties(groups)

    def owner_first(self, places: Sequence[Place]) -> list[Place]:
        """Returns the places of one variable, that of the layer that created it before others."""
        variable = self.places[places[0]].item
        # `max` keeps the first of equals, so the order of the walk decides a draw.
        owner = max(places, key=lambda place: created_by(self.places[place].layer, variable))
        return [owner, *(place for place in places if place != owner)]

    @functools.cached_property
    def transposed_ties(self) -> tuple[TransposedTie, ...]:
        """The variables that places show transposed, in the order of these places."""
        shown = collections.defaultdict(list)
        for place, held in self.places.items():
            if isinstance(held.item, TransposedView) and id(held.item.owner) in self.places_of:
                shown[id(held.item.owner), held.item.axes].append(place)
        ties = []
        for (_, axes), places in shown.items():
            variable = self.places[places[0]].item.owner
            owner, *_ = self.owner_first(self.places_of[id(variable)])
            group = tie_group(owner, places, variable)
            facts = group.shape, group.dtype, group.trainable
            ties.append(TransposedTie(group.owner, group.aliases, *facts, axes))
        return tuple(ties)

    @functools.cached_property
    def stored(self) -> dict[str, dict[str, Stored]]:
        """What each saveable but optimizers stores, by inner_path; its own code is asked, once.

        One whose code fails is not in it, as a lookup that is to learn from the file.
        """
        return {
            visit.inner_path: stored
            for visit in self.parts
            if hasattr(visit.saveable, "save_own_variables")
            and (stored := stored_by(visit.saveable)) is not None
        }

    @functools.cached_property
    def stored_places(self) -> dict[Place, Any]:
        """The variables that layers store as they are, by places that say where in a file."""
        return self.places_in(self.stored)

    def places_in(self, stored: Mapping[str, Mapping[str, Stored]]) -> dict[Place, Any]:
        """Returns `stored_places` for what layers store by this mapping, one like `stored`."""
        found = {}
        for path in self.layers:
            attributes = attribute_of(self.named[path])
            for name, (_, variable) in stored.get(path, {}).items():
                if variable is not None and id(variable) in attributes:
                    place = self.place(path, attributes[id(variable)])
                    dataset_path = f"{path}/vars/{name}".lstrip("/")
                    found[place.stored_at(dataset_path)] = variable
        return found

    @functools.cached_property
    def optimizers(self) -> dict[str, keras.optimizers.Optimizer]:
        """The optimizers by inner_path, without those inside another one."""
        found: dict[str, keras.optimizers.Optimizer] = {}
        for visit in self.visits:
            inside = any(visit.inner_path.startswith(f"{path}/") for path in found)
            if isinstance(visit.saveable, keras.optimizers.Optimizer) and not inside:
                found[visit.inner_path] = visit.saveable
        return found

    @functools.cached_property
    def parts(self) -> list[Visit]:
        """The visits of all but optimizers, and of what is inside these."""
        optimizers = tuple(f"{path}/" for path in self.optimizers)
        return [v for v in self.visits if not f"{v.inner_path}/".startswith(optimizers)]

    @functools.cached_property
    def optimizer_parts(self) -> list[Visit]:
        """The visits that `parts` leaves out."""
        parts = {id(visit) for visit in self.parts}
        return [visit for visit in self.visits if id(visit) not in parts]


def walk(root: Any, skipped: Iterable[Any] = ()) -> Walk:
    """Walks over a model, or over what is below any saveable; `skipped` is left out."""
    return Walk(visits_below(root, skipped))


def tie_group(owner: Place, aliases: Iterable[Place], variable: Any) -> TieGroup:
    """Makes the tie group of a variable and the places that hold it, or are to."""
    return TieGroup(
        owner,
        tuple(aliases),
        shape=tuple(int(size) for size in variable.shape),
        dtype=str(variable.dtype),
        trainable=bool(variable.trainable),
    )


def created_by(layer: keras.Layer, variable: Any) -> int:
    """Tells how sure it is that `layer` created `variable` (0: it is not).

    A variable's path opens with the path of the layer that made it; when that
    was in the constructor, the layer knew no more of it than its own name.
    """
    if variable.path == f"{layer.path}/{variable.name}":
        return 2
    return int(f"/{variable.path}".endswith(f"/{layer.name}/{variable.name}"))
