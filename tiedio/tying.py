"""`tie` and `untie`: the public way to make layers share variables, and to stop it."""

from collections.abc import Iterable
from typing import Any, TypeVar

import keras

from tiedio import models, substitution, variables
from tiedio.errors import ModelNotBuiltError, TieError, first_line, listed

LayerT = TypeVar("LayerT", bound=keras.Layer)


def tie(
    layer: LayerT,
    to: keras.Layer,
    weights: Iterable[str] | None = None,
    *,
    input_shape: Any = None,
) -> LayerT:
    """Makes `layer` use the variables of another layer.

    Both layers then hold the same `keras.Variable` objects, each in its usual
    place, whatever else differs between them: padding, strides, activation. The
    variables stay those of `to`, with its initial values, regularizers,
    constraints and `trainable` flags.

    Layers may be built or not, and be part of a model or not. Models that
    contain `layer` forget their compiled functions. One whose optimizer was
    built for the variables given up gets a new optimizer from the same config;
    if it had been trained, a `TiedioWarning` says that slots and iterations
    start at zero. Tie before training to avoid that.

    Args:
        layer: The layer that gives up its own variables.
        to: The layer whose variables are used, the owner.
        weights: Names of the weights to tie, such as `("kernel",)`; in a layer
            with sub-layers a name stands for all weights of that name. `None`
            ties every weight that both layers have, kernel with kernel, bias
            with bias.
        input_shape: Shape to build unbuilt layers for, batch axis included. By
            default an unbuilt `layer` is built for the owner's shape.

    Returns:
        `layer`.

    Raises:
        TieError: If the layers are one, have no weights of equal name, lack one
            of `weights`, or weights differ in shape or dtype. Nothing is changed
            but that unbuilt layers may be built.
        ModelNotBuiltError: If a layer is not built and cannot be.

    Example:

    >>> import keras, tiedio
    >>> same = keras.layers.Conv2D(8, 3, padding="same")
    >>> valid = tiedio.tie(keras.layers.Conv2D(8, 3), to=same, input_shape=(None, 28, 28, 1))
    >>> valid.kernel is same.kernel and valid.bias is same.bias
    True

    Source: a public way to share a variable has been asked for since
    [keras#18419](https://github.com/keras-team/keras/issues/18419).
    """
    if layer is to:
        raise TieError(
            f"Cannot tie `{layer.name}` to itself.\n"
            f"Expected: two layers. Received: one, twice.\n"
            "Pass the layer whose variables are to be used as `to`."
        )
    # Nothing else can hold variables that do not exist yet.
    in_use = any(part.built for part in layer._flatten_layers())
    _build(to, input_shape)
    _build(layer, input_shape, like=to)
    own, owned = _weights(layer), _weights(to)
    names = _select(own, weights, layer)
    if weights is None:
        names = [name for name in names if name in owned]
    elif missing := [name for name in names if name not in owned]:
        raise _unknown(missing, to, owned)
    if not names:
        raise TieError(
            f"Cannot tie `{layer.name}` to `{to.name}`: they have no weights of equal name.\n"
            f"Expected: {listed(owned) or 'weights'} (owner). Received: {listed(own) or 'none'}.\n"
            "Tie layers of the same kind."
        )
    substitution.check_shapes(
        (f"{layer.name}/{name}", own[name][1], f"{to.name}/{name}", owned[name][1])
        for name in names
    )
    substitutions = [
        substitution.Substitution(own[name][0], own[name][1], owned[name][1]) for name in names
    ]
    _apply(substitutions, models.live_layers() if in_use else [])
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
        TieError: If the layer lacks one of `weights`, or shares none of them.
        ModelNotBuiltError: If the layer is not built.

    Example:

    >>> import keras, tiedio
    >>> a, b = keras.layers.Dense(2), keras.layers.Dense(2)
    >>> _ = tiedio.tie(b, to=a, input_shape=(None, 3))
    >>> _ = tiedio.untie(b, weights=("bias",))
    >>> b.kernel is a.kernel, b.bias is a.bias
    (True, False)
    """
    _build(layer, None)
    own = _weights(layer)
    inside = {id(holder) for holder, _ in own.values()}
    everywhere = models.live_layers()
    elsewhere = {
        id(variable)
        for other in everywhere
        if id(other) not in inside
        for variable in variables.named_variables(other).values()
    }
    names = [name for name in _select(own, weights, layer) if id(own[name][1]) in elsewhere]
    if not names:
        raise TieError(
            f"Cannot untie `{layer.name}`: no other layer holds its weights.\n"
            f"Expected: a tied weight. Received: {listed(own) or 'no weights'}.\n"
            "Untie one of the layers that were tied, by the names of tied weights."
        )
    copies = {id(own[name][1]): substitution.copy_of(own[name][1], own[name][0]) for name in names}
    _apply(
        [
            substitution.Substitution(holder, variable, copies[id(variable)])
            for holder, variable in (own[name] for name in names)
        ],
        everywhere,
    )
    return layer


def _weights(layer: keras.Layer) -> dict[str, tuple[keras.Layer, Any]]:
    """Maps names such as `kernel`, or `cell/kernel`, to holder and variable."""
    named = {}
    for inner_path, holder in variables.layers_of(variables.walk(layer)):
        for attribute, variable in variables.named_variables(holder).items():
            named[f"{inner_path}/{attribute.lstrip('_')}".lstrip("/")] = holder, variable
    return named


def _select(own: dict[str, Any], weights: Iterable[str] | None, layer: keras.Layer) -> list[str]:
    """Lists the names among `own` that `weights` stand for."""
    if weights is None:
        return list(own)
    asked = [weights] if isinstance(weights, str) else list(weights)
    found = {name: [n for n in own if f"/{n}".endswith(f"/{name}")] for name in asked}
    if unknown := [name for name, names in found.items() if not names]:
        raise _unknown(unknown, layer, own)
    return list(dict.fromkeys(name for names in found.values() for name in names))


def _unknown(names: Iterable[str], layer: keras.Layer, own: Iterable[str]) -> TieError:
    return TieError(
        f"Layer `{layer.name}` has no weights {listed(names)}.\n"
        f"Expected: some of {listed(own) or 'none'}. Received: {listed(names)}.\n"
        "Pass names that both layers have."
    )


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


def _apply(substitutions: list[substitution.Substitution], everywhere: list[keras.Layer]) -> None:
    layers = [one.layer for one in substitutions]
    models.apply(substitutions, models.models_with(layers, among=everywhere))
