"""Make one variable of several weights: of those that `tie` pairs, or that were tied before."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras

from tiedio.errors import listed
from tiedio.model import renewal, tie_memory
from tiedio.model.pairing import Weight
from tiedio.model.places import named_variables
from tiedio.model.substitution import Substitution, facts_of
from tiedio.model.views import TransposedView, is_shown, view_of


def join(
    tied: Iterable[Sequence[Weight]],
    everywhere: Sequence[keras.Layer],
    axes: Iterable[tuple[int, ...]] = (),
) -> list[str]:
    """Makes one variable of the weights of each group, that of its first.

    Args:
        tied: The groups.
        everywhere: All layers that may be, or hold, what uses them.
        axes: For each group the axes of its first in the order in which the others are to show
            them, if that is another.

    Returns:
        Warnings, as `renewal.apply`.
    """
    pairs = itertools.zip_longest(tied, axes, fillvalue=())
    groups = [(group, order) for group, order in pairs if len(group) > 1]
    instead = [
        (alias, view_of(owner.variable, order, alias.variable))
        for (owner, *aliases), order in groups
        for alias in aliases
    ]
    lost = replace(instead, everywhere)
    for group, order in groups:
        tie_memory.remember(((weight.holder, weight.attribute) for weight in group), order)
    return lost


def replace(replaced: Sequence[tuple[Weight, Any]], everywhere: Sequence[keras.Layer]) -> list[str]:
    """Puts other variables in the place of weights; returns warnings, as `renewal.apply`."""
    # A wrapper may keep a reference of its own to the kernel inside it (SpectralNormalization).
    wrappers = [one for one in everywhere if isinstance(one, keras.layers.Wrapper)]
    substitutions = [
        Substitution(layer, weight.variable, new)
        for weight, new in replaced
        for layer in (weight.holder, *(one for one in wrappers if one.layer is weight.holder))
    ]
    if is_shown(weight.variable for weight, _ in replaced):
        substitutions += _following(replaced, everywhere)
    layers = [one.layer for one in substitutions]
    return renewal.apply(substitutions, renewal.models_with(layers, among=everywhere))


def _following(
    replaced: Sequence[tuple[Weight, Any]], everywhere: Sequence[keras.Layer]
) -> Iterator[Substitution]:
    """Yields what layers show instead, where they show what no layer will hold any more."""
    instead = {id(weight.variable): new for weight, new in replaced}
    gone = {(id(weight.holder), id(weight.variable)) for weight, _ in replaced}
    held = [
        (layer, variable) for layer in everywhere for variable in named_variables(layer).values()
    ]
    kept = {id(variable) for layer, variable in held if (id(layer), id(variable)) not in gone}
    for layer, view in held:
        if isinstance(view, TransposedView) and id(view.owner) in instead.keys() - kept:
            new = view_of(instead[id(view.owner)], view.axes, view)
            yield Substitution(layer, view, new)


def alike(
    tied: Iterable[Sequence[tuple[str, Weight]]], agree: Callable[[Any, Any], bool]
) -> tuple[list[list[Weight]], list[str]]:
    """Finds what can be tied again.

    Args:
        tied: For each variable that was tied, the weights of now, and what people call them. A
            weight that is gone has the variable `None`, which agrees with nothing.
        agree: Whether two variables may be one.

    Returns:
        The groups of weights that agree with their first, and are several variables; and which of
        those that were tied do not agree with which, as messages say it.
    """
    groups: list[list[Weight]] = []
    apart: list[str] = []
    for named in tied:
        parts: list[list[tuple[str, Weight]]] = []
        for one in named:
            fitting = (part for part in parts if _may_be_one(part[0][1], one[1], agree))
            if part := next(fitting, None):
                part.append(one)
            else:
                parts.append([one])
        weights = [[weight for _, weight in part] for part in parts]
        groups += [part for part in weights if len({id(one.variable) for one in part}) > 1]
        if len(parts) > 1:
            apart.append(" from ".join(listed(name for name, _ in part) for part in parts))
    return groups, apart


def _may_be_one(one: Weight, other: Weight, agree: Callable[[Any, Any], bool]) -> bool:
    if one.variable is None or other.variable is None:
        return False
    return one.variable is other.variable or agree(one.variable, other.variable)


def same_facts(one: Any, other: Any) -> bool:
    """Whether two variables have the same shape and dtype."""
    return facts_of(one) == facts_of(other)
