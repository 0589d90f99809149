"""What the callbacks of a run know by now, in JSON: what they need to go on after a kill."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tiedio.errors import first_line
from tiedio.record.json_fields import Fields

# Attributes of Keras' callbacks that change while a run goes on.
_KEPT = {
    keras.callbacks.ModelCheckpoint: (
        "best",
        "_batches_seen_since_last_saving",
        "_last_batch_seen",
    ),
    keras.callbacks.EarlyStopping: ("best", "best_epoch", "stopped_epoch", "wait"),
    keras.callbacks.ReduceLROnPlateau: ("best", "cooldown_counter", "wait"),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
}
# Attributes that tell apart those of a kind.
_TELLING = ("filepath", "filename", "monitor")


def collect(callbacks: Iterable[Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the states by name, and warnings about those that are none, by name."""
    states, warnings = {}, {}
    for name, callback in _named(callbacks).items():
        try:
            state = json.loads(json.dumps(_state_of(callback), default=_number))
        except Exception as error:  # the code of callbacks may raise anything
            warnings[name] = _problem("kept in backups", name, "get_state", error)
        else:
            states.update({name: state} if state else {})
    return states, warnings


def best_weights(callbacks: Iterable[Any]) -> dict[str, Sequence[np.ndarray]]:
    """Returns the values to which `EarlyStopping` would go back, by name."""
    named = _named(callbacks).items()
    return {
        name: callback.best_weights
        for name, callback in named
        if isinstance(callback, keras.callbacks.EarlyStopping) and callback.best_weights is not None
    }


def restore(
    callbacks: Iterable[Any],
    states: Mapping[str, Fields],
    best: Mapping[str, Sequence[np.ndarray] | None],
    epoch: int,
) -> list[str]:
    """Gives callbacks the state that they had when `epoch` was the next, if they are still there.

    Returns:
        Warnings about those that do not take it.
    """
    warnings = []
    for name, callback in _named(callbacks).items():
        if name not in states:
            continue
        weights = best.get(name, ())
        if weights is None:
            warnings.append(
                f"The best weights of `{name}` are not restored.\n"
                "Expected: values of this model. Received: those of another one.\n"
                "It begins anew."
            )
            continue
        state = states[name]
        kept = state.get("attributes", dict, missing={})
        for attribute in kept.keys() & set(_kept(callback)):
            setattr(callback, attribute, kept[attribute])
        if weights:
            callback.best_weights = list(weights)
        if "size" in state.data and _appends(callback):
            _cut_rows(callback, state.get("size", int), epoch)
        if "own" in state.data and _has_own(callback):
            try:
                callback.set_state(state.data["own"])
            except Exception as error:  # the code of callbacks may raise anything
                warnings.append(_problem("restored", name, "set_state", error))
    return warnings


def have_stopped(callbacks: Iterable[Any]) -> bool:
    """Whether an `EarlyStopping` has stopped the run."""
    early = [one for one in callbacks if isinstance(one, keras.callbacks.EarlyStopping)]
    return any(one.stopped_epoch for one in early)


def has_stopped(state: Fields) -> bool:
    """Whether it is that of an `EarlyStopping` which has stopped the run."""
    return bool(state.get("attributes", dict, missing={}).get("stopped_epoch"))


def _named(callbacks: Iterable[Any]) -> dict[str, Any]:
    """Names each callback by what it is and does; several alike by their order."""
    named: dict[str, Any] = {}
    for callback in callbacks:
        telling = {name: getattr(callback, name, None) for name in _TELLING}
        about = ", ".join(
            f"{name}={os.fspath(value)!r}"
            for name, value in telling.items()
            if isinstance(value, (str, os.PathLike))
        )
        alike = name = f"{type(callback).__name__}({about})"
        number = 1
        while name in named:
            number += 1
            name = f"{alike} {number}"
        named[name] = callback
    return named


def _state_of(callback: Any) -> dict[str, Any]:
    state: dict[str, Any] = {}
    if kept := {name: getattr(callback, name) for name in _kept(callback)}:
        state["attributes"] = kept
    if _appends(callback) and os.path.exists(callback.filename):
        state["size"] = os.path.getsize(callback.filename)
    if _has_own(callback):
        state["own"] = callback.get_state()
    return state


def _kept(callback: Any) -> list[str]:
    kinds = [kind for kind in _KEPT if isinstance(callback, kind)]
    return [name for kind in kinds for name in _KEPT[kind] if hasattr(callback, name)]


def _has_own(callback: Any) -> bool:
    return all(callable(getattr(callback, name, None)) for name in ("get_state", "set_state"))


def _appends(callback: Any) -> bool:
    return isinstance(callback, keras.callbacks.CSVLogger) and callback.append


def _cut_rows(logger: Any, size: int, epoch: int) -> None:
    """Takes from the file of a log the rows of epochs that are trained again, and nothing else."""
    with open(logger.filename, "rb") as file:
        file.seek(size)
        rows = file.read().decode(errors="replace").splitlines()
    numbers = [row.split(logger.sep)[0] for row in rows[0 if size else 1 :]]
    if rows and all(number.isdecimal() and int(number) >= epoch for number in numbers):
        logger.csv_file.truncate(size)
        logger.append_header = not size


def _number(value: Any) -> Any:
    """What JSON has no word for: a number of NumPy, or of the backend."""
    array: Any = keras.ops.convert_to_numpy(value)
    if array.ndim:
        raise TypeError(f"{type(value).__name__} of shape {array.shape}")
    return array.item()


def _problem(done: str, name: str, method: str, error: Exception) -> str:
    return (
        f"The state of `{name}` is not {done}.\n"
        f"Expected: a `{method}` for what JSON can say. "
        f"Received: {type(error).__name__}: {first_line(error)}.\n"
        "A run that is killed goes on with a new one."
    )
