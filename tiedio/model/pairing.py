"""Which weights of a layer are to be tied to which of another one, by their names."""

import collections
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from tiedio.errors import TieError, listed
from tiedio.model.arguments import names_in
from tiedio.model.places import own_variables
from tiedio.model.substitution import facts_of
from tiedio.model.views import TransposedView
from tiedio.model.walk import walk

# What to do where one of two layers has LoRA, or a table that the other one has transposed.
_LORA = (
    "Call `enable_lora` on both, with one rank, or after they are tied; or name what is to be "
    'tied, as in `weights=("kernel",)`.'
)
_TRANSPOSED = (
    "Name what is to be tied, and pass `transpose=True`, as in `tiedio.tie(head, to=table, "
    'weights={"kernel": "embeddings"}, transpose=True)`.'
)


class Weight(NamedTuple):
    """A variable of a layer, and where it is."""

    holder: keras.Layer
    attribute: str
    variable: Any
    inner_path: str


class Weights:
    """The weights of a layer, by names such as `kernel`, or `cell/kernel`.

    What a layer keeps and does not list, as an RNN what it saw last, is none of them.

    Attributes:
        layer: The layer.
        named: What the names stand for.
    """

    def __init__(self, layer: keras.Layer):
        self.layer = layer
        self.named = {
            f"{place.inner_path}/{place.attribute.lstrip('_')}".lstrip("/"): Weight(
                holder, place.attribute, variable, place.inner_path
            )
            for place, (holder, variable) in walk(layer).places.items()
            if isinstance(variable, TransposedView)
            or any(variable is listed_here for listed_here in own_variables(holder))
        }

    def label(self, name: str) -> str:
        """Tells what people call a weight."""
        return f"{self.layer.name}/{name}"

    def find(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Lists the weights that each of `names` stands for."""
        found = {name: [n for n in self.named if f"/{n}".endswith(f"/{name}")] for name in names}
        if unknown := [name for name, weights in found.items() if not weights]:
            raise self.unknown(unknown)
        return found

    def unknown(self, names: Sequence[str]) -> TieError:
        advice = (
            "Pass names that both layers have, or a dict from this layer's to the owner's, such as "
            '`{"kernel": "recurrent_kernel"}`.'
        )
        return TieError(
            f"Layer `{self.layer.name}` has no weights {listed(names)}.\n"
            f"Expected: some of {listed(self.named) or 'none'}. Received: {listed(names)}.\n"
            + (_LORA if any(map(_is_lora, names)) else advice)
        )


def pairs(
    own: Weights, owner: Weights, weights: Any, transpose: bool | Sequence[int] = False
) -> list[tuple[Weight, Weight, tuple[int, ...]]]:
    """Pairs what a layer has with what its owner has, for `tie` with these `weights`.

    Returns:
        For each pair also the axes of the owner's in the order of the layer's, if not its own.

    Raises:
        TieError: If something has no partner, several, or one of another shape or dtype.
    """
    if weights is None:
        names = [(name, name) for name in own.named if name in owner.named]
        _check_all(own, owner, {name for name, _ in names})
    else:
        names = _by_name(own, owner, weights)
    _check_single(own, owner, names)
    axes = {twin: _axes(owner.named[twin].variable, transpose) for _, twin in names}
    _check_equal(own, owner, names, axes)
    return [(own.named[name], owner.named[twin], axes[twin]) for name, twin in names]


def _axes(variable: Any, transpose: bool | Sequence[int]) -> tuple[int, ...]:
    order = tuple(range(len(variable.shape)))
    axes = tuple(transpose or ()) if not isinstance(transpose, bool) else order[::-1] * transpose
    return () if axes == order else axes


def check_kinds(layer: keras.Layer, to: keras.Layer) -> None:
    """Refuses two layers of which one has the table of the other transposed."""
    for first, second in ((layer, to), (to, layer)):
        if isinstance(first, keras.layers.Dense) and isinstance(second, keras.layers.Embedding):
            raise TieError(
                f"Cannot tie `{layer.name}` to `{to.name}`: they hold a table in two layouts.\n"
                "Expected: layers that hold one layout. Received: "
                f"{type(to).__name__} (owner) and {type(layer).__name__}.\n{_TRANSPOSED}"
            )


def _by_name(own: Weights, owner: Weights, weights: Any) -> list[tuple[str, str]]:
    """Pairs what is named, in sub-layers of equal paths; what there is once, wherever it is."""
    names = names_in(weights)
    twins = names_in(weights.values()) if isinstance(weights, Mapping) else names
    mine, theirs = own.find(names), owner.find(twins)
    paired = [
        (one, theirs[twin][0] if len(mine[name]) == len(theirs[twin]) == 1 else beside)
        for name, twin in zip(names, twins, strict=True)
        for one in mine[name]
        for beside in (one.removesuffix(name) + twin,)
    ]
    if missing := [twin for _, twin in paired if twin not in owner.named]:
        raise owner.unknown(missing)
    return paired


def _check_all(own: Weights, owner: Weights, paired: Collection[str]) -> None:
    """Refuses layers of which one has sub-layers, or LoRA, that the other one lacks.

    What a layer was made without (a bias) may be missing in one of them.
    """
    if not paired:
        raise TieError(
            f"Cannot tie `{own.layer.name}` to `{owner.layer.name}`: "
            "they have no weights of equal name.\n"
            f"Expected: {listed(owner.named) or 'weights'} (owner). "
            f"Received: {listed(own.named) or 'none'}.\n"
            'Tie layers of the same kind, or pass a dict of names, as `{"kernel": "embeddings"}`.'
        )
    parts = {own.named[name].inner_path for name in paired}
    alone = [
        (side.label(name), _is_lora(name))
        for side in (own, owner)
        for name, weight in side.named.items()
        if name not in paired and (weight.inner_path not in parts or _is_lora(name))
    ]
    if alone:
        advice = "Tie those sub-layers that have one, each by itself, or name their `weights`."
        raise TieError(
            f"Cannot tie `{own.layer.name}` to `{owner.layer.name}`: "
            f"{listed(name for name, _ in alone)} have no partner.\n"
            "Expected: each of them in both. Received: each in one only.\n"
            + (_LORA if any(is_lora for _, is_lora in alone) else advice)
        )


def _check_single(own: Weights, owner: Weights, names: Iterable[tuple[str, str]]) -> None:
    """Refuses to make several variables of one."""
    asked = collections.defaultdict(list)
    for name, twin in names:
        asked[id(own.named[name].holder), id(own.named[name].variable)].append((name, twin))
    for paired in asked.values():
        if len({id(owner.named[twin].variable) for _, twin in paired}) > 1:
            raise TieError(
                f"Cannot tie {listed({own.label(name) for name, _ in paired})}, one variable, "
                "to several.\n"
                "Expected: one of the owner's. "
                f"Received: {listed(owner.label(twin) for _, twin in paired)}.\n"
                "Name each variable once, and where a layer has two names for it, one of them."
            )


def _check_equal(
    own: Weights,
    owner: Weights,
    names: Iterable[tuple[str, str]],
    axes: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuses to tie what differs in shape or dtype."""
    differing = sorted(
        (f"`{own.label(name)}` to `{owner.label(twin)}`", theirs, mine)
        for name, twin in names
        if (mine := facts_of(own.named[name].variable))
        != (theirs := facts_of(owner.named[twin].variable, axes[twin]))
    )
    if not differing:
        return
    tied, expected, received = (", ".join(column) for column in zip(*differing, strict=True))
    advice = "Tie only variables of equal shape and dtype."
    if any(_is_lora(name) for name, _ in names):
        advice = _LORA
    elif any(_reverse(own.named[name], owner.named[twin]) for name, twin in names):
        advice = _TRANSPOSED
    raise TieError(
        f"Cannot tie {tied}: shapes or dtypes differ.\n"
        f"Expected: {expected} (owner). Received: {received}.\n{advice}"
    )


def _reverse(one: Weight, other: Weight) -> bool:
    """Whether one has the shape of the other transposed."""
    shape, reverse = tuple(one.variable.shape), tuple(other.variable.shape)[::-1]
    return shape == reverse != reverse[::-1]


def _is_lora(name: str) -> bool:
    return name.rpartition("/")[2].startswith("lora_")
