"""Random generators that belong to the process: what is drawn without a seed comes from them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tiedio.errors import listed
from tiedio.model import keras_internals
from tiedio.model.walk import Held, Walk

# Layers of Keras drop nothing where all of these that they have are zero.
_RATES = ("rate", "dropout", "recurrent_dropout")

_KERAS, _TORCH = "keras", "torch/"


def states(walk: Walk) -> dict[str, tuple[int, ...]]:
    """Returns the state of each generator that a model may have drawn from, by name.

    That is the one of Keras, if anything was drawn without a seed in this thread; and those of
    torch, one for each device, if the model drops out without a seed.
    """
    found = {}
    generator = keras_internals.global_seed_generator(make=False)
    if generator is not None:
        found[_KERAS] = _words(keras.ops.convert_to_numpy(generator.state))
    if any(map(_leaves_it_to_torch, walk.generators.values())):
        for device, module in _devices():
            state = module.get_rng_state().cpu().numpy()
            found[f"{_TORCH}{device}"] = _words(state.view("int32"))
    return found


def go_on(
    models: Iterable[keras.Model],
    walk: Walk,
    saved: Mapping[str, tuple[int, ...]],
    wanted: bool | None,
    *,
    filepath: object,
    call: str,
) -> list[str]:
    """Lets the generators of the process go on as when saved, or returns a warning.

    Args:
        models: What was loaded.
        walk: A walk of them.
        saved: What `states` had returned.
        wanted: Whether they go on so; `None` to warn if that would change anything.
        filepath: Where the file is, for messages.
        call: What loads it.
    """
    if wanted:
        for model in models:
            _hold_while_looking(model)
        if missing := restore(saved):
            return [
                f"Random numbers of {listed(missing)} do not go on as when `{filepath}` was saved: "
                "this process has no such generator."
            ]
    elif (
        saved
        and wanted is None
        and any(int(optimizer.iterations) > 0 for optimizer in walk.optimizers.values())
        and saved != states(walk)
    ):
        return [
            "Training does not resume exactly: random numbers that are drawn without a seed do not "
            f"go on as when `{filepath}` was saved.\n"
            f"Expected: the state of {listed(saved)} there. Received: that of this process.\n"
            f"`{call}` takes that of the file with `random_state=True`, and does without with "
            "`random_state=False`."
        ]
    return []


def restore(states: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Gives the generators of this process these states; names those that it does not have."""
    devices = dict(_devices())
    missing = []
    for name, words in states.items():
        try:
            if name == _KERAS:
                state = keras_internals.global_seed_generator(make=True).state
                state.assign(np.array(words).astype(keras.backend.standardize_dtype(state.dtype)))
            else:
                _set(devices[name.removeprefix(_TORCH)], words)
        except (KeyError, OverflowError, RuntimeError, TypeError, ValueError):
            missing.append(name)
    return missing


def _hold_while_looking(model: keras.Model) -> None:
    """Lets the first `fit` of a model draw no more from torch than those that go on do.

    Keras then looks at a batch, if the model was just compiled, for which torch draws a seed.
    """
    look = model._symbolic_build

    def held(*args: Any, **kwargs: Any) -> None:
        model.__dict__.pop("_symbolic_build", None)
        before = [(module, module.get_rng_state()) for _, module in _devices()]
        look(*args, **kwargs)
        for module, state in before:
            module.set_rng_state(state)

    if keras.backend.backend() == "torch":
        model.__dict__["_symbolic_build"] = held


def _set(module: Any, words: tuple[int, ...]) -> None:
    import torch  # pyright: ignore[reportMissingImports]

    module.set_rng_state(torch.from_numpy(np.array(words, "int32").view("uint8")))


def _devices() -> Iterator[tuple[str, Any]]:
    """Yields the devices that torch draws for, and where their generators are read and set."""
    if keras.backend.backend() != "torch":
        return
    import torch  # pyright: ignore[reportMissingImports]

    yield "cpu", torch
    for device in ("cuda", "mps", "xpu"):
        module = getattr(torch, device, None)
        if module is not None and module.is_available():
            yield device, module


def _leaves_it_to_torch(held: Held) -> bool:
    """Whether a layer may drop out without a seed: torch then draws itself, which is quicker."""
    layer, generator = held
    rates = [getattr(layer, name) for name in _RATES if hasattr(layer, name)]
    is_of_keras = type(layer).__module__.startswith("keras.")
    return (
        keras.backend.backend() == "torch"
        and generator._initial_seed is None
        and (any(rates) or not is_of_keras)
    )


def _words(state: Any) -> tuple[int, ...]:
    return tuple(map(int, state))
