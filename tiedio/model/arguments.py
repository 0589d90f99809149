"""What public functions are given where layers, names of weights or ties are meant.

Paths are checked where they are followed, in `tiedio.storage.locating`.
"""

import numbers
import os
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from tiedio.errors import (
    ArgumentError,
    ModelNotBuiltError,
    check_mapping,
    listed,
    texts,
    unfit,
)
from tiedio.model.keras_internals import KerasSaveable
from tiedio.model.several import Models
from tiedio.record.ties import TieGroup

# What people pass instead of a layer or a model, and what they mean by it. The first that fits.
_INSTEAD: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (
        (str, bytes, os.PathLike),
        "Pass the layer or model itself, before any path: `model.get_layer` finds a layer by name, "
        "`tiedio.load_tied` loads a file.",
    ),
    (keras.Variable, 'Pass the layer that holds it; `weights=("kernel",)` names its variables.'),
    (
        keras.optimizers.Optimizer,
        "Pass a `keras.Model` that holds the optimizer, and what it trains, as attributes.",
    ),
    (type, "Make a layer or a model of it, by calling the class."),
    (Iterable, "Pass one at a time."),
    (object, "Pass a layer or a model of the package `keras`."),
)

_BY_NAME = 'Pass several by name, as in `{"encoder": encoder, "decoder": decoder}`.'


def check_layers(**given: Any) -> None:
    """Raises an error if some of what was given, by argument, is no layer and no model."""
    wrong = {name: thing for name, thing in given.items() if not isinstance(thing, keras.Layer)}
    if wrong:
        thing = next(iter(wrong.values()))
        advice = next(text for kind, text in _INSTEAD if isinstance(thing, kind))
        raise unfit(wrong, "a layer or a model of Keras", advice)


def check_model(model: Any) -> None:
    """Raises an error if something is no model: a layer has no methods for that."""
    check_layers(model=model)
    if not isinstance(model, keras.Model):
        raise unfit({"model": model}, "a model", "Put the layer into a `keras.Sequential`.")


def as_one(model: Any) -> Any:
    """Returns the model that was given, or `Models` of several that were given by name."""
    if isinstance(model, (list, tuple)):
        raise unfit({"model": model}, "a layer or a model of Keras", _BY_NAME)
    if not isinstance(model, Mapping):
        check_layers(model=model)
        return model
    check_layers(**{f'model["{name}"]': one for name, one in model.items()})
    if not model or any(not isinstance(name, str) or not name or "/" in name for name in model):
        raise ArgumentError(
            "Cannot use models by these names.\n"
            f"Expected: texts without a `/`. Received: {', '.join(map(repr, model)) or 'none'}.\n"
            + _BY_NAME
        )
    return Models(model)


def several_in(models: Any, others: Iterable[Any] = ()) -> Models | None:
    """Returns `Models` of those that were given by name, if any.

    Args:
        models: What was given so.
        others: What was given without saying for which argument: no dict is meant there.
    """
    if given := [one for one in others if isinstance(one, Mapping)]:
        raise unfit({"models": given[0]}, "it by its name", "Pass models as `models={...}`.")
    check_mapping("models", models, 'Name each, as in `{"encoder": encoder, "decoder": decoder}`.')
    return None if models is None else as_one(models)


def check_built(model: Any, what: str) -> None:
    """Raises an error if a model, or one of several, has no variables yet, or is none."""
    check_layers(model=model)
    given = model.models if isinstance(model, Models) else {model.name: model}
    unbuilt = {name: one for name, one in given.items() if not _is_built(one)}
    if unbuilt:
        kind = "Model" if isinstance(next(iter(unbuilt.values())), keras.Model) else "Layer"
        raise ModelNotBuiltError(
            f"{kind} {listed(unbuilt)} has no variables yet: it is not built.\n"
            f"Expected: a built {kind.lower()}. Received: an unbuilt one.\n"
            f"Build it, or call it on data, before {what}."
        )


def _is_built(layer: Any) -> bool:
    """Whether it has its variables: one that is never called has those of its parts."""
    parts = layer._flatten_layers(include_self=False)
    return layer.built or bool(layer.weights and all(part.built for part in parts))


def names_in(weights: Any) -> list[str]:
    """Lists the names of weights that were given: one, or several."""
    return texts(
        "weights",
        weights,
        'names of weights, as in `("kernel",)`',
        "Pass names only; tie several layers one by one, each to the same owner.",
        least=1,
    )


def axes_in(transpose: Any, weights: Any) -> bool | tuple[int, ...]:
    """Returns the axes that were given, or whether to reverse them; weights must be named then."""
    axes = transpose if isinstance(transpose, bool) else tuple(transpose or ())
    is_order = isinstance(axes, bool) or (
        all(isinstance(axis, numbers.Integral) for axis in axes)
        and sorted(axes) == list(range(len(axes)))
    )
    if not is_order:
        raise unfit(
            {"transpose": transpose},
            "whether to reverse the axes, or each axis once",
            "Pass `True`, or axes as `numpy.transpose` takes them, such as `(0, 1, 3, 2)`.",
        )
    if axes and weights is None:
        raise unfit(
            {"weights": weights},
            "names of what is to be transposed",
            'Pass them, as in `weights=["kernel"]`.',
        )
    return axes


def ties_in(ties: Any) -> tuple[TieGroup, ...]:
    """Lists the tie groups that were given."""
    groups = tuple(ties) if isinstance(ties, Iterable) else (ties,)
    if not all(isinstance(group, TieGroup) for group in groups):
        raise unfit(
            {"ties": ties}, "tie groups", "Pass what `tiedio.find_ties` returns of a model."
        )
    return groups


def saveables_in(objects_to_skip: Any) -> list[Any]:
    """Lists the layers, optimizers, ... that were given, if any."""
    given = () if objects_to_skip is None else objects_to_skip
    found = list(given) if isinstance(given, Iterable) else [None]
    if not all(isinstance(one, KerasSaveable) for one in found):
        raise unfit(
            {"objects_to_skip": given},
            "a list of layers, or of optimizers",
            "Pass the objects, not their names, as in `[model.optimizer]`.",
        )
    return found
