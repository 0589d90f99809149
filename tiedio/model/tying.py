"""`tie`, `untie`, `find_ties`, `assert_tied`: what users say and ask of shared variables."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import keras
import numpy as np

from tiedio.errors import ModelNotBuiltError, TieError, first_line, listed, warn
from tiedio.model import substitution, tie_memory
from tiedio.model.arguments import (
    as_one,
    axes_in,
    check_built,
    check_layers,
    names_in,
    ties_in,
)
from tiedio.model.joining import join, replace
from tiedio.model.live_layers import live_layers
from tiedio.model.pairing import Weight, Weights, check_kinds, pairs
from tiedio.model.places import named_variables
from tiedio.model.several import each
from tiedio.model.substitution import facts_of
from tiedio.model.views import TransposedView, base
from tiedio.model.visits import Visit
from tiedio.model.walk import Held, Walk, walk
from tiedio.record.ties import Place, TieGroup, Ties, TransposedTie

LayerT = TypeVar("LayerT", bound=keras.Layer)


def tie(
    layer: LayerT,
    to: keras.Layer,
    weights: Iterable[str] | Mapping[str, str] | None = None,
    *,
    transpose: bool | Sequence[int] = False,
    input_shape: Any = None,
) -> LayerT:
    """Makes `layer` use the variables of another layer.

    Both layers then hold the same `keras.Variable` objects, each in its usual
    place, whatever else differs between them: padding, strides, activation. The
    variables stay those of `to`, with its initial values, regularizers,
    constraints and `trainable` flags.

    Layers may be built or not, and be part of a model or not. Models that
    contain `layer` forget their compiled functions. An optimizer that they hold,
    and that was built for the variables given up, is built again, and stays the
    same object; if it had been trained, a `TiedioWarning` says that slots and
    iterations start at zero. Tie before training to avoid that.

    Args:
        layer: The layer that gives up its own variables.
        to: The layer whose variables are used, the owner.
        weights: Names of the weights to tie, such as `("kernel",)`; in a layer
            with sub-layers a name stands for all weights of that name. A mapping, such
            as `{"kernel": "recurrent_kernel"}`, says by which names the owner has them.
            `None` ties every weight that both layers have, kernel with kernel, bias
            with bias; each sub-layer must have its partner.
        transpose: Whether `layer` uses what `weights` names transposed, or by which axes, as
            `numpy.transpose` takes them. It then shows the owner's variables, and has none of
            its own: to whatever lists, counts or trains variables, there is the owner's only.
        input_shape: Shape to build unbuilt layers for, batch axis included. By
            default an unbuilt `layer` is built for the owner's shape. With `transpose` it is
            the shape for `layer` only.

    Returns:
        `layer`.

    Raises:
        ArgumentError: If something else is passed than layers, and names of weights.
        TieError: If both are the same layer, have no weights of equal name, lack one
            of `weights`, weights differ in shape or dtype, sub-layers or the weights of
            LoRA have no partner, or an optimizer cannot be built again. Nothing is changed
            but that unbuilt layers may be built.
        ModelNotBuiltError: If a layer is not built and cannot be; nothing is put off until
            it is.

    Example:

    >>> import keras, tiedio
    >>> same = keras.layers.Conv2D(8, 3, padding="same")
    >>> valid = tiedio.tie(keras.layers.Conv2D(8, 3), to=same, input_shape=(None, 28, 28, 1))
    >>> valid.kernel is same.kernel and valid.bias is same.bias
    True
    >>> gru, dense = keras.layers.GRUCell(4), keras.layers.Dense(12)
    >>> names = {"kernel": "recurrent_kernel"}
    >>> dense = tiedio.tie(dense, to=gru, weights=names, input_shape=(None, 4))
    >>> dense.kernel is gru.recurrent_kernel
    True
    >>> table, head = keras.layers.Embedding(100, 8), keras.layers.Dense(100, use_bias=False)
    >>> table.build()
    >>> names = {"kernel": "embeddings"}
    >>> _ = tiedio.tie(head, to=table, weights=names, transpose=True, input_shape=(None, 8))
    >>> head.kernel.shape == (8, 100), head.weights
    (True, [])

    Source: a public way to share a variable has been asked for since
    [keras#18419](https://github.com/keras-team/keras/issues/18419).
    """
    check_layers(layer=layer, to=to)
    if layer is to:
        raise TieError(
            f"Cannot tie `{layer.name}` to itself.\n"
            f"Expected: two layers. Received: one, twice.\n"
            "Pass the layer whose variables are to be used as `to`."
        )
    transpose = axes_in(transpose, weights)
    if weights is None:
        check_kinds(layer, to)
    # Nothing else can hold variables that do not exist yet.
    in_use = any(part.built for part in layer._flatten_layers())
    _build(to, None if transpose else input_shape)
    _build(layer, input_shape, like=None if transpose else to)
    tied = pairs(Weights(layer), Weights(to), weights, transpose)
    groups = [(owned, own) for own, owned, _ in tied]
    warn(join(groups, live_layers() if in_use else [], [axes for *_, axes in tied]))
    return layer


def untie(layer: LayerT, weights: Iterable[str] | None = None) -> LayerT:
    """Gives a layer its own copy of the variables it shares with others.

    The other layers keep the shared variable. Models that contain `layer` are
    renewed as by `tie`.

    Args:
        layer: A built layer.
        weights: Names of the weights to separate, such as `("kernel",)`. `None`
            separates every weight that another layer holds too.

    Returns:
        `layer`.

    Raises:
        ArgumentError: If something else is passed than a layer, and names of weights.
        TieError: If the layer lacks one of `weights`, shares none of them, or an optimizer
            cannot be built again; nothing is changed then.
        ModelNotBuiltError: If the layer is not built.

    Example:

    >>> import keras, tiedio
    >>> a, b = keras.layers.Dense(2), keras.layers.Dense(2)
    >>> _ = tiedio.tie(b, to=a, input_shape=(None, 3))
    >>> _ = tiedio.untie(b, weights=("bias",))
    >>> b.kernel is a.kernel, b.bias is a.bias
    (True, False)
    """
    check_layers(layer=layer)
    check_built(layer, "untying")
    held = Weights(layer)
    own = held.named
    names: Iterable[str] = own
    if weights is not None:
        names = dict.fromkeys(chain.from_iterable(held.find(names_in(weights)).values()))
    inside = {id(weight.holder) for weight in own.values()}
    everywhere = live_layers()
    others = [
        (other, variable)
        for other in everywhere
        if id(other) not in inside
        for variable in named_variables(other).values()
    ]
    elsewhere = {id(base(variable)) for _, variable in others}
    untied = [own[name] for name in names if id(base(own[name].variable)) in elsewhere]
    _check_not_only_shown(held, untied, others)
    if not untied:
        raise TieError(
            f"Cannot untie `{layer.name}`: no other layer holds its weights.\n"
            f"Expected: a tied weight. Received: {listed(own) or 'no weights'}.\n"
            "Untie one of the layers that were tied, by the names of tied weights."
        )
    copies = {
        id(one.variable): substitution.copy_of(one.variable, one.holder, one.attribute)
        for one in untied
    }
    lost = replace([(one, copies[id(one.variable)]) for one in untied], everywhere)
    for one in untied:
        tie_memory.forget(one.holder, one.attribute)
    warn(lost)
    return layer


def find_ties(model: keras.Layer | Mapping[str, keras.Layer]) -> Ties:
    """Finds the variables that several places of a model share.

    Args:
        model: A model, or any layer; only what is built has variables. Or several by name:
            a layer that is in two of them is a place in each.

    Returns:
        The tie groups, in the order of Keras' walk over the model. A layer
        that is called several times is one place; weights that are merely
        equal are not tied.

    Raises:
        ArgumentError: If something else is passed than a layer, or layers by name.

    Example:

    >>> import keras, tiedio
    >>> encoder, decoder = (keras.layers.Dense(4, name=name) for name in ("encoder", "decoder"))
    >>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
    >>> _ = tiedio.tie(decoder, to=encoder, weights=("kernel",))
    >>> for group in tiedio.find_ties(model):
    ...     print(group)
    encoder/kernel = decoder/kernel  (4, 4) float32
    """
    found = _places_in(model)
    return Ties((*found.ties, *found.transposed_ties))


def assert_tied(
    model: keras.Layer | Mapping[str, keras.Layer], ties: Iterable[TieGroup] | None = None
) -> None:
    """Checks that the variables of a model are tied as they should be.

    Args:
        model: A model, or any layer; or several by name, as for `find_ties`.
        ties: The tie groups it should have, as `find_ties` lists them for a model
            of the same structure: one that was cloned, say. `None` checks those
            made by `tie` or restored by `load_tied` and not undone by `untie`.

    Raises:
        ArgumentError: If something else is passed than a layer, layers by name, and tie groups.
        TieError: If variables that should be tied are not. All are named, with the
            largest difference between their values. Also if `ties` is `None`, and
            the model never had any.

    Example:

    >>> import keras, tiedio
    >>> layers = [keras.layers.Dense(2), keras.layers.Dense(2)]
    >>> model = keras.Sequential([keras.Input((2,)), *layers])
    >>> _ = tiedio.tie(layers[1], to=layers[0])
    >>> tiedio.assert_tied(model)
    >>> clone = keras.models.clone_model(model)  # Keras clones layer by layer
    >>> try:
    ...     tiedio.assert_tied(clone, tiedio.find_ties(model))
    ... except tiedio.TiedioError:
    ...     print("not tied")
    not tied
    """
    found = _places_in(model)
    groups = tie_memory.remembered(found) if ties is None else map(_axes_of, ties_in(ties))
    groups = list(groups)
    if not groups and ties is None and not (found.ties or found.transposed_ties):
        raise TieError(
            f"{listed(one.name for one in each(as_one(model)))} has no ties to check.\n"
            "Expected: layers tied by `tie` or `load_tied`. Received: none.\n"
            "Pass the ties it should have, as from `find_ties`."
        )
    broken = dict(_broken(groups, found.places))
    if broken:
        raise TieError(
            f"{listed(broken)} are not tied.\n"
            f"Expected: the variable of the owner. "
            f"Received: {'; '.join(broken[name] for name in sorted(broken))}.\n"
            "Tie these layers again with `tiedio.tie`, or undo the tie with `tiedio.untie`."
        )


def _places_in(model: Any) -> Walk:
    """Walks over a model, or over several of which each is to show all that it holds."""
    model = as_one(model)
    found = walk(model)
    if not found.models:
        return found
    # One that is inside another has a path there, too; its own is the one with the fewest steps.
    paths = {id(v.saveable): min(v.inner_paths, key=lambda p: p.count("/")) for v in found.visits}
    visits = [found.visits[0]]
    for part in each(model):
        for visit in walk(part).visits:
            inner_path = f"{paths[id(part)]}/{visit.inner_path}".rstrip("/")
            visits.append(Visit(visit.saveable, [inner_path]))
    return Walk(visits)


def _axes_of(group: TieGroup) -> dict[Place, tuple[int, ...]]:
    """Maps the places of a group, its owner first, to the axes that they show, if not its own."""
    axes = group.axes if isinstance(group, TransposedTie) else ()
    return {group.owner: (), **dict.fromkeys(group.aliases, axes)}


def _broken(
    groups: Iterable[Mapping[Place, tuple[int, ...]]], places: Mapping[Place, Held]
) -> Iterator[tuple[str, str]]:
    """Yields the places that do not hold the variable of their owner, and how they differ."""
    for group in groups:
        owner = next(iter(group))
        # Nothing can be said of the aliases of what is not there.
        for place, axes in group.items() if owner in places else [(owner, ())]:
            if place not in places:
                yield str(place), f"no variable at `{place}`"
            elif not _is_tied(received := places[place].item, places[owner].item, axes):
                differ = _difference(received, places[owner].item, axes)
                yield str(place), f"`{place}` and `{owner}`{' transposed' * bool(axes)} {differ}"


def _is_tied(received: Any, expected: Any, axes: tuple[int, ...]) -> bool:
    if not axes:
        return received is expected
    is_view = isinstance(received, TransposedView)
    return is_view and received.owner is expected and received.axes == axes


def _difference(received: Any, expected: Any, axes: tuple[int, ...]) -> str:
    facts = [facts_of(received), facts_of(expected, axes)]
    if facts[0] != facts[1]:
        return f"are {facts[0]} and {facts[1]}"
    a, b = (
        np.asarray(keras.ops.convert_to_numpy(variable), dtype="float64")
        for variable in (received, expected)
    )
    b = b.transpose(axes) if axes else b
    return f"differ by up to {np.abs(a - b).max(initial=0.0):.3g}"


def _build(layer: keras.Layer, input_shape: Any, like: keras.Layer | None = None) -> None:
    """Builds `layer` if need be, for `input_shape` or for the shape of `like`."""
    if layer.built:
        return
    config = {"input_shape": input_shape} if input_shape else like and like.get_build_config()
    if not config:
        raise ModelNotBuiltError(
            f"Layer `{layer.name}` has no variables yet: it is not built.\n"
            "Expected: a built layer. Received: an unbuilt one, and no `input_shape`.\n"
            "Build it, call it on data, or pass `input_shape` to `tie`."
        )
    try:
        layer.build_from_config(config)
    except Exception as error:  # whatever a layer's own `build` raises
        raise ModelNotBuiltError(
            f"Layer `{layer.name}` cannot be built: {first_line(error)}\n"
            f"Expected: a shape it accepts. Received: {config}.\n"
            "Build the layer first, or pass its `input_shape` to `tie`."
        ) from error


def _check_not_only_shown(
    held: Weights, untied: Sequence[Weight], others: Sequence[tuple[keras.Layer, Any]]
) -> None:
    """Refuses to take a variable from its owner that other layers show, and none holds."""
    shown = {id(one.variable) for one in untied}.difference(id(variable) for _, variable in others)
    shown -= {id(one.variable) for one in untied if isinstance(one.variable, TransposedView)}
    if shown:
        showing = {other.name for other, variable in others if id(base(variable)) in shown}
        names = [n for n, one in held.named.items() if id(one.variable) in shown]
        raise TieError(
            f"Cannot untie {listed(map(held.label, names))}: other layers show it transposed.\n"
            f"Expected: {listed(showing)}, which show it. Received: the layer that has it.\n"
            "Untie those instead."
        )
