"""Renew what a model derives from its variables: compiled functions, the optimizer."""

import gc
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from tiedio.errors import listed
from tiedio.model.substitution import Substitution, substitute, track_parameters


def apply(
    substitutions: Sequence[Substitution],
    models: Sequence[keras.Model],
    resumed: Iterable[keras.Model] = (),
) -> list[str]:
    """Substitutes, then renews what `models` derived from the old variables.

    That is the compiled functions, which would go on training the old
    variables in silence, and the optimizer, whose slots belong to them.

    Args:
        substitutions: What takes the place of what.
        models: The models that hold something derived from what is replaced.
        resumed: Those whose optimizer will be given its state, and loses nothing.

    Returns:
        A warning for the caller of tiedio, if an optimizer lost the state of its training.
    """
    pending = [one for one in substitutions if one.old is not one.new]
    replaced = {id(one.old) for one in pending}
    # From their configs first: a custom optimizer may fail here, and nothing is changed yet.
    optimizers = [
        (model, renewed_optimizer(optimizer))
        for model in models
        if (optimizer := getattr(model, "optimizer", None))
        and any(id(v) in replaced for v in optimizer_variables(optimizer) or ())
    ]
    for one in pending:
        substitute(one.layer, one.old, one.new)
    dropped = [(model, _drop_functions(model)) for model in models if pending]
    kept = {id(model) for model in resumed}
    trained = [
        model.name
        for model, _ in optimizers
        if id(model) not in kept and int(model.optimizer.iterations) > 0
    ]
    for model, optimizer in optimizers:
        set_optimizer(model, "optimizer", optimizer)
        optimizer.build(model.trainable_variables)
    for model, names in dropped:  # a class may make its own, and fail
        _make_functions(model, names)
    if not trained:
        return []
    return [
        f"The optimizer of {listed(trained)} was built for variables that are now others: "
        "it starts anew, with its slots and iterations at zero. "
        "Tie before training to keep them."
    ]


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


def compiles_as_keras(model: keras.Model) -> bool:
    """Whether no class of its own has a say in how `model` is compiled from a config."""
    names = ("compile", "compile_from_config")
    return all(getattr(type(model), name) is getattr(keras.Model, name) for name in names)


def optimizer_variables(optimizer: keras.optimizers.Optimizer | None) -> list[Any] | None:
    """Lists the variables that `optimizer` was built for, in its order."""
    if optimizer is None or not optimizer.built:
        return None
    return list(optimizer._trainable_variables)  # there is no public list of them


def keeps_to_itself(optimizer: Any, trained: Sequence[Any]) -> bool:
    """Whether an optimizer does not say what it is built for: loss scaling in Keras 3.10."""
    return not trained and isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def renewed_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Makes an optimizer anew, unbuilt (a second `build` does nothing)."""
    return type(optimizer).from_config(optimizer.get_config())


def set_optimizer(model: keras.Layer, attribute: str, optimizer: Any) -> None:
    """Gives `optimizer` to `model` in the place of the one it has."""
    before = getattr(model, attribute)
    if before is optimizer:
        return
    setattr(model, attribute, optimizer)
    # What is saved as the model's optimizer; Keras may have wrapped it for loss scaling.
    config = getattr(getattr(model, "_compile_config", None), "config", {})
    for given in (before, getattr(before, "inner_optimizer", None)):
        if given is not None and config.get("optimizer") is given:
            config["optimizer"] = optimizer if given is before else optimizer.inner_optimizer


def live_layers() -> list[keras.Layer]:
    """Lists every layer and model in this process.

    A layer knows nothing of the models and layers that use it, so the garbage
    collector is asked, which sees every object (about 0.1 s with TensorFlow).
    """
    return [thing for thing in gc.get_objects() if issubclass(type(thing), keras.Layer)]


def models_with(layers: Iterable[keras.Layer], among: Iterable[keras.Layer]) -> list[keras.Model]:
    """Lists the models in `among` that contain any of `layers`."""
    wanted = {id(layer) for layer in layers}
    return [
        model
        for model in among
        if isinstance(model, keras.Model)
        and any(id(layer) in wanted for layer in model._flatten_layers())
    ]
