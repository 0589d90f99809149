"""Renew what a model derives from its variables: compiled functions, optimizers."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from tiedio.errors import listed
from tiedio.model import weight_decay
from tiedio.model.places import members
from tiedio.model.rebuilding import Rebuilding, family, optimizer_variables
from tiedio.model.substitution import Substitution, substitute, track_parameters
from tiedio.model.views import base


def apply(
    substitutions: Sequence[Substitution],
    models: Sequence[keras.Model],
    resumed: Iterable[keras.optimizers.Optimizer] = (),
) -> list[str]:
    """Substitutes, then renews what `models` derived from the old variables.

    That is the compiled functions, which would go on training the old
    variables in silence, and the optimizers, whose slots belong to them.

    Args:
        substitutions: What takes the place of what.
        models: The models that hold something derived from what is replaced.
        resumed: The optimizers that will be given their state, and lose nothing.

    Returns:
        A warning for the caller of tiedio, if an optimizer lost the state of its training.

    Raises:
        TieError: If an optimizer cannot be built for other variables; nothing is changed.
    """
    pending = [one for one in substitutions if one.old is not one.new]
    if not pending:
        return []
    # Optimizers know the owners of views.
    trained_instead = [Substitution(one.layer, base(one.old), base(one.new)) for one in pending]
    optimizers = _optimizers_of(models)
    stale = [
        (name, optimizer, Rebuilding(optimizer), _follows(optimizer, models))
        for name, optimizer in _stale(optimizers, trained_instead)
    ]
    for one in pending:
        substitute(one.layer, one.old, one.new)
    dropped = [(model, _drop_functions(model)) for model in models]
    kept = {id(optimizer) for optimizer in resumed}
    held = {id(variable) for model in models for variable in model.variables}
    trained = []
    for name, optimizer, rebuilding, follows in stale:
        if id(optimizer) not in kept and int(optimizer.iterations) > 0:
            trained.append(name)
        before = optimizer_variables(optimizer) or []
        after = follows.trainable_variables if follows else _after(before, trained_instead, held)
        rebuilding.build(after)
        rebuilding.restart()
    for _, optimizer in optimizers:
        for part in family(optimizer):
            weight_decay.exclude_instead(part, trained_instead, held)
    for model, names in dropped:  # a class may make its own, and fail
        _make_functions(model, names)
    if not trained:
        return []
    return [
        f"The optimizer of {listed(trained)} was built for variables that are now others: "
        "it starts anew, with its slots and iterations at zero. "
        "Tie before training to keep them."
    ]


def check(substitutions: Sequence[Substitution], models: Sequence[keras.Model]) -> None:
    """Raises the `TieError` of `apply`, if it will be raised; nothing is changed."""
    for _, optimizer in _stale(_optimizers_of(models), substitutions):
        Rebuilding(optimizer)


def _stale(
    optimizers: Iterable[tuple[str, Any]], substitutions: Iterable[Substitution]
) -> list[tuple[str, Any]]:
    """Lists the optimizers that were built for what is to be replaced."""
    replaced = {id(one.old) for one in substitutions if one.old is not one.new}
    return [
        (name, optimizer)
        for name, optimizer in optimizers
        if any(id(v) in replaced for v in optimizer_variables(optimizer) or ())
    ]


def _optimizers_of(models: Iterable[keras.Model]) -> list[tuple[str, Any]]:
    """Finds the optimizers that models and their layers hold, with the names of these."""
    found: dict[int, tuple[str, Any]] = {}
    for model in models:
        for layer in model._flatten_layers():
            for _, optimizer in members(layer, keras.optimizers.Optimizer):
                found.setdefault(id(optimizer), (layer.name, optimizer))
    return list(found.values())


def _follows(optimizer: Any, models: Iterable[keras.Model]) -> keras.Model | None:
    """Returns the model whose optimizer it is, if it trains all that is trainable there."""
    trained = set(map(id, optimizer_variables(optimizer) or ()))
    for model in models:
        if getattr(model, "optimizer", None) is optimizer:
            return model if trained == set(map(id, model.trainable_variables)) else None
    return None


def _after(before: Iterable[Any], pending: Iterable[Substitution], held: set[int]) -> list[Any]:
    """Lists what an optimizer trains after a substitution, each variable once."""
    instead: dict[int, list[Any]] = {}
    for one in pending:
        instead.setdefault(id(one.old), []).extend([one.new] if one.new.trainable else [])
    after, copies = [], []
    for variable in before:
        if id(variable) in held:  # by a layer from which another one was untied
            after.append(variable)
            copies += instead.get(id(variable), [])
        else:
            after += instead.get(id(variable), [variable])
    return list({id(variable): variable for variable in [*after, *copies]}.values())


def renew_functions(model: keras.Layer) -> None:
    """Makes anew what a model and its layers derived from their variables.

    Functions are not only dropped: a callback may be what loads, and `fit` goes on with them.
    """
    _make_functions(model, _drop_functions(model))


def _drop_functions(model: keras.Layer) -> list[str]:
    """Drops compiled functions, and lists those that there were."""
    names = ("train", "test", "predict") if isinstance(model, keras.Model) else ()
    made = [name for name in names if getattr(model, f"{name}_function") is not None]
    for name in made:
        setattr(model, f"{name}_function", None)
    for layer in model._flatten_layers():
        track_parameters(layer)
    return made


def _make_functions(model: keras.Layer, names: Iterable[str]) -> None:
    for name in names:
        getattr(model, f"make_{name}_function")()


def compiles_as_keras(model: Any) -> bool:
    """Whether it is a model, and no class of its own has a say in how that is compiled."""
    names = ("compile", "compile_from_config")
    return isinstance(model, keras.Model) and all(
        getattr(type(model), name) is getattr(keras.Model, name) for name in names
    )


def trains_as_keras(model: Any) -> bool:
    """Whether `fit` can train it, by Keras' own code: all that is trainable."""
    is_own = getattr(type(model), "train_step", None) is keras.Model.train_step
    return is_own and getattr(model, "loss", None) is not None


def models_with(layers: Iterable[keras.Layer], among: Iterable[keras.Layer]) -> list[keras.Model]:
    """Lists the models in `among` that contain any of `layers`."""
    wanted = {id(layer) for layer in layers}
    return [
        model
        for model in among
        if isinstance(model, keras.Model)
        and any(id(layer) in wanted for layer in model._flatten_layers())
    ]
