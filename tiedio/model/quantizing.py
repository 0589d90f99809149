"""Keep ties while Keras quantizes a model, which gives each layer variables of its own."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from tiedio.errors import warn
from tiedio.model.joining import alike, join, replace, same_facts
from tiedio.model.live_layers import live_layers
from tiedio.model.own_state import to_numpy
from tiedio.model.pairing import Weight
from tiedio.model.places import named_variables
from tiedio.model.substitution import copy_of
from tiedio.model.walk import walk
from tiedio.record.ties import Place
from tiedio.record.ties import shown as shown_name


class _Tied(NamedTuple):
    """An attribute that holds a tied variable, and what people call it.

    No variable is kept, as Keras lets go of one after the other.
    """

    name: str
    layer: keras.Layer
    attribute: str

    def weight(self) -> Weight:
        """What it holds now; GPTQ and AWQ put it into another attribute, by its old name."""
        named = named_variables(self.layer)
        renamed = (one for one, held in named.items() if held.name == shown_name(self.attribute))
        attribute = self.attribute if self.attribute in named else next(renamed, self.attribute)
        return Weight(self.layer, attribute, named.get(attribute), "")


def keep_ties(model: keras.Model, quantize: Callable[[], None]) -> None:
    """Quantizes a model, and ties again what has equal values; a warning names the rest."""
    tied = _find_tied(model)
    shown, restarted = _keep_shown(model)
    try:
        quantize()
    finally:  # of a model that Keras refuses, some layers may be quantized
        now = [[(one.name, one.weight()) for one in places] for places in tied]
        groups, apart = alike(now, _equal)
        lost = [*restarted, *join([*groups, *_scales(groups)], live_layers())]
        for owner, alias, axes in shown:
            if _holds(owner) and _holds(alias):
                lost += join([[owner, alias]], live_layers(), [axes])
            else:
                ends = [f"{one.holder.name}/{shown_name(one.attribute)}" for one in (alias, owner)]
                apart.append(" from ".join(f"`{name}`" for name in ends))
        if apart:
            lost.append(
                f"Quantizing separated {'; '.join(apart)}: their values, shapes or dtypes differ. "
                "Layers of one kind that are quantized in one way stay tied; `filters` leaves "
                "layers as they are."
            )
        warn(lost)


def _keep_shown(
    model: keras.Model,
) -> tuple[list[tuple[Weight, Weight, tuple[int, ...]]], list[str]]:
    """Gives what is shown transposed a value, for Keras to quantize.

    Returns:
        Who shows what, and warnings, as `renewal.apply`.
    """
    found = walk(model)

    def weight(place: Place) -> Weight:
        layer, variable = found.places[place]
        return Weight(layer, place.attribute, variable, place.inner_path)

    shown, lost = [], []
    for tie in found.transposed_ties:
        for alias in map(weight, tie.aliases):
            copy = copy_of(alias.variable, alias.holder, alias.attribute)
            lost += replace([(alias, copy)], live_layers())
            shown.append((weight(tie.owner), alias._replace(variable=copy), tie.axes))
    return shown, lost


def _holds(weight: Weight) -> bool:
    """Whether a weight is still the variable that it was."""
    return named_variables(weight.holder).get(weight.attribute) is weight.variable


def _find_tied(model: keras.Model) -> list[list[_Tied]]:
    """Lists the places of each tied variable, the owner first; those outside the model last."""
    found = walk(model)
    tied = {
        key: [
            _Tied(str(place), found.places[place].layer, place.attribute)
            for place in found.owner_first(places)
        ]
        for key, places in found.places_of.items()
    }
    inside = {id(layer) for layer in found.layers.values()}
    for layer in live_layers():
        if id(layer) not in inside:
            for attribute, variable in named_variables(layer).items():
                if id(variable) in tied:
                    name = f"{layer.name}/{shown_name(attribute)}"
                    tied[id(variable)].append(_Tied(name, layer, attribute))
    return [places for places in tied.values() if len(places) > 1]


def _scales(groups: list[list[Weight]]) -> Iterator[list[Weight]]:
    """Yields the scales and zero points of weights that are to be tied, where they are equal."""
    for group in groups:
        for attribute in named_variables(group[0].holder):
            if attribute.startswith(f"{group[0].variable.name}_"):
                holders = [weight.holder for weight in group]
                scales = [
                    ("", Weight(one, attribute, named_variables(one).get(attribute), ""))
                    for one in holders
                ]
                yield from alike([scales], _equal)[0]


def _equal(one: Any, other: Any) -> bool:
    return same_facts(one, other) and np.array_equal(to_numpy(one), to_numpy(other))
