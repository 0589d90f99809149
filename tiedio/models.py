"""Renew what a model derives from its variables: compiled functions, the optimizer."""

import gc
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras

from tiedio.errors import TiedioWarning, listed
from tiedio.variables import Substitution, Visit, layers_of, substitute, track_parameters


def apply(substitutions: Sequence[Substitution], models: Sequence[keras.Model]) -> None:
    """Substitutes, then renews what `models` derived from the old variables.

    That is the compiled functions, which would go on training the old
    variables in silence, and the optimizer, whose slots belong to them.
    """
    pending = [one for one in substitutions if one.old is not one.new]
    replaced = {id(one.old) for one in pending}
    # From their configs first: a custom optimizer may fail here, and nothing is changed yet.
    optimizers = [
        (model, renewed_optimizer(model))
        for model in models
        if pending and any(id(v) in replaced for v in optimizer_variables(model) or ())
    ]
    for one in pending:
        substitute(one.layer, one.old, one.new)
    for model in models if pending else ():
        forget_functions(model)
    trained = [model.name for model, _ in optimizers if int(model.optimizer.iterations) > 0]
    for model, optimizer in optimizers:
        set_optimizer(model, optimizer, model.trainable_variables)
    if trained:  # last, as a warning may be made an error
        warnings.warn(
            f"The optimizer of {listed(trained)} was built for variables that are now others: "
            "it starts anew, with its slots and iterations at zero. "
            "Tie before training to keep them.",
            TiedioWarning,
            stacklevel=4,
        )


def forget_functions(model: keras.Model) -> None:
    """Drops what a model and its layers derived from their variables."""
    model.train_function = model.test_function = model.predict_function = None
    for layer in model._flatten_layers():
        track_parameters(layer)


def compiled_models(visits: Iterable[Visit]) -> Iterator[tuple[str, keras.Model]]:
    """Yields the models among `visits` that have an optimizer, with their inner_paths."""
    for inner_path, layer in layers_of(visits):
        if isinstance(layer, keras.Model) and getattr(layer, "optimizer", None) is not None:
            yield inner_path, layer


def optimizer_variables(model: Any) -> list[Any] | None:
    """Lists the variables the optimizer of `model` was built for, in its order."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        return None
    return list(optimizer._trainable_variables)  # there is no public list of them


def renewed_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """Makes the optimizer of `model` anew, unbuilt (a second `build` does nothing)."""
    return type(model.optimizer).from_config(model.optimizer.get_config())


def set_optimizer(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, variables: list[Any] | None
) -> None:
    """Gives `optimizer` to the compiled `model`, built for `variables` if there are any."""
    before, model.optimizer = model.optimizer, optimizer
    if variables is not None:
        optimizer.build(variables)
    # What is saved as the model's optimizer; Keras may have wrapped it for loss scaling.
    config = model._compile_config.config
    wrapped = config["optimizer"] is getattr(before, "inner_optimizer", None)
    config["optimizer"] = optimizer.inner_optimizer if wrapped else optimizer


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
