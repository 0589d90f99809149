"""Tie the layers of a clone as those of its model are tied.

`keras.models.clone_model` clones a graph layer by layer, by one of two functions, and other models
by their config. What does that is wrapped here, for `patching`.
"""

import collections
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from tiedio.errors import warn
from tiedio.model.joining import alike, join, same_facts
from tiedio.model.live_layers import live_layers
from tiedio.model.pairing import Weight
from tiedio.model.places import named_variables
from tiedio.model.substitution import facts_of
from tiedio.model.walk import walk
from tiedio.record.ties import Place

# Layers, each with what was made of it.
_Pairs = list[tuple[keras.Layer, keras.Layer]]

# The clones made within another clone so far, by their `id()`: of which model, and how.
_Nested = dict[int, tuple[keras.Layer, keras.Layer, _Pairs]]
_nested: contextvars.ContextVar[_Nested | None]
_nested = contextvars.ContextVar("tiedio_nested_clones", default=None)


def clone_by_layers(
    clone_layers: Callable[..., Any], model: Any, clone_function: Callable[..., Any], **options: Any
) -> Any:
    """Clones a graph by `clone_layers`, a function of Keras, and ties its layers.

    A nested model that is cloned so, too, is tied with what is around it.
    """
    around, inside = _nested.get(), _Nested()
    made: dict[int, _Pairs] = {}

    def noted(layer: Any) -> Any:
        clone = clone_function(layer)
        if isinstance(layer, keras.Layer) and id(layer) not in made:
            *_, made[id(layer)] = inside.pop(id(clone), (layer, clone, [(layer, clone)]))
        return clone

    token = _nested.set(inside)
    try:
        clone = clone_layers(model, clone_function=noted, **options)
    finally:
        _nested.reset(token)
    inside[id(clone)] = model, clone, [pair for pairs in made.values() for pair in pairs]
    if around is None:
        for cloned, _, pairs in inside.values():
            warn(_tie(cloned, pairs))
    else:
        around |= inside
    return clone


class _Config(dict[str, Any]):
    """The config of a model that it remembers."""

    model: keras.Layer


def config_of(write: Callable[..., Any], model: Any) -> _Config:
    """Writes a config by `write`, a function of Keras; `clone_by_config` knows of which model."""
    config = _Config(write(model))
    config.model = model
    return config


def clone_by_config(read: Callable[..., Any], config: Any, **options: Any) -> Any:
    """Makes a clone by `read`, a function of Keras, and ties its layers."""
    clone = read(config, **options)
    if isinstance(config, _Config):
        warn(_tie(config.model, [(config.model, clone)]))
    return clone


def _tie(model: keras.Layer, pairs: _Pairs) -> list[str]:
    """Ties what was made of the layers of a model; a warning names what cannot be tied."""
    found = walk(model)
    twins: dict[int, dict[int, Any]] = collections.defaultdict(dict)
    used_again: set[int] = set()
    for layer, clone in pairs:
        copies = walk(clone).by_path
        used_again |= {id(copy) for copy in copies.values()}
        for path, part in walk(layer).by_path.items():
            if path in copies:
                twins[id(part)][id(copies[path])] = copies[path]

    def weights_of(places: Sequence[Place]) -> Iterator[tuple[str, Weight]]:
        for place in found.owner_first(places):
            layer = found.places[place].layer
            made = twins[id(layer)].values() or [None]
            for twin in () if id(layer) in used_again else made:
                variable = twin and named_variables(twin).get(place.attribute)
                yield str(place), Weight(twin, place.attribute, variable, place.inner_path)

    tied = [list(weights_of(places)) for places in found.places_of.values()]
    groups, apart = alike(tied, same_facts)
    lost = join(groups, live_layers())
    for tie in found.transposed_ties:
        for _, owner in [*weights_of([tie.owner])][:1]:
            expected = owner.variable is not None and facts_of(owner.variable, tie.axes)
            for name, weight in weights_of(tie.aliases):
                if weight.variable is not None and facts_of(weight.variable) == expected:
                    lost += join([[owner, weight]], live_layers(), [tie.axes])
                else:
                    apart.append(f"`{name}` from `{tie.owner}`")
    if apart:
        lost.append(
            f"Cloning `{model.name}` separated {'; '.join(apart)}: the layers that were made of "
            "these lack them, or have them in other shapes or dtypes. What is to be tied yet can "
            "be tied by `tiedio.tie`."
        )
    return lost
