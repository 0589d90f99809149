"""Let a class that compiles its models in its own way do so, and compare what came of it."""

import copy
import inspect
from collections.abc import Iterator
from numbers import Number
from typing import Any

import keras

from tiedio.errors import LoadError, listed
from tiedio.keras_versions.config_translation import HOW_IT_RUNS

# What the same thing may have several of.
_NAMES = ("name", "module", "registered_name", "build_config", "shared_object_id")

_NOTHING = (None, [], {}, ())


def compile_by_its_class(model: Any, config: dict[str, Any]) -> None:
    """Compiles a model whose class has a say in it.

    Keras leaves one with its own `compile` alone. Where the constructor has called that, as in
    KerasHub, it is called again, with what the file says: it need not be given anything.
    """
    config = copy.deepcopy(config)  # Keras changes what it reads
    is_own = type(model).compile_from_config is not keras.Model.compile_from_config
    if is_own or not model.compiled:
        model.compile_from_config(config)
        return
    arguments = keras.saving.deserialize_keras_object(config)
    known = inspect.signature(model.compile).parameters
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    model.compile(**{k: value for k, value in arguments.items() if takes_any or k in known})


def differences(model: Any, expected: dict[str, Any]) -> list[LoadError]:
    """Lists an error if a model is compiled with something else than its file says.

    Args:
        model: The model.
        expected: What it was compiled with when it was saved, or the config of that.
    """
    try:
        saved = keras.saving.serialize_keras_object(expected)
        received = model.get_compile_config() if model.compiled else {}
        # What is given to `compile` may be wrapped there, for loss scaling.
        optimizer = keras.saving.serialize_keras_object(getattr(model, "optimizer", None))
    except Exception:  # a class may do without configs, and there is nothing to compare
        return []
    found = dict(_differences(saved, received, ""))
    if "optimizer" in received:
        wrapped = dict(_differences(saved, {**received, "optimizer": optimizer}, ""))
        found = {name: values for name, values in found.items() if name in wrapped}
    if not found:
        return []
    told = ["; ".join(f"`{name}` {found[name][side]}" for name in sorted(found)) for side in (0, 1)]
    error = LoadError(
        f"Cannot compile `{model.name}` as it was when saved: its class sets {listed(found)}.\n"
        f"Expected: {told[0]}. Received: {told[1]}.\n"
        "Let the `compile_from_config` of its class use all that it is given."
    )
    return [error]


def _differences(expected: Any, received: Any, name: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yields where two configs say different things, as far as both say it in the same way."""
    if isinstance(expected, dict) and isinstance(received, dict):
        for key in sorted((expected.keys() & received.keys()).difference(_NAMES, HOW_IT_RUNS)):
            inside = name if key in ("class_name", "config") else f"{name}/{key}".lstrip("/")
            yield from _differences(expected[key], received[key], inside)
    elif isinstance(expected, (list, tuple)) and isinstance(received, (list, tuple)):
        if len(expected) != len(received):
            yield name, (f"has {len(expected)}", f"has {len(received)}")
            return
        for number, pair in enumerate(zip(expected, received, strict=True)):
            yield from _differences(*pair, f"{name}/{number}")
    elif _differs(expected, received, name):
        yield name, (_shown(expected), _shown(received))


def _differs(expected: Any, received: Any, name: str) -> bool:
    if expected in _NOTHING or received in _NOTHING:
        return not (expected in _NOTHING and received in _NOTHING)
    if isinstance(expected, Number) and isinstance(received, Number):
        # A rate that is a number is state, and read with the slots.
        return expected != received and name != "optimizer/learning_rate"
    # A name may stand for a whole config, and cannot be compared to it.
    return isinstance(expected, str) and isinstance(received, str) and expected != received


def _shown(value: Any) -> str:
    return str(value.get("class_name", "other") if isinstance(value, dict) else value)[:60]
